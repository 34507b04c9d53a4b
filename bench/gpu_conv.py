"""The convolution's part of ``make gpu``: spectral products against float64, layers against cuDNN.

checks    products, adjoints and gradients, each by float32 PyTorch's error
rows      forward and backward of ResNet9's layers on 256 images of CIFAR10's size: ours on Triton
          and on PyTorch operations, in float32 and in TF32, against a 3 x 3 ``nn.Conv2d``
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import projunn
from bench.bench_conv import forward_backward
from bench.gpu_machine import Machine
from projunn.nn import UnitaryConv2d
from projunn_kernels import frequencies, spectral_gradient, spectral_product

BATCH = 256
# Channels in and out and side of the layers, width 64.
LAYERS = ((3, 64, 32), (64, 128, 32), (128, 128, 16), (128, 256, 16), (256, 256, 8))
SHAPES = (
    ((8, 8), True, 3, 5, 4),
    ((7, 5), True, 33, 17, 3),
    ((13,), True, 1, 1, 1),
    ((2, 4, 4), True, 2, 3, 2),
    ((9, 4), False, 5, 18, 33),
    ((32, 32), True, 64, 64, 64),
    ((8, 8), True, 64, 256, 256),
)

Share = Callable[[Tensor, Tensor, Tensor], float]


@contextmanager
def matmul_precision(setting: str) -> Iterator[None]:
    """``torch.set_float32_matmul_precision``, and the same for cuDNN."""
    before, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(setting)
    torch.backends.cudnn.allow_tf32 = setting != "highest"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = cudnn


def check_cases(on: Machine, share: Share, small: bool) -> Iterator[tuple[str, Callable[[], float]]]:
    """Names, and what gives the error in units of what is allowed."""
    for shape in SHAPES[:2] if small else SHAPES[:5] if on.dry else SHAPES:
        yield f"spectral {shape}", _case(on, share, *shape)


def _case(
    on: Machine, share: Share, size: tuple[int, ...], real: bool, batch: int, m: int, n: int
) -> Any:
    def case() -> float:
        grid, line = frequencies(size, real), list(size)
        weight = torch.randn(grid.paired, m, n, 2)
        own = torch.randn(len(grid.own), m, n) if real else None

        def spectrum(channels: int) -> Tensor:
            dims = tuple(range(2, 2 + len(size)))
            if real:
                numbers = torch.fft.rfftn(torch.randn(batch, channels, *size), dim=dims)
            else:
                numbers = torch.randn(batch, channels, *size, dtype=torch.complex64)
            return torch.view_as_real(numbers).contiguous()

        def everything(x: Tensor, y: Tensor, w: Tensor, r: Tensor | None) -> list[Tensor]:
            products = (spectral_product(x, w, r, line, False), spectral_product(y, w, r, line, True))
            return [*products, *spectral_gradient(y, x, line, real, 0.5)]

        tensors = (spectrum(n), spectrum(m), weight, own)
        exact = everything(*(t if t is None else t.double() for t in tensors))
        there = tuple(t if t is None else t.to(on.device) for t in tensors)
        with matmul_precision("highest"):
            ours = everything(*there)
            with projunn.backend("torch"):
                plain = everything(*there)
        triples = zip(ours, plain, exact, strict=True)
        return max(share(a, b, c) for a, b, c in triples if c.numel())

    return case


def rows(on: Machine, channels: int, out: int, side: int) -> list[dict[str, Any]]:
    """Milliseconds of forward and backward of one layer, each case on the same input."""
    batch = 2 if on.dry else BATCH
    x = torch.randn(batch, channels, side, side, device=on.device, requires_grad=True)
    ours = forward_backward(UnitaryConv2d(channels, out, side, device=on.device), x)
    cudnn = forward_backward(nn.Conv2d(channels, out, 3, padding=1, device=on.device), x)
    found: list[dict[str, Any]] = []
    for precision in ("highest", "high"):
        for what, backend, call in (
            ("UnitaryConv2d", on.kernels, ours),
            ("UnitaryConv2d", "torch", ours),
            ("nn.Conv2d 3x3", "torch", cudnn),
        ):
            with matmul_precision(precision), projunn.backend(backend):
                try:
                    milliseconds = on.cold_time(call)
                except Exception as error:
                    on.leave_out(f"{what} on {backend}, {precision}", error)
                    continue
            row = {"channels": channels, "out": out, "side": side, "batch": batch, "what": what}
            row |= {"backend": backend, "precision": precision, "ms": round(milliseconds, 4)}
            found.append(row)
    peers = {row["precision"]: row["ms"] for row in found if row["what"] == "nn.Conv2d 3x3"}
    for row in found:
        row["ratio_to_cudnn"] = round(row["ms"] / peers.get(row["precision"], float("nan")), 3)
    return found
