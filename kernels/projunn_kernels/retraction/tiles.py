"""How the kernels of a retraction are tiled."""

from typing import Any

from torch import Tensor

from projunn_kernels.configs.closed_form import (
    around,
    large_matrices,
    matrix_problem,
    neighbours,
    squares,
    warps_for,
)
from projunn_kernels.configs.kernel import Case, Inputs, Kernel
from projunn_kernels.configs.problem import Config, Device, Problem, power_of_two
from projunn_kernels.factorization.tiles import column_candidates, column_tiles, small_columns
from projunn_kernels.retraction import eager
from projunn_kernels.retraction.rotations import WITH_KERNELS


def _basis_case(problem: Problem, inputs: Inputs, *, retraction: str) -> Case:
    """A whole retraction, whose result does not depend on the choice of the basis."""
    p = problem

    def launch(weight: Tensor, left: Tensor, right: Tensor) -> list[Tensor]:
        from projunn_kernels.retraction.launch import retract_few

        taken = retract_few(weight, left, right, retraction)
        return [weight, taken.to(weight.dtype)]

    def in_eager(weight: Tensor, left: Tensor, right: Tensor) -> list[Tensor]:
        taken = eager.retract(weight, left, right, retraction)
        return [weight, taken.to(weight.dtype)]

    tensors = {
        "weight": inputs.unitary(p.matrices, p.m, p.n, p.dtype),
        "left": inputs.normal(p.matrices, p.m, p.k, dtype=p.dtype, scale=0.3 * p.m**-0.5),
        "right": inputs.normal(p.matrices, p.n, p.k, dtype=p.dtype, scale=p.n**-0.5),
    }
    return Case(tensors, launch, in_eager, changed=("weight",))


def _row_tiles(problem: Problem, device: Device) -> Config:
    p, n, m = problem, power_of_two(problem.n), power_of_two(problem.m)
    if n * p.width <= 16384 // p.columns and p.k <= 4:
        rows = max(1, min(m, 4096 // (n * p.width)))
        each = 32 if p.columns * p.width <= 2 else 16  # compilers load all columns at once
        return Config(rows, n, warps_for(rows * n * p.width, each), hold=True)
    columns = max(16, min(n, 1024 // (2 * p.columns * p.width)))
    return Config(min(m, 4), columns, 4)


def _row_candidates(problem: Problem, device: Device) -> list[Config]:
    p, first = problem, _row_tiles(problem, device)

    def floats(config: Config) -> int:
        return config.rows * config.columns * p.width * (1 if config.hold else 2 * p.columns)

    columns = (first.columns,) if first.hold else around(first.columns)
    most = 16 if first.hold and p.columns * p.width > 2 else 32
    return neighbours(p, first, columns, floats, most)


def _small_rows(problem: Problem, config: Config) -> Problem:
    """A tile of rows and a tail: as wide as they are where rows are held, else two tiles and a tail."""
    n = problem.n if config.hold else 2 * config.columns + 5
    return Problem(problem.operation, problem.pairs, problem.k, config.rows + 1, n, 3)


def _rows_case(problem: Problem, inputs: Inputs, *, active: bool) -> Case:
    p, listed = problem, inputs.indices(problem.matrices, active)
    count, s = p.matrices if listed is None else len(listed), 2 * p.columns
    taken = inputs.full(1.0, count)
    if count > 1 and not inputs.hollow:
        taken[0] = 0  # one step is not taken

    def launch(*, taken: Tensor, **tensors: Any) -> list[Tensor]:
        from projunn_kernels.retraction.launch import rotate_rows

        rotate_rows(**tensors, taken=taken.char())
        return [tensors["weight"]]

    def in_eager(*, weight: Tensor, q: Tensor, t: Tensor, taken: Tensor, active: Any) -> list[Tensor]:
        for slot in range(len(q)):
            index = slot if active is None else int(active[slot])
            if index >= 0 and taken[slot] > 0:
                weight[index] += (weight[index] @ q[slot].mT) @ t[slot].conj()
        return [weight]

    tensors = {
        "weight": inputs.normal(p.matrices, p.m, p.n, dtype=p.dtype, scale=p.n**-0.5),
        "q": inputs.normal(count, s, p.n, dtype=p.dtype, scale=p.n**-0.5),
        "t": inputs.normal(count, s, p.n, dtype=p.dtype, scale=p.n**-0.5),
        "taken": taken,
        "active": listed,
    }
    return Case(tensors, launch, in_eager, changed=("weight",))


def rotations_of(problem: Problem, variant: Any) -> list[Any]:
    """The function that makes F of E."""
    from projunn_kernels.retraction.launch import device_function

    return [device_function(variant["retraction"], problem.k)]


BASIS = Kernel(
    name="basis",
    functions=("plane_basis_kernel", "basis_kernel"),
    closed_form=column_tiles,
    candidates=column_candidates,
    case=_basis_case,
    small=small_columns,
    variants={"retraction": WITH_KERNELS},
    passed=rotations_of,
    problem=matrix_problem("basis"),
    standard=large_matrices("basis"),
    compiled=squares("basis", 1024, 9, 16384),
    numbers=lambda problem: 3 * problem.matrices * problem.m * problem.n,  # of the whole retraction
)
TURN_ROWS = Kernel(
    name="rotate_rows",
    functions=("rotate_rows_kernel",),
    closed_form=_row_tiles,
    candidates=_row_candidates,
    case=_rows_case,
    small=_small_rows,
    variants={"active": (False, True)},
    problem=matrix_problem("rotate_rows"),
    standard=large_matrices("rotate_rows"),
    compiled=squares("rotate_rows", 1024, 9, 1000, 16384, 32768),
    numbers=lambda problem: 2 * problem.matrices * problem.m * problem.n,
)
