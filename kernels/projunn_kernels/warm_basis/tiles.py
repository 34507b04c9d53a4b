"""How the refresh of bases of one column is tiled: one configuration, which is not tuned."""

import torch
from torch import Tensor

from projunn_kernels.configs.closed_form import sizes
from projunn_kernels.configs.kernel import Case, Inputs, Kernel
from projunn_kernels.configs.problem import Config, Problem, power_of_two
from projunn_kernels.constants import PROBE


def _case(problem: Problem, inputs: Inputs) -> Case:
    p = problem
    taken = inputs.full(1.0, p.matrices)
    if p.matrices > 1 and not inputs.hollow:
        taken[0] = 0

    def launch(left: Tensor, basis: Tensor, probe: Tensor, taken: Tensor) -> list[Tensor]:
        from projunn_kernels.warm_basis.launch import warm_basis

        warm_basis(left, basis, probe, taken.char())
        return [basis]

    def in_eager(left: Tensor, basis: Tensor, probe: Tensor, taken: Tensor) -> list[Tensor]:
        warm = left / torch.linalg.vector_norm(left, dim=1, keepdim=True) + PROBE * probe
        return [torch.where(taken[:, None, None] > 0, warm, basis)]

    names = ("left", "basis", "probe")
    tensors = {name: inputs.normal(p.matrices, p.m, 1, dtype=p.dtype) for name in names}
    return Case(tensors | {"taken": taken}, launch, in_eager, changed=("basis",))


WARM_BASIS = Kernel(
    name="warm_basis",
    functions=("warm_basis_kernel",),
    closed_form=lambda problem, device: Config(1, min(2048, power_of_two(problem.m)), 4),
    case=_case,
    small=lambda problem, config: Problem("warm_basis", problem.pairs, 1, 2 * config.columns + 3, 1, 2),
    variants={},
    compiled=sizes("warm_basis", [(1, 1024, 1), (1, 9, 1)], (1,)),
)
