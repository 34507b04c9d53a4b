"""How the time loop is tiled."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from projunn_kernels.configs.closed_form import sizes
from projunn_kernels.configs.kernel import Case, Inputs, Kernel
from projunn_kernels.configs.problem import Config, Device, Problem, power_of_two
from projunn_kernels.constants import MAX_HELD
from projunn_kernels.precision import matmul_precision
from projunn_kernels.time_loop.arguments import numbers
from projunn_kernels.time_loop.reference import NONLINEARITIES, recurrence

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PRECISIONS = ("highest", "high")


def _tiles(problem: Problem, device: Device) -> Config:
    """One row a program while that takes few waves of programs, else blocks, else a launch a step.

    The number of waves is from the steps' predicted microseconds (docs/kernels.md).  Blocks have
    products of TF32 or less.
    """
    row, block = _row(problem, device), _block(problem, device)
    if row is not None and problem.m <= _waves(problem) * device.processors:
        return row
    if problem.k == 1:
        return _float32(problem, device)
    return block or (row if row and row.hold else _panels(problem, device))


def _waves(problem: Problem) -> int:
    """How many waves of programs of one row take less time than another form."""
    numbers = problem.n**2 * problem.width**2
    if problem.k == 2:
        return 2
    return 24 if numbers <= 64**2 else 10 if numbers <= 128**2 else 3


def _row(problem: Problem, device: Device) -> Config | None:
    """W in the registers of a program of one row, if there are enough, or in part in its cache."""
    if problem.n > (128 if problem.pairs else MAX_HELD):
        return _passing(problem, device)
    n = min(128, _tile(problem.n))
    return Config(1, n, 4 if n * problem.width <= 64 else 8, hold=True)


def _passing(problem: Problem, device: Device) -> Config | None:
    """A program of one row with a part of W in its cache, which is as large as shared memory."""
    units, tiles, held = (64, 3, 2.5) if problem.pairs else (128, 2, 1.5)  # of tiles**2 blocks
    passing = (tiles**2 - held) * units**2 * problem.width
    if not 128 < problem.n <= tiles * units or 4 * passing > device.shared_memory:
        return None
    return Config(1, units, 8)


def _block(problem: Problem, device: Device) -> Config | None:
    """W in the shared memory of a program of 8 or 16 rows, if there is enough."""
    n = min(128, _tile(problem.n))
    if problem.k == 1 or problem.n > MAX_HELD or (problem.n > n and problem.pairs):
        return None
    rest = MAX_HELD - n if problem.n > n else 0  # for all sizes of a bucket
    rows = 8 if rest or problem.pairs else 16
    if 4 * (n + rest) * problem.width * (n + rest + 2 * rows) > device.shared_memory:
        return None
    return Config(rows, n, 8 if n * problem.width > 64 else 4, hold=True)


def _panels(problem: Problem, device: Device) -> Config:
    """A launch a step: programs for all multiprocessors; if there are more, larger ones."""
    rows, columns = 16, 16
    while columns < min(_most_columns(problem), _tile(problem.n)) and (
        _programs(problem, rows, 2 * columns) >= device.processors * 3 // 4
    ):
        columns *= 2
    while rows < _most_rows(problem) and _programs(problem, 2 * rows, columns) >= 4 * device.processors:
        rows *= 2
    return _panel(problem, device, rows, columns)


def _panel(problem: Problem, device: Device, rows: int, columns: int) -> Config:
    """As deep as registers allow, and as many in flight as shared memory does."""
    stages = 4 if device.shared_memory >= 160 << 10 else 2
    return Config(rows, columns, 4, depth=32 if problem.pairs else 64, stages=stages)


def _float32(problem: Problem, device: Device) -> Config:
    """A launch a step in float32: programs as those of panels.

    Twice the warps share long sums, but where large tiles would spill, or smaller ones on sm_120.
    """
    panels = _panels(problem, device)
    short = device.capability == "12.0"
    rows = 8 if problem.m <= 8 else panels.rows
    columns = 16 if short and problem.pairs else panels.columns
    long = problem.n * problem.width >= 512 and rows <= 16 and not short
    return _float32_tiles(problem, device, rows, columns, 8 if long else 4)


def _float32_tiles(
    problem: Problem, device: Device, rows: int, columns: int, warps: int, terms: int = 16
) -> Config:
    """As many panels in flight as three quarters of the shared memory hold."""
    panel = 4 * terms * warps * problem.width * (rows + columns)
    stages = min(4, max(2, 1 + device.shared_memory * 3 // 4 // panel))
    return Config(rows, columns, warps, depth=terms * warps, stages=stages)


def _most_rows(problem: Problem) -> int:
    """The most rows of a panel: with twice as many, some architectures spill."""
    return 16 if problem.pairs else 32


def _most_columns(problem: Problem) -> int:
    """The most columns of a panel, for the same reason."""
    return 32 if problem.pairs else 64


def _programs(problem: Problem, rows: int, columns: int) -> int:
    """The programs of a launch for one time step."""
    return -(-problem.m // rows) * -(-problem.n // columns)


def _tile(n: int) -> int:
    return max(16, power_of_two(n))


def _candidates(problem: Problem, device: Device) -> list[Config]:
    """The forms with other numbers of warps and rows, panels of other shapes.

    In the row form a thread has two numbers of W at least: of one the compiler would fuse the product
    with the first addition across threads, and leave the last bit of the sum to chance.
    """
    row, passing = _row(problem, device), _passing(problem, device)
    tried = [] if passing is None else [passing]
    if row is not None and row.hold:
        tried += [replace(row, warps=w) for w in (4, 8, 16) if 64 * w <= row.columns**2]
    tried += _in_float32(problem, device) if problem.k == 1 else _on_tensor_cores(problem, device)
    return list(dict.fromkeys([_tiles(problem, device), *tried]))


def _in_float32(problem: Problem, device: Device) -> list[Config]:
    tried = [
        _float32_tiles(problem, device, r, c, w, t)
        for r in (8, 16, 32)
        for c in (16, 32, 64)
        for w, t in ((4, 16), (4, 32), (8, 16))
        if r <= _most_rows(problem) and c <= min(_most_columns(problem), _tile(problem.n))
    ]
    return tried + _overlapped(tried, device)


def _on_tensor_cores(problem: Problem, device: Device) -> list[Config]:
    tried, block = [], _block(problem, device)
    if block is not None:
        tried += [replace(block, rows=r, warps=w) for r in (8, 16, 32) for w in (4, 8)]
    if problem.n > 64 or block is None:
        step = _panels(problem, device)
        widths = [c for c in (16, 32, 64) if c <= _most_columns(problem)]
        heights = [r for r in (16, 32) if r <= _most_rows(problem)]
        panels = [_panel(problem, device, r, c) for r in heights for c in widths]
        tried += [step, *panels]
        tried += [
            replace(step, rows=r, columns=c, warps=w, depth=d, stages=s)
            for r in (16, 32)
            for c, w in ((16, 2), (16, 4), (32, 4), (64, 4))
            for d in (32, 64, 128)
            for s in (2, 4)
            if c <= _tile(problem.n)
            and (c + r) * d * problem.width * 4 * s <= device.shared_memory * 3 // 4
        ]
        tried += _overlapped(panels, device)
    return tried


def _overlapped(configs: list[Config], device: Device) -> list[Config]:
    """The configurations with launches that overlap that of the step before, where the GPU can."""
    if device.capability not in ("9.0", "10.0", "12.0"):
        return []
    return [replace(config, overlap=True) for config in configs]


def _small(problem: Problem, config: Config) -> Problem:
    """A tile of rows and a tail; W as it is where a program has all of it.

    Else it has two tiles of units and a tail, and more panels than are in flight at once: what a loop
    does between its first and its last turns is then compared too.
    """
    panels = (config.stages + 1) * config.depth
    whole = config.hold or config.rows == 1
    n = problem.n if whole else max(2 * config.columns, panels) + 7
    return Problem(problem.operation, problem.pairs, problem.k, config.rows + 3, n, 1)


def _allowed(problem: Problem, variant: Any) -> bool:
    """Complex relu has no meaning, and narrow dtypes are multiplied in one way."""
    if problem.pairs and variant["nonlinearity"] == "relu":
        return False
    single, highest = variant["dtype"] == torch.float32, variant["precision"] == "highest"
    return (single and highest) if problem.k == 1 else single != highest


def _problem(name: str) -> Callable[..., Problem | None]:
    def problem(matrices: int, m: int, n: int, k: int, pairs: bool) -> Problem | None:
        return Problem(name, pairs, k, m, n, 1) if k <= 2 and n <= 4096 else None

    return problem


def _standard(name: str) -> list[Problem]:
    return [
        Problem(name, pairs, k, 128, n, 1)
        for k in (1, 2)
        for pairs in (False, True)
        for n in (64, 128, 190, 256, 512, 1024)
    ]


def _compiled(name: str) -> list[Problem]:
    """A batch of 128 is for the rows, one of 4096 for the blocks; 512 units are for a launch a step.

    A batch of one is a constant for Triton.
    """
    rows = [(1, 128, n) for n in (190, 5, 33, 64, 128, 192, 250, 256, 512)]
    blocks = [(1, 4096, n) for n in (5, 33, 64, 128, 190, 512)]
    return sizes(name, [*rows, *blocks, (1, 1, 64)], (1, 2))


def _tensors(
    problem: Problem, inputs: Inputs, nonlinearity: str, dtype: torch.dtype, resets: bool
) -> dict[str, Tensor | None]:
    """Tensors whose states are about 1 in size, away from the poles of tanh and where relu jumps.

    modReLU with b > 0 jumps at 0, where products that are rounded to TF32 or less decide the sign: where
    they are (k = 2, see `Problem`), b is negative.
    """
    p, pair = problem, (2,) * problem.pairs
    size = 0.2 if nonlinearity == "tanh" and p.pairs else 0.5
    scale = 0.5 * (p.n * p.width) ** -0.5
    bias = inputs.normal(p.n, dtype=dtype, scale=0.1) if nonlinearity == "modrelu" else None
    if bias is not None and p.k == 2 and not inputs.hollow:
        bias = -bias.abs()
    return {
        "inputs": inputs.normal(inputs.steps, p.m, p.n, *pair, dtype=dtype, scale=size),
        "initial": inputs.normal(p.m, p.n, *pair, dtype=dtype, scale=size),
        "weight": inputs.normal(p.n, p.n, *pair, dtype=dtype, scale=scale),
        "bias": bias,
        "resets": inputs.normal(inputs.steps, p.m) > 0.5 if resets else None,  # three in ten
    }


def _states(
    inputs: Tensor,
    initial: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    nonlinearity: str,
    resets: Tensor | None,
) -> Tensor:
    """All states, by the loop of `reference`."""
    x, h, w = numbers(weight, inputs, initial, weight)
    states = recurrence(x, h, w, bias, nonlinearity, resets)
    return torch.view_as_real(states) if weight.ndim == 3 else states


def _forward_case(
    problem: Problem,
    inputs: Inputs,
    *,
    nonlinearity: str,
    dtype: torch.dtype,
    precision: str,
    resets: bool,
) -> Case:
    def launch(**tensors: Any) -> list[Tensor]:
        from projunn_kernels.time_loop.launch import forward

        with matmul_precision(precision):
            return [forward(**tensors, nonlinearity=nonlinearity)]

    def in_eager(**tensors: Any) -> list[Tensor]:
        return [_states(**tensors, nonlinearity=nonlinearity)]

    return Case(_tensors(problem, inputs, nonlinearity, dtype, resets), launch, in_eager)


def _backward_case(
    problem: Problem,
    inputs: Inputs,
    *,
    nonlinearity: str,
    dtype: torch.dtype,
    precision: str,
    resets: bool,
) -> Case:
    tensors = _tensors(problem, inputs, nonlinearity, dtype, resets)
    first, weight = tensors["inputs"], tensors["weight"]
    assert first is not None
    assert weight is not None

    def launch(
        grad: Tensor,
        inputs: Tensor,
        initial: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        resets: Tensor | None,
        states: Tensor,
    ) -> list[Tensor]:
        from projunn_kernels.time_loop.launch import backward

        with matmul_precision(precision):
            found = backward(grad, states, weight, bias, nonlinearity, resets)
        return [gradient for gradient in found if gradient is not None]

    def in_eager(
        grad: Tensor,
        inputs: Tensor,
        initial: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        resets: Tensor | None,
        states: Tensor,
    ) -> list[Tensor]:
        wanted = [t.requires_grad_() for t in (inputs, initial, bias) if t is not None]
        with torch.enable_grad():
            result = _states(inputs, initial, weight, bias, nonlinearity, resets)
        return list(torch.autograd.grad(result, wanted, grad))

    def states_in_eager(**tensors: Any) -> list[Tensor]:
        return [_states(**tensors, nonlinearity=nonlinearity)]

    if inputs.hollow:
        states = first
    else:
        (exact,) = Case(tensors, launch, states_in_eager).expected(precise=True)
        states = exact.to(first.device, dtype)
    grad = inputs.normal(*first.shape, dtype=dtype)
    return Case(tensors | {"grad": grad, "states": states}, launch, in_eager)


_SHARED: dict[str, Any] = {
    "closed_form": _tiles,
    "candidates": _candidates,
    "small": _small,
    "variants": {
        "nonlinearity": NONLINEARITIES,
        "dtype": _DTYPES,
        "precision": _PRECISIONS,
        "resets": (False, True),
    },
    "allowed": _allowed,
}
RECURRENCE = Kernel(
    name="recurrence",
    functions=("recurrence_kernel", "recurrence_step_kernel"),
    case=_forward_case,
    problem=_problem("recurrence"),
    standard=_standard("recurrence"),
    compiled=_compiled("recurrence"),
    numbers=lambda problem: 200 * problem.m * problem.n,
    **_SHARED,
)
RECURRENCE_BACKWARD = Kernel(
    name="recurrence_backward",
    functions=("recurrence_backward_kernel", "recurrence_step_backward_kernel"),
    case=_backward_case,
    problem=_problem("recurrence_backward"),
    standard=_standard("recurrence_backward"),
    compiled=_compiled("recurrence_backward"),
    numbers=lambda problem: 300 * problem.m * problem.n,
    **_SHARED,
)
