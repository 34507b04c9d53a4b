"""The linear layer's part of ``make gpu``: the sketch against float64, training steps against nn.Linear.

checks    factors of sketched gradients, by float32 PyTorch's error
rows      a training step of one inner layer (forward, mean square loss, backward, SGD at rank 1), eager
          and as one CUDA graph, in float32 and in TF32; ``ratio`` is to ``nn.Linear`` with
          ``torch.optim.SGD`` run in the same way
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import projunn
from bench.bench_linear import training_step
from bench.gpu_conv import Share, matmul_precision
from bench.gpu_machine import Machine
from projunn.nn import UnitaryLinear
from projunn_kernels import sketch

SIZES = (1024, 2048, 4096, 8192)
ROWS = (512, 4096)
SHAPES = ((7, 5, 6), (70, 33, 20), (1000, 190, 190), (4096, 1024, 2048))  # rows, n, m
LEARNING_RATE = 1e-3
PEER = "nn.Linear + SGD"


def check_cases(on: Machine, share: Share, small: bool) -> Iterator[tuple[str, Callable[[], float]]]:
    """Names, and what gives the error in units of what is allowed."""
    for shape in SHAPES[:2] if small or on.dry else SHAPES:
        for k in (1, 3, 8):
            for dtype in (torch.float32, torch.complex64):
                yield f"sketch k{k} {dtype} {shape}", _case(on, share, *shape, k, dtype)


def _case(on: Machine, share: Share, rows: int, n: int, m: int, k: int, dtype: torch.dtype) -> Any:
    def case() -> float:
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

    return case


def rows(on: Machine, n: int, count: int, precision: str, seconds: float) -> list[dict[str, Any]]:
    """Milliseconds of a step on ``count`` rows of input."""
    input = torch.randn(count, n, device=on.device, requires_grad=True)
    target = torch.randn(count, n, device=on.device)
    sketched = UnitaryLinear(n, n, bias=False, sketch_rank=1, device=on.device)
    dense = UnitaryLinear(n, n, bias=False, device=on.device)
    plain = nn.Linear(n, n, bias=False, device=on.device)
    ours = [
        projunn.optim.SGD(layer.parameters(), lr=LEARNING_RATE, capturable=not on.dry)
        for layer in (sketched, dense)
    ]
    theirs = torch.optim.SGD(plain.parameters(), lr=LEARNING_RATE)
    cases = {
        PEER: training_step(plain, theirs, input, target),
        "UnitaryLinear sketched": training_step(sketched, ours[0], input, target),
        "UnitaryLinear": training_step(dense, ours[1], input, target),
    }
    found: list[dict[str, Any]] = []
    peers = {False: float("nan"), True: float("nan")}
    with matmul_precision(precision):
        for what, step in cases.items():
            for graph in (False, True):
                try:
                    ms = on.step_time(on.captured(step) if graph else step, seconds)
                except Exception as error:
                    on.leave_out(f"{what} n={n} graph={graph}", error)
                    continue
                if what == PEER:
                    peers[graph] = ms
                row = {"n": n, "rows": count, "precision": precision, "what": what, "graph": graph}
                found.append(row | {"ms": round(ms, 4), "ratio": round(ms / peers[graph], 3)})
    return found
