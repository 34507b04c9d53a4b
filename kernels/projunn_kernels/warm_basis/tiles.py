"""How the refresh of bases of one column is tiled: one configuration, which is not tuned."""

import torch
from torch import Tensor

from projunn_kernels.configs.closed_form import sizes
from projunn_kernels.configs.kernel import Case, Inputs, Kernel
from projunn_kernels.configs.problem import Config, Device, Problem, power_of_two
from projunn_kernels.constants import PROBE


def _case(problem: Problem, inputs: Inputs, *, table: bool) -> Case:
    p = problem
    taken = inputs.full(1.0, p.matrices)
    if p.matrices > 1 and not inputs.hollow:
        taken[0] = 0

    def launch(
        left: Tensor, basis: Tensor, probe: Tensor, taken: Tensor, skipped: Tensor, missed: Tensor
    ) -> list[Tensor]:
        from projunn_kernels.launching import Matrices, address_table
        from projunn_kernels.warm_basis.launch import warm_bases_launch, warm_basis

        if not table:
            warm_basis(left.mT, basis, probe, taken.char())
            return [basis, skipped, missed]
        bases, probes, *counters = (inputs.apart(t) for t in (basis, probe, skipped, missed))
        tables = [address_table(t) for t in (probes, *counters)]
        warm_bases_launch(left, Matrices.of_all(bases), taken.char(), tables)()
        return [] if inputs.hollow else [torch.cat(t) for t in (bases, *counters)]

    def in_eager(
        left: Tensor, basis: Tensor, probe: Tensor, taken: Tensor, skipped: Tensor, missed: Tensor
    ) -> list[Tensor]:
        left = left if p.k > 1 else left / torch.linalg.vector_norm(left, dim=-1, keepdim=True)
        warm = left.mT + PROBE * probe
        new = 1 - taken if table else 0 * taken
        warm = torch.where(taken[:, None, None] > 0, warm, basis)
        return [warm, skipped + new, missed + new.long()]

    tensors = {name: inputs.normal(p.matrices, p.m, p.k, dtype=p.dtype) for name in ("basis", "probe")}
    left = inputs.normal(p.matrices, p.k, p.m, dtype=p.dtype)
    counters = {
        "skipped": inputs.full(0.0, p.matrices),
        "missed": inputs.full(0, p.matrices, dtype=torch.int64),
    }
    tensors |= {"left": left, "taken": taken, **counters}
    return Case(tensors, launch, in_eager, changed=("basis", "skipped", "missed"))


def _tiles(problem: Problem, device: Device) -> Config:
    return Config(1, min(2048 // problem.columns, power_of_two(problem.m)), 4)


WARM_BASIS = Kernel(
    name="warm_basis",
    functions=("warm_basis_kernel",),
    closed_form=_tiles,
    case=_case,
    small=lambda problem, config: Problem(
        "warm_basis", problem.pairs, problem.k, 2 * config.columns + 3, problem.k, 2
    ),
    variants={"table": (False, True)},
    allowed=lambda problem, variant: problem.k == 1 or variant["table"],
    compiled=[
        *sizes("warm_basis", [(1, 1024, 8), (1, 9, 8)]),
        *sizes("warm_basis", [(1, 1024, 64)], (16, 64)),
    ],
)
