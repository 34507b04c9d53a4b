"""What ``make aot`` compiles: representative problems, and the launches of each.

The launchers run on tensors that hold no memory, with a recorder in the kernels' place.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from projunn_kernels import tuning
from projunn_kernels.jit.interception import intercepted
from projunn_kernels.problems import SPECTRAL_OPERATIONS, TIME_LOOPS, Config, Problem

Launch = tuple[Any, tuple[Any, ...], dict[str, Any]]


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """The launches that happen inside, noted instead of made: kernel, arguments, constants."""
    launches: list[Launch] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self._kernel = kernel

        def __getitem__(self, grid: object) -> Any:
            return lambda *args, **constants: launches.append((self._kernel, args, constants))

    with intercepted(Recorder):
        yield launches


def launches_of(
    problem: Problem,
    config: Config,
    *,
    retraction: str = "exp",
    active: bool = False,
    gradient: torch.dtype = torch.float32,
    nonlinearity: str = "modrelu",
    precision: str = "highest",
) -> list[Launch]:
    """The launches of an operation."""
    from projunn_kernels.jit import launch as L
    from projunn_kernels.jit.launch_factors import factor

    if problem.operation in TIME_LOOPS:
        with matmul_precision(precision):
            return _time_loop(problem, config, nonlinearity)
    if problem.operation in SPECTRAL_OPERATIONS:
        with matmul_precision(precision):
            return _spectral(problem, config)
    p = problem
    dtype = torch.complex64 if p.pairs else torch.float32

    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty((1,) * len(shape), dtype=dtype).expand(*shape)  # no memory

    w = empty(p.blocks, p.m, p.n)
    x, y = empty(p.blocks, p.m, p.k), empty(p.blocks, p.n, p.k)
    listed = torch.zeros(p.blocks, dtype=torch.int64) if active else None
    with recorded() as launches, tuning.using({p.operation: config}):
        if p.operation == "fused_step":
            d = empty(p.blocks, p.m, p.n, dtype=dtype if p.pairs else gradient)
            L.fused_step([w], [d], [x], [x], [x], 0.1, None, retraction, listed, True, config)
        elif p.operation == "adjoint_product":
            L.adjoint_partials(w, empty(p.blocks, p.k, p.m), listed, config)
        elif p.operation == "product":
            L.product_columns(w, empty(p.blocks, p.k, p.n), listed, config)
        elif p.operation == "rank_update":
            L.rank_update(w, x, y, listed, config)
        elif p.operation == "turn_rows":
            q = empty(p.blocks, 2 * p.columns, p.n)
            L.turn_rows(w, q, q, torch.zeros(1, dtype=torch.int8), listed, config)
        elif p.operation == "basis":
            factor(w, x)
            L.turn(w, x, y, retraction, -1.0)
            if p.k == 1:
                L.warm_basis(x, empty(p.blocks, p.m, 1), x, torch.zeros(1, dtype=torch.int8))
        elif p.operation == "polish":
            L.polish(w, torch.zeros(()), 192)
        if p.operation == "basis":  # without the passes over W, which have operations of their own
            columns = ("orthonormal", "plane_basis", "basis", "warm_basis")
            return [one for one in launches if one[0].__name__.removesuffix("_kernel") in columns]
        return launches


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _empty(*shape: int, pairs: bool) -> torch.Tensor:
    shape += (2,) * pairs
    return torch.empty((1,) * len(shape)).expand(*shape)


def _time_loop(p: Problem, config: Config, nonlinearity: str) -> list[Launch]:
    from projunn_kernels.jit import launch_recurrence as L

    states, w = _empty(p.blocks, p.m, p.n, pairs=p.pairs), _empty(p.n, p.n, pairs=p.pairs)
    bias = torch.empty(p.n) if nonlinearity == "modrelu" else None
    with recorded() as launches:
        if p.operation == "recurrence":
            L.forward(states, states[0], w, bias, nonlinearity, config)
        else:
            L.backward(states, states, w, bias, nonlinearity, config)
    return launches


def _spectral(p: Problem, config: Config) -> list[Launch]:
    """The product and its adjoint, or the gradient, of images of ``blocks`` frequencies."""
    from projunn_kernels.jit import launch_spectral as L

    size, real = [p.blocks if p.pairs else 2 * p.blocks - 1], not p.pairs
    x, y = _empty(p.k, p.n, p.blocks, pairs=True), _empty(p.k, p.m, p.blocks, pairs=True)
    own = _empty(1, p.m, p.n, pairs=False) if real else None
    with recorded() as launches:
        if p.operation == "spectral_gradient":
            L.spectral_gradient(y, x, size, real, 1.0, config)
        else:
            w = _empty(p.blocks, p.m, p.n, pairs=True)
            L.spectral_product(x, w, own, size, False, config)
            L.spectral_product(y, w, own, size, True, config)
    return launches


def problems(full: bool) -> Iterator[tuple[Problem, dict[str, Any]]]:
    """Representative problems, and the variants of their launches."""
    ranks = (1, 2, 4, 8)
    for pairs in (False, True):
        for k in ranks:
            for n in (32, 64, 128) if full else (64, 128):
                problem = Problem("fused_step", pairs, k, n, n, 64)
                if n * k * problem.width > 1024:
                    continue  # such blocks are not fused
                for retraction in ("exp", "polar", "cayley") if full or n == 64 else ("exp",):
                    yield problem, {"retraction": retraction}
                if n == 64:
                    yield problem, {"active": True}
                if full and not pairs:
                    yield problem, {"gradient": torch.bfloat16}
            for n in (1024, 4096, 16384) if full else (1024, 16384):
                for operation in ("adjoint_product", "product", "rank_update", "turn_rows"):
                    problem = Problem(operation, pairs, k, n, n, 1)
                    yield problem, {}
                    if full or (n == 1024 and k == 1):
                        yield problem, {"active": True}
                problem = Problem("basis", pairs, k, n, n, 1)
                for retraction in ("exp", "polar", "cayley") if full or n == 1024 else ("exp",):
                    yield problem, {"retraction": retraction}
        for operation in TIME_LOOPS:
            for n in (16, 33, 64, 190, 512):
                problem = Problem(operation, pairs, 1, 128, n, 1000)
                for precision in ("highest", "high", "medium"):
                    yield problem, {"precision": precision}
                for nonlinearity in ("relu", "tanh", "identity") if full or n in (64, 190) else ():
                    if not (pairs and nonlinearity == "relu"):
                        yield problem, {"nonlinearity": nonlinearity}
        yield Problem("polish", pairs, 1, 256, 256, 1), {}
        yield Problem("polish", pairs, 1, 64, 128, 1), {}
        yield Problem("fused_step", pairs, 1, 33, 33, 64), {}  # odd sizes: no alignment to speak of
        yield Problem("turn_rows", pairs, 1, 1000, 1000, 1), {}
        for operation in SPECTRAL_OPERATIONS:
            for precision in ("highest", "high"):
                yield Problem(operation, pairs, 256, 64, 64, 544), {"precision": precision}
                yield Problem(operation, pairs, 256, 256, 256, 40), {"precision": precision}
            yield Problem(operation, pairs, 25, 33, 3, 35), {}  # odd sizes; a first layer's channels


def tiny_problems() -> Iterator[tuple[Problem, dict[str, Any]]]:
    """Each kernel once, small ranks: for the tests."""
    yield Problem("fused_step", True, 1, 64, 64, 64), {}
    yield Problem("fused_step", False, 2, 64, 64, 64), {"retraction": "cayley"}
    for operation in ("adjoint_product", "product", "rank_update", "turn_rows"):
        yield Problem(operation, True, 1, 1024, 1024, 1), {"active": True}
    yield Problem("polish", True, 1, 64, 128, 4), {}
    yield Problem("recurrence", False, 1, 128, 190, 1000), {"precision": "high"}
    yield Problem("recurrence", True, 1, 128, 190, 1000), {"nonlinearity": "tanh"}
    yield Problem("recurrence_backward", True, 1, 128, 190, 1000), {}
    yield Problem("basis", True, 1, 1024, 1024, 1), {"retraction": "polar"}
    yield Problem("basis", False, 2, 1024, 1024, 1), {"retraction": "cayley"}
    for operation in SPECTRAL_OPERATIONS:
        yield Problem(operation, False, 32, 64, 64, 40), {}
