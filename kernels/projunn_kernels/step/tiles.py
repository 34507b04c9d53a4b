"""How whole steps are tiled."""

from typing import Any

import torch
from torch import Tensor

from projunn_kernels.configs.closed_form import matrix_problem, neighbours, sizes, squares, warps_for
from projunn_kernels.configs.kernel import GRADIENTS, Case, Inputs, Kernel, no_complex_half
from projunn_kernels.configs.problem import Config, Device, Problem, power_of_two
from projunn_kernels.constants import PROBE
from projunn_kernels.retraction.rotations import WITH_KERNELS
from projunn_kernels.retraction.tiles import rotations_of
from projunn_kernels.step import eager
from projunn_kernels.step.arguments import FusedStep, widest

_RATE = 0.25


def _tiles(problem: Problem, device: Device) -> Config:
    p, n, m = problem, power_of_two(problem.n), power_of_two(problem.m)
    if p.k > 1 and not p.pairs:  # twice the rows spill
        rows = max(1, min(m, (2048 if p.k == 2 else 1024) // n))
        return Config(rows, n, max(4, warps_for(rows * n, 8 if p.k == 2 else 4)))
    budget = 8192 if p.k == 1 else 2048
    rows = max(1, min(m, budget // (n * p.width)))
    each = 32 if p.k == 1 else 8
    if device.capability.startswith("8.") and rows * n == 4096:
        each = 16  # half of a thread's registers hold doubles, which spilled 152 bytes on sm_80
    return Config(rows, n, warps_for(rows * n * p.width, each))


def _candidates(problem: Problem, device: Device) -> list[Config]:
    first = _tiles(problem, device)

    def floats(config: Config) -> int:
        return config.rows * config.columns * problem.width

    return neighbours(problem, first, (first.columns,), floats, 32 if problem.k == 1 else 8)


def _small(problem: Problem, config: Config) -> Problem:
    """A few matrices as they are: up to 128 x 128 is small."""
    return Problem(problem.operation, problem.pairs, problem.k, problem.m, problem.n, 3)


def _allowed(problem: Problem, variant: Any) -> bool:
    return no_complex_half(problem, variant) and problem.n <= widest(problem.k, problem.pairs)


def _case(
    problem: Problem,
    inputs: Inputs,
    *,
    retraction: str,
    scaled: bool,
    active: bool,
    gradient: torch.dtype | None,
) -> Case:
    p, listed = problem, inputs.indices(problem.matrices, active)
    count = p.matrices if listed is None else len(listed)

    def step(tensors: dict[str, Any]) -> FusedStep:
        return FusedStep(
            weights=[tensors["weight"]],
            directions=[tensors["direction"]],
            bases=[tensors["basis"]],
            probes=[tensors["probe"]],
            skipped=[tensors["skipped"]],
            missed=[tensors["missed"]],
            rate=1.0 if scaled else _RATE,
            scale=tensors["scale"],
            retraction=retraction,
            active=tensors["active"],
        )

    def results(tensors: dict[str, Any]) -> list[Tensor]:
        """W and, for k > 1 by the projector on its span, what is warm in R."""
        warm = tensors["basis"] - PROBE * tensors["probe"]
        warm = warm if p.k == 1 else warm[..., :8, :] @ warm.mH
        return [tensors["weight"], warm, tensors["skipped"], tensors["missed"]]

    def launch(**tensors: Any) -> list[Tensor]:
        from projunn_kernels.step.launch import Program

        Program(step(tensors))(step(tensors))
        return [] if inputs.hollow else results(tensors)

    def in_eager(**tensors: Any) -> list[Tensor]:
        tensors["direction"] = tensors["direction"].to(tensors["weight"].dtype)
        eager.fused_step(step(tensors))
        return results(tensors)

    direction_dtype = p.dtype if gradient is None else gradient
    basis = inputs.normal(p.matrices, p.m, p.k, dtype=p.dtype)
    tensors = {
        "weight": inputs.unitary(p.matrices, p.m, p.n, p.dtype),
        "direction": inputs.normal(count, p.m, p.n, dtype=direction_dtype, scale=p.n**-0.5),
        "basis": basis,
        "probe": inputs.normal(p.matrices, p.m, p.k, dtype=p.dtype),
        "skipped": inputs.full(0.0),
        "missed": inputs.full(0, p.matrices, dtype=torch.int64),
        "scale": inputs.full(_RATE) if scaled else None,
        "active": listed,
    }
    return Case(tensors, launch, in_eager, changed=("weight", "basis", "skipped", "missed"))


def _standard() -> list[Problem]:
    banks = ((64, 544), (128, 144), (64, 64), (128, 8), (32, 1024))
    return [
        Problem("fused_step", pairs, k, n, n, matrices)
        for k in (1, 2, 4, 8)
        for pairs in (False, True)
        for n, matrices in (banks if k < 4 else banks[2:3])
        if n <= widest(k, pairs)
    ]


def _problem(matrices: int, m: int, n: int, k: int, pairs: bool) -> Problem | None:
    return matrix_problem("fused_step", widest(k, pairs))(matrices, m, n, k, pairs)


FUSED_STEP = Kernel(
    name="fused_step",
    functions=("plane_step_kernel", "wide_step_kernel"),
    closed_form=_tiles,
    candidates=_candidates,
    case=_case,
    small=_small,
    variants={"retraction": WITH_KERNELS, "scaled": (False, True), **GRADIENTS},
    allowed=_allowed,
    passed=rotations_of,
    problem=_problem,
    standard=_standard(),
    compiled=[
        *squares("fused_step", 64, 9, 32, 33, 128, matrices=64),
        *sizes("fused_step", [(64, 100, 100)], (1,)),  # panels of rows that are not aligned
    ],
    numbers=lambda problem: 3 * problem.matrices * problem.m * problem.n,
)
