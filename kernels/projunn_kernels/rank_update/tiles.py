"""How the low-rank update is tiled."""

import torch
from torch import Tensor

from projunn_kernels.configs.closed_form import (
    around,
    matrix_problem,
    neighbours,
    sizes,
    squares,
    standard_matrices,
)
from projunn_kernels.configs.kernel import LISTED, Case, Inputs, Kernel
from projunn_kernels.configs.problem import Config, Device, Problem, power_of_two
from projunn_kernels.constants import MAX_RANK
from projunn_kernels.rank_update import eager


def _tiles(problem: Problem, device: Device) -> Config:
    p, columns = problem, min(power_of_two(problem.n), 128 // problem.width)
    return Config(max(1, min(power_of_two(p.m), 2048 // (columns * p.width))), columns, 4)


def _candidates(problem: Problem, device: Device) -> list[Config]:
    first = _tiles(problem, device)
    return neighbours(problem, first, around(first.columns))


def _small(problem: Problem, config: Config) -> Problem:
    m, n = 2 * config.rows + 1, 2 * config.columns + 3
    return Problem(problem.operation, problem.pairs, problem.k, m, n, 3)


def _many_tiles(problem: Problem, device: Device) -> Config:
    """Complex tiles with tails spilled 12 to 60 bytes with 4 warps on an sm_120."""
    warps = 8 if problem.pairs and device.capability == "12.0" else 4
    return Config(min(64, max(16, power_of_two(problem.m))), 64 // problem.width, warps)


def _many_case(problem: Problem, inputs: Inputs, *, listed: str, masked: bool) -> Case:
    p, chosen = problem, inputs.indices(problem.matrices, listed == "active")
    count = p.matrices if chosen is None else len(chosen)
    taken = inputs.full(1.0, count)
    if masked and count > 1 and not inputs.hollow:
        taken[0] = 0

    def launch(
        weight: Tensor, left: Tensor, right: Tensor, taken: Tensor, active: Tensor | None
    ) -> list[Tensor]:
        from projunn_kernels.launching import Matrices
        from projunn_kernels.rank_update.launch import update_launch

        parts = inputs.apart(weight) if listed == "table" else []
        where = Matrices.of_all(parts) if parts else Matrices.of(weight, active)
        update_launch(where, left, right, taken.char() if masked else None)()
        if parts and not inputs.hollow:
            weight.copy_(torch.cat(parts))
        return [weight]

    def in_eager(
        weight: Tensor, left: Tensor, right: Tensor, taken: Tensor, active: Tensor | None
    ) -> list[Tensor]:
        left = left * taken[:, None, None].to(left.dtype)
        eager.rank_update(weight, left.mT, right.mT, active)
        return [weight]

    tensors = {
        "weight": inputs.normal(p.matrices, p.m, p.n, dtype=p.dtype, scale=p.n**-0.5),
        "left": inputs.normal(count, p.k, p.m, dtype=p.dtype, scale=p.m**-0.5),
        "right": inputs.normal(count, p.k, p.n, dtype=p.dtype, scale=p.n**-0.5),
        "taken": taken,
        "active": chosen,
    }
    return Case(tensors, launch, in_eager, changed=("weight",))


def _case(problem: Problem, inputs: Inputs, *, listed: str) -> Case:
    p, chosen = problem, inputs.indices(problem.matrices, listed == "active")
    count = p.matrices if chosen is None else len(chosen)

    def launch(weight: Tensor, left: Tensor, right: Tensor, active: Tensor | None) -> list[Tensor]:
        from projunn_kernels.launching import Matrices, as_columns
        from projunn_kernels.rank_update.launch import few_launch, rank_update

        if listed != "table":
            rank_update(weight, left, right, active)
            return [weight]
        parts = inputs.apart(weight)
        few_launch(Matrices.of_all(parts), as_columns(left), as_columns(right))()
        return parts if inputs.hollow else [torch.cat(parts)]

    def in_eager(weight: Tensor, left: Tensor, right: Tensor, active: Tensor | None) -> list[Tensor]:
        eager.rank_update(weight, left, right, active)
        return [weight]

    tensors = {
        "weight": inputs.normal(p.matrices, p.m, p.n, dtype=p.dtype, scale=p.n**-0.5),
        "left": inputs.normal(count, p.m, p.k, dtype=p.dtype, scale=p.m**-0.5),
        "right": inputs.normal(count, p.n, p.k, dtype=p.dtype, scale=p.n**-0.5),
        "active": chosen,
    }
    return Case(tensors, launch, in_eager, changed=("weight",))


RANK_UPDATE = Kernel(
    name="rank_update",
    functions=("rank_update_kernel",),
    closed_form=_tiles,
    candidates=_candidates,
    case=_case,
    small=_small,
    variants={"listed": LISTED},
    allowed=lambda problem, variant: variant["listed"] != "table" or problem.k <= 2 * MAX_RANK,
    problem=matrix_problem("rank_update"),
    standard=standard_matrices("rank_update"),
    # The step of a tall matrix updates it by twice its rank, and an update has any rank.
    compiled=squares("rank_update", 1024, 9, 16384) + sizes("rank_update", [(1, 1024, 1024)], (16, 32)),
    numbers=lambda problem: 2 * problem.matrices * problem.m * problem.n,
)
UPDATE_MANY = Kernel(
    name="update_many",
    functions=("update_many_kernel",),
    closed_form=_many_tiles,
    case=_many_case,
    small=_small,
    variants={"listed": LISTED, "masked": (False, True)},
    compiled=sizes("update_many", [(1, 1024, 1024)], (32, 128))
    + sizes("update_many", [(1, 200, 200)], (32,)),
)
