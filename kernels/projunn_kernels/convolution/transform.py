"""The Fourier transform of signals to spectra frequency by frequency, and its inverse.

    X_k = s_k conj(F x)_k = s_k / sqrt(N) sum_p exp(+2 pi i k p / N) x_p

Complex signals have s_k = 1.  Of real ones only the free bins are made: the paired ones (k, but not -k,
with s_k = sqrt(2)) and the self-conjugate ones, which are real (s_k = 1).  These are N real numbers for
N points, and the transform is an orthogonal matrix: its inverse is its transpose, the gradient of either
is the other, and nothing has to be scaled anywhere.  `products` says why spectra are conjugated.

    paired   (paired, batch, channels, 2), complex numbers as real pairs
    own      (own, batch, channels), real; none, if the signals are complex
"""

from typing import Any

import torch
from torch import Tensor

from projunn_kernels.convolution import eager, plain
from projunn_kernels.convolution.grid import frequencies
from projunn_kernels.convolution.tiles import (
    FOURIER_INVERSE,
    FOURIER_TRANSFORM,
    LONGEST_SIDE,
    has_kernels,
)
from projunn_kernels.operation import Derivative, Operation


def fourier_transform(signal: Tensor, size: list[int], real: bool) -> tuple[Tensor, Tensor]:
    """The spectra of signals at the free bins, conjugated.

    Args:
        signal: (batch, channels, *size), or (batch, channels, *size, 2) for complex signals.
        size: the points along each axis.
        real: False if the signals are complex.

    Returns:
        The paired bins (paired, batch, channels, 2) and the self-conjugate bins (own, batch, channels).
    """
    paired, own = _transform(signal=signal, size=size, real=real)
    return paired, own


def fourier_inverse(
    paired: Tensor, own: Tensor, bias: Tensor | None, size: list[int], real: bool
) -> Tensor:
    """The signals of such spectra, (batch, channels, *size), plus ``bias``.

    ``bias`` is (channels,), or (channels, 2) for complex signals, or None.
    """
    result: Tensor = _inverse(paired=paired, own=own, bias=bias, size=size, real=real)
    return result


def ways() -> list[str]:
    """Lines that say which path `auto` takes for which convolution, for ``projunn info``."""
    side, line = eager.LONGEST_SIDE, eager.LONGEST_LINE
    kernel = f"{LONGEST_SIDE} x {LONGEST_SIDE} or {LONGEST_SIDE} points by Triton kernels"
    return [
        f"on a CPU, transforms of up to {side} x {side} or {line} points as matrix products, else FFT",
        f"on a GPU, transforms of up to {kernel}; larger, three-dimensional and complex ones by cuFFT",
        "products at the frequencies by PyTorch's batched GEMM",
    ]


def _fits(tensor: Tensor, size: list[int], real: bool) -> bool:
    if not real or tensor.dtype != torch.float32 or tensor.numel() == 0:
        return False
    return has_kernels(size)


def _transform_fits(signal: Tensor, size: list[int], real: bool) -> bool:
    return _fits(signal, size, real)


def _inverse_fits(own: Tensor, size: list[int], real: bool, **_: Any) -> bool:
    return _fits(own, size, real)


def _fake_transform(signal: Tensor, size: list[int], real: bool) -> tuple[Tensor, Tensor]:
    grid, shape = frequencies(tuple(size), real), signal.shape[:2]
    return signal.new_empty(grid.paired, *shape, 2), signal.new_empty(len(grid.own), *shape)


def _fake_inverse(
    paired: Tensor, own: Tensor, bias: Tensor | None, size: list[int], real: bool
) -> Tensor:
    return paired.new_empty(*paired.shape[1:3], *size, *(() if real else (2,)))


def _setup_transform(ctx: Any, inputs: Any, output: Any) -> None:
    _, ctx.size, ctx.real = inputs


def _transform_backward(ctx: Any, paired: Tensor, own: Tensor) -> tuple[Any, ...]:
    return fourier_inverse(paired, own, None, ctx.size, ctx.real), None, None


def _setup_inverse(ctx: Any, inputs: Any, output: Any) -> None:
    *_, ctx.size, ctx.real = inputs


def _inverse_backward(ctx: Any, signal: Tensor) -> tuple[Any, ...]:
    by_bias = None
    if ctx.needs_input_grad[2]:
        by_bias = signal.sum((0, *range(2, 2 + len(ctx.size))))
    return *fourier_transform(signal, ctx.size, ctx.real), by_bias, None, None


_transform = Operation(
    name="fourier_transform",
    eager=eager.transform,
    launches="projunn_kernels.convolution.launch:transform",
    fits=_transform_fits,
    kernels=(FOURIER_TRANSFORM,),
    fake=_fake_transform,
    on="signal",
    derivative=Derivative(_setup_transform, _transform_backward),
    plain=plain.transform,
    autocast=True,
    tf32=True,
)
_inverse = Operation(
    name="fourier_inverse",
    eager=eager.inverse,
    launches="projunn_kernels.convolution.launch:inverse",
    fits=_inverse_fits,
    kernels=(FOURIER_INVERSE,),
    fake=_fake_inverse,
    on="paired",
    derivative=Derivative(_setup_inverse, _inverse_backward),
    plain=plain.inverse,
    autocast=True,
    tf32=True,
)
