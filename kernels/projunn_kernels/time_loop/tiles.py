"""How the time loop is tiled."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from projunn_kernels.configs.closed_form import sizes
from projunn_kernels.configs.kernel import Case, Inputs, Kernel, matmul_precision
from projunn_kernels.configs.problem import Config, Device, Problem, power_of_two
from projunn_kernels.time_loop.arguments import numbers
from projunn_kernels.time_loop.reference import NONLINEARITIES, recurrence

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PRECISIONS = ("highest", "high")


def _tiles(problem: Problem, device: Device) -> Config:
    """16 rows a program, the least that tensor cores take: the rows are what runs in parallel.

    The tiles are those that spill on no architecture with any precision (docs/measured.md).
    """
    n, pairs = max(16, power_of_two(problem.n)), problem.pairs
    if n <= 32:
        return Config(16, n, 8, hold=True)
    return Config(16, min(n, 64 if pairs else 128), 8, depth=16 if pairs else 32)


def _candidates(problem: Problem, device: Device) -> list[Config]:
    """Tiles of 2 to 16 accumulators and 4 to 32 numbers of W a thread; more panels beyond L1 only."""
    first, width = _tiles(problem, device), problem.width
    n = max(16, power_of_two(problem.n))
    stages = (1, 3) if problem.n**2 * width * 4 > 128 << 10 else (1,)
    found = [first]
    for rows, warps in ((16, 4), (16, 8), (16, 16), (32, 8), (32, 16)):
        panels = [(n, 1, True, 1)] if first.hold else []
        panels += [(c, d, False, s) for c in (32, 64, 128) if c <= n for d in (16, 32) for s in stages]
        for columns, depth, hold, stage in panels:
            config = Config(rows, columns, warps, hold, depth, stage)
            sums = rows * columns * width // (32 * warps)
            panel = columns * (columns if hold else depth) * width // (32 * warps)
            memory = (rows + columns) * depth * width * 4 * stage
            fits = 2 <= sums <= 16 and 4 <= panel <= 32 and memory <= device.shared_memory
            if fits and config not in found:
                found.append(config)
    return found


def _small(problem: Problem, config: Config) -> Problem:
    """A tile of rows and a tail; W as it is where it is held, else two panels and a tail."""
    n = problem.n if config.hold else 2 * config.columns + 7
    return Problem(problem.operation, problem.pairs, 1, config.rows + 3, n, 1)


def _allowed(problem: Problem, variant: Any) -> bool:
    """Complex relu has no meaning, and narrow dtypes are multiplied in one way."""
    if problem.pairs and variant["nonlinearity"] == "relu":
        return False
    return variant["dtype"] == torch.float32 or variant["precision"] == "highest"


def _problem(name: str) -> Callable[..., Problem | None]:
    def problem(matrices: int, m: int, n: int, k: int, pairs: bool) -> Problem | None:
        return Problem(name, pairs, 1, m, n, 1) if k == 1 and n <= 4096 else None

    return problem


def _standard(name: str) -> list[Problem]:
    return [
        Problem(name, pairs, 1, 128, n, 1) for pairs in (False, True) for n in (64, 128, 190, 512, 1024)
    ]


def _compiled(name: str) -> list[Problem]:
    return sizes(name, [(1, 128, n) for n in (190, 5, 33, 64, 512)], (1,))


def _tensors(
    problem: Problem, inputs: Inputs, nonlinearity: str, dtype: torch.dtype
) -> dict[str, Tensor | None]:
    """Of states of size about 1, away from the poles of tanh and the jumps of relu's gradient."""
    p, pair = problem, (2,) * problem.pairs
    scale = 0.5 * (p.n * p.width) ** -0.5
    bias = inputs.normal(p.n, dtype=dtype, scale=0.1) if nonlinearity == "modrelu" else None
    return {
        "inputs": inputs.normal(inputs.steps, p.m, p.n, *pair, dtype=dtype, scale=0.5),
        "initial": inputs.normal(p.m, p.n, *pair, dtype=dtype, scale=0.5),
        "weight": inputs.normal(p.n, p.n, *pair, dtype=dtype, scale=scale),
        "bias": bias,
    }


def _states(
    inputs: Tensor, initial: Tensor, weight: Tensor, bias: Tensor | None, nonlinearity: str
) -> Tensor:
    """By the blackboard's loop."""
    x, h, w = numbers(weight, inputs, initial, weight)
    states = recurrence(x, h, w, bias, nonlinearity)
    return torch.view_as_real(states) if weight.ndim == 3 else states


def _forward_case(
    problem: Problem, inputs: Inputs, *, nonlinearity: str, dtype: torch.dtype, precision: str
) -> Case:
    def launch(**tensors: Any) -> list[Tensor]:
        from projunn_kernels.time_loop.launch import forward

        with matmul_precision(precision):
            return [forward(**tensors, nonlinearity=nonlinearity)]

    def in_eager(**tensors: Any) -> list[Tensor]:
        return [_states(**tensors, nonlinearity=nonlinearity)]

    return Case(_tensors(problem, inputs, nonlinearity, dtype), launch, in_eager)


def _backward_case(
    problem: Problem, inputs: Inputs, *, nonlinearity: str, dtype: torch.dtype, precision: str
) -> Case:
    tensors = _tensors(problem, inputs, nonlinearity, dtype)
    first, weight = tensors["inputs"], tensors["weight"]
    assert first is not None
    assert weight is not None

    def launch(
        grad: Tensor,
        inputs: Tensor,
        initial: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        states: Tensor,
    ) -> list[Tensor]:
        from projunn_kernels.time_loop.launch import backward

        with matmul_precision(precision):
            found = backward(grad, states, weight, bias, nonlinearity)
        return [gradient for gradient in found if gradient is not None]

    def in_eager(
        grad: Tensor,
        inputs: Tensor,
        initial: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        states: Tensor,
    ) -> list[Tensor]:
        wanted = [t.requires_grad_() for t in (inputs, initial, bias) if t is not None]
        with torch.enable_grad():
            result = _states(inputs, initial, weight, bias, nonlinearity)
        return list(torch.autograd.grad(result, wanted, grad))

    if inputs.hollow:
        states = first
    else:
        given = {name: None if t is None else t.cpu().double() for name, t in tensors.items()}
        exact = _states(**given, nonlinearity=nonlinearity)  # type: ignore[arg-type]
        states = exact.to(first.device, dtype)
    grad = inputs.normal(*first.shape, dtype=dtype)
    return Case(tensors | {"grad": grad, "states": states}, launch, in_eager)


_SHARED: dict[str, Any] = {
    "closed_form": _tiles,
    "candidates": _candidates,
    "small": _small,
    "variants": {"nonlinearity": NONLINEARITIES, "dtype": _DTYPES, "precision": _PRECISIONS},
    "allowed": _allowed,
}
RECURRENCE = Kernel(
    name="recurrence",
    functions=("recurrence_kernel",),
    case=_forward_case,
    problem=_problem("recurrence"),
    standard=_standard("recurrence"),
    compiled=_compiled("recurrence"),
    numbers=lambda problem: 200 * problem.m * problem.n,
    **_SHARED,
)
RECURRENCE_BACKWARD = Kernel(
    name="recurrence_backward",
    functions=("recurrence_backward_kernel",),
    case=_backward_case,
    problem=_problem("recurrence_backward"),
    standard=_standard("recurrence_backward"),
    compiled=_compiled("recurrence_backward"),
    numbers=lambda problem: 300 * problem.m * problem.n,
    **_SHARED,
)
