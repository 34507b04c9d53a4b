"""Linear layers: the sketch against float64, training steps against ``nn.Linear``.

A training step is forward, mean square loss, backward and SGD at rank 1 of one inner layer, eager and
as one CUDA graph, in float32 and in TF32; the peer is ``nn.Linear`` with ``torch.optim.SGD`` run in the
same way.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

import projunn
from bench.bench_linear import training_step
from bench.gpu.accuracy import share
from bench.gpu.case import Case, Step
from bench.gpu.machine import Machine
from bench.gpu.timing import Timing
from projunn.nn import UnitaryLinear
from projunn_kernels import sketch

# n and rows; the first stand for the rest where the run is cut.
SIZES = (
    (1024, 512),
    (4096, 4096),
    (2048, 512),
    (1024, 4096),
    (4096, 512),
    (2048, 4096),
    (8192, 512),
    (8192, 4096),
)
SHAPES = ((7, 5, 6), (70, 33, 20), (1000, 190, 190), (4096, 1024, 2048))  # rows, n, m
LEARNING_RATE = 1e-3
PEER, SKETCHED, DENSE = "nn.Linear + SGD", "UnitaryLinear sketched", "UnitaryLinear"


def checks(on: Machine, small: bool) -> list[Case]:
    """Factors of sketched gradients, by the error of float32 PyTorch."""
    return [
        Case(f"sketch k{k} {dtype} {shape}", f"sketch k{k} {dtype}", _check(on, *shape, k, dtype))
        for shape in (SHAPES[:2] if small or on.dry else SHAPES)
        for k in ((1, 3) if on.dry else (1, 3, 8))
        for dtype in (torch.float32, torch.complex64)
    ]


def _check(on: Machine, rows: int, n: int, m: int, k: int, dtype: torch.dtype) -> Callable[[], float]:
    def call() -> float:
        x, g, basis = (torch.randn(s, dtype=dtype) for s in ((rows, n), (rows, m), (m, min(k, n, m))))

        def gradient(kind: torch.dtype, device: torch.device) -> Tensor:
            there = [t.to(device, kind) for t in (x, g, basis)]
            left, right = sketch(there[:1], there[1:2], there[2])
            return left @ right.mH

        exact = gradient(torch.complex128 if dtype.is_complex else torch.float64, torch.device("cpu"))
        ours = gradient(dtype, on.device)
        with projunn.backend("torch"):
            plain = gradient(dtype, on.device)
        return share(ours, plain, exact)

    return call


def name(what: str, n: int, rows: int, precision: str, way: str) -> str:
    """The name of a row: ``UnitaryLinear sketched 1024, 512 rows, highest, graph``."""
    return f"{what} {n}, {rows} rows, {precision}, {way}"


def timings(on: Machine) -> list[Timing]:
    """Both precisions of every size, each eager and as one CUDA graph."""
    return [
        _timing(on, what, n, rows, precision, way)
        for n, rows in SIZES
        for precision in ("highest", "high")
        for way in ("graph", "eager")
        for what in (PEER, SKETCHED, DENSE)
    ]


def _timing(on: Machine, what: str, n: int, rows: int, precision: str, way: str) -> Timing:
    build = functools.partial(step, on, what, n, rows)
    says = {"what": what, "n": n, "rows": rows}
    options = {"way": way, "says": says, "precision": precision}
    options["compile"] = what != PEER and (precision, way) == ("highest", "graph")
    return Timing(name(what, n, rows, precision, way), f"{what}, {way}", build, seconds=0.15, **options)


def step(on: Machine, what: str, n: int, rows: int) -> Step:
    """Forward, mean square loss, backward and the optimizer's step of one inner layer."""
    n, rows = on.size(n, 16), on.size(rows, 8)
    input = torch.randn(rows, n, device=on.device, requires_grad=True)
    target = torch.randn(rows, n, device=on.device)
    if what == PEER:
        plain = nn.Linear(n, n, bias=False, device=on.device)
        return training_step(plain, torch.optim.SGD(plain.parameters(), lr=LEARNING_RATE), input, target)
    sketch_rank = 1 if what == SKETCHED else None
    layer = UnitaryLinear(n, n, bias=False, sketch_rank=sketch_rank, device=on.device)
    rule = projunn.optim.SGD(layer.parameters(), lr=LEARNING_RATE, capturable=on.capturable)
    return training_step(layer, rule, input, target)
