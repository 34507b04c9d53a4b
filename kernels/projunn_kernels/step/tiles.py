"""How whole steps are tiled."""

from typing import Any

import torch
from torch import Tensor

from projunn_kernels.configs.closed_form import matrix_problem, neighbours, sizes, warps_for
from projunn_kernels.configs.kernel import GRADIENTS, Case, Inputs, Kernel, no_complex_half
from projunn_kernels.configs.problem import Config, Device, Problem, power_of_two
from projunn_kernels.constants import MAX_FUSED, PROBE
from projunn_kernels.retraction.rotations import WITH_KERNELS
from projunn_kernels.retraction.tiles import rotations_of
from projunn_kernels.step import eager
from projunn_kernels.step.arguments import FusedStep

_RATE = 0.25


def _tiles(problem: Problem, device: Device) -> Config:
    p, n, m = problem, power_of_two(problem.n), power_of_two(problem.m)
    rows = max(1, min(m, 8192 // (n * p.width)))
    each = 32
    if p.pairs and p.matrices > device.processors and rows * n > 2048:
        # A multiprocessor has registers for one program of 8192 floats: on an H200 544 complex matrices
        # of 64 x 64 took five turns.  It has them for four or, of 8 warps, for two of half as many.
        rows //= 2
        each = 16 if n > 64 else 32
    elif device.capability.startswith("8.") and rows * n == 4096:
        each = 16  # half of a thread's registers hold doubles, which spilled 152 bytes on sm_80
    return Config(rows, n, warps_for(rows * n * p.width, each))


def _candidates(problem: Problem, device: Device) -> list[Config]:
    first = _tiles(problem, device)
    return neighbours(problem, first, (first.columns,))


def _small(problem: Problem, config: Config) -> Problem:
    """A few matrices as they are: up to 128 x 128 is small."""
    return Problem(problem.operation, problem.pairs, problem.k, problem.m, problem.n, 4)


def _allowed(problem: Problem, variant: Any) -> bool:
    return no_complex_half(problem, variant) and problem.k == 1 and problem.n <= MAX_FUSED


def step_of(tensors: dict[str, Any], direction: Tensor, rate: float, **options: Any) -> FusedStep:
    """The step of the one parameter of a case."""
    return FusedStep(
        weights=[tensors["weight"]],
        directions=[direction],
        bases=[tensors["basis"]],
        probes=[tensors["probe"]],
        skipped=[tensors["skipped"]],
        missed=[tensors["missed"]],
        rate=rate,
        **options,
    )


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
        options = {"scale": tensors["scale"], "active": tensors["active"], "retraction": retraction}
        return step_of(tensors, tensors["direction"], 1.0 if scaled else _RATE, **options)

    def results(tensors: dict[str, Any]) -> list[Tensor]:
        """W, what is warm in R, and the counters."""
        warm = tensors["basis"] - PROBE * tensors["probe"]
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
    direction = inputs.normal(count, p.m, p.n, dtype=direction_dtype, scale=p.n**-0.5)
    if count > 2 and not inputs.hollow:  # a step along zero, and one that is not taken
        direction[0], direction[1, -1, -1] = 0.0, torch.inf
    basis = inputs.normal(p.matrices, p.m, p.k, dtype=p.dtype)
    tensors = {
        "weight": inputs.unitary(p.matrices, p.m, p.n, p.dtype),
        "direction": direction,
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
        Problem("fused_step", pairs, 1, n, n, matrices)
        for pairs in (False, True)
        for n, matrices in banks
    ]


def _problem(matrices: int, m: int, n: int, k: int, pairs: bool) -> Problem | None:
    made = matrix_problem("fused_step", MAX_FUSED)(matrices, m, n, k, pairs)
    return made if k == 1 else None


FUSED_STEP = Kernel(
    name="fused_step",
    functions=("plane_step_kernel",),
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
        # panels of rows that are not aligned: 100
        *sizes("fused_step", [(64, n, n) for n in (64, 9, 32, 33, 128, 100)], (1,)),
        # complex banks, of which a multiprocessor has several programs
        *(Problem("fused_step", True, 1, n, n, 544) for n in (64, 128, 100)),
    ],
    numbers=lambda problem: 3 * problem.matrices * problem.m * problem.n,
)
