"""How the polish is tiled: one configuration, which is not tuned."""

import torch
from torch import Tensor

from projunn_kernels.configs.closed_form import sizes
from projunn_kernels.configs.kernel import Case, Inputs, Kernel
from projunn_kernels.configs.problem import Config, Device, Problem
from projunn_kernels.polish import eager

_PERIOD = 3


def _tiles(problem: Problem, device: Device) -> Config:
    return Config(16, 16, 4) if problem.pairs else Config(32, 32, 8)


def _small(problem: Problem, config: Config) -> Problem:
    """A matrix whose step is not taken, one near the manifold and one far off; wide as the problem is.

    Products have turns of their loops between the first and the last, which are made ahead.
    """
    short, long = 2 * config.rows + 1, 3 * config.rows + 6
    m, n = (short, long) if problem.m < problem.n else (long, short)
    return Problem(problem.operation, problem.pairs, 1, m, n, 3)


def _case(problem: Problem, inputs: Inputs) -> Case:
    p = problem
    weight = inputs.unitary(p.matrices, p.m, p.n, p.dtype)
    taken = inputs.full(True, p.matrices, dtype=torch.bool)
    if not inputs.hollow:
        weight *= 1.001
        if p.matrices > 2:
            taken[0] = False
            weight[-1] *= 1.5

    def launch(weight: Tensor, step: Tensor, missed: Tensor, taken: Tensor) -> list[Tensor]:
        from projunn_kernels.polish.launch import polish

        weights, counts = inputs.apart(weight), list(missed.split(1))
        polish(weights, [step] * len(weights), _PERIOD, counts, taken.view(torch.int8)[:, None])
        return [] if inputs.hollow else [torch.cat(weights)]

    def in_eager(weight: Tensor, taken: Tensor, **_: Tensor) -> list[Tensor]:
        return [eager.polish_(weight, taken)]

    tensors = {
        "weight": weight,
        "step": inputs.full(3 * _PERIOD, dtype=torch.int64),
        "missed": inputs.full(_PERIOD, p.matrices, dtype=torch.int64),
        "taken": taken,
    }
    return Case(tensors, launch, in_eager, ("weight",))


POLISH = Kernel(
    name="polish",
    functions=("residual_kernel", "correct_kernel"),
    closed_form=_tiles,
    case=_case,
    small=_small,
    variants={},
    compiled=sizes("polish", [(1, 256, 256), (3, 5, 7), (1, 64, 128)], (1,)),
)
