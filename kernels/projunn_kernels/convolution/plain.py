"""The transforms and products in operations that change nothing in place.

Transforms of ``torch.func``, derivatives and exporters run these.  The products are on real numbers, and
which bins and matrices belong together is computed, because exporters know no constant tensors that an
operator makes.
"""

from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from projunn_kernels.convolution.grid import Frequencies, frequencies
from projunn_kernels.convolution.products import Spectrum


def transform(signal: Tensor, size: list[int], real: bool) -> Spectrum:
    """``conj(F x)`` at the free bins: see `projunn_kernels.fourier_transform`."""
    grid, dims = frequencies(tuple(size), real), tuple(range(2, 2 + len(size)))
    if signal.numel() == 0:  # MKL refuses empty batches
        shape = signal.shape[:2]
        return signal.new_zeros(grid.paired, *shape, 2), signal.new_zeros(len(grid.own), *shape)
    if real:
        spectrum = torch.fft.rfftn(signal, dim=dims, norm="ortho")
    else:
        spectrum = torch.fft.fftn(torch.view_as_complex(signal.contiguous()), dim=dims, norm="ortho")
    bins = _bins(grid, signal.device)
    free = torch.where(bins.mirrored, grid.bins, bins.matrix).argsort()
    re, im = torch.view_as_real(spectrum).flatten(2, -2).permute(2, 0, 1, 3).unbind(-1)
    scale = sqrt(2) if real else 1.0
    paired = free[: grid.paired]
    own = re.index_select(0, free[grid.paired : grid.paired + len(grid.own)])
    both = re.index_select(0, paired) * scale, im.index_select(0, paired) * -scale
    return torch.stack(both, -1), own


def inverse(paired: Tensor, own: Tensor, bias: Tensor | None, size: list[int], real: bool) -> Tensor:
    """``F^-1`` of such a spectrum, plus ``bias``: see `projunn_kernels.fourier_inverse`."""
    grid = frequencies(tuple(size), real)
    if paired.numel() + own.numel() == 0:
        signal = paired.new_zeros(*paired.shape[1:3], *size, *(() if real else (2,)))
    else:
        bins, dims = _bins(grid, paired.device), tuple(range(2, 2 + len(size)))
        re, im = paired.unbind(-1)
        if real:
            re = torch.cat([re * sqrt(0.5), own])
            im = torch.cat([im * sqrt(0.5), torch.zeros_like(own)])
        re, im = re.index_select(0, bins.matrix), im.index_select(0, bins.matrix)
        im = torch.where(bins.mirrored[:, None, None], im, -im)
        stacked = torch.stack([re, im], -1).permute(1, 2, 0, 3)
        numbers = stacked.reshape(*stacked.shape[:2], *grid.shape, 2)
        spectrum = torch.view_as_complex(numbers.contiguous())
        if real:
            signal = torch.fft.irfftn(spectrum, s=size, dim=dims, norm="ortho").contiguous()
        else:
            signal = torch.view_as_real(torch.fft.ifftn(spectrum, dim=dims, norm="ortho")).contiguous()
    if bias is None:
        return signal
    return signal + bias.view(-1, *(1 for _ in size), *bias.shape[1:])


def product(spectrum: Spectrum, weight: Tensor, own_weight: Tensor | None) -> Spectrum:
    """conj(W x) of conj(x): see `products.product`."""
    paired, own = spectrum
    (x_re, x_im), (w_re, w_im) = paired.unbind(-1), weight.unbind(-1)
    y_re = x_re @ w_re.mT + x_im @ w_im.mT
    y_im = x_im @ w_re.mT - x_re @ w_im.mT
    y = torch.stack([y_re, y_im], -1)
    return y, own.new_empty(0, *y.shape[1:3]) if own_weight is None else own @ own_weight.mT


def adjoint(spectrum: Spectrum, weight: Tensor, own_weight: Tensor | None) -> Spectrum:
    """conj(W^H y) of conj(y): see `products.adjoint`."""
    paired, own = spectrum
    (y_re, y_im), (w_re, w_im) = paired.unbind(-1), weight.unbind(-1)
    x = torch.stack([y_re @ w_re - y_im @ w_im, y_re @ w_im + y_im @ w_re], -1)
    return x, own.new_empty(0, *x.shape[1:3]) if own_weight is None else own @ own_weight


def gradient(grad: Spectrum, spectrum: Spectrum) -> Spectrum:
    """sum_b y conj(x)^T of conj(y) and conj(x): see `products.gradient`."""
    (y, y_own), (x, x_own) = grad, spectrum
    (y_re, y_im), (x_re, x_im) = y.unbind(-1), x.unbind(-1)
    by_re = y_re.mT @ x_re + y_im.mT @ x_im
    by_im = y_re.mT @ x_im - y_im.mT @ x_re
    return torch.stack([by_re, by_im], -1), y_own.mT @ x_own


class _Bins(NamedTuple):
    """The matrix of each bin of a flattened spectrum.

    Attributes:
        matrix: the number of its matrix in the list of the paired and then the own ones.
        mirrored: whether it is the mirror image of another bin, with the conjugate of its matrix.
    """

    matrix: Tensor
    mirrored: Tensor


def _bins(grid: Frequencies, device: torch.device) -> _Bins:
    bin = torch.arange(grid.bins, device=device)
    if not grid.own:
        return _Bins(bin, bin < 0)
    # -k, row by row: the last axis, whose planes are their own mirror images, stays.
    last, rest = bin % grid.shape[-1], bin // grid.shape[-1]
    row, partner, stride = rest, torch.zeros_like(bin), 1
    for points in reversed(grid.size[:-1]):
        partner = partner + (-rest) % points * stride
        rest, stride = rest // points, stride * points
    partner = partner * grid.shape[-1] + last
    inner = (last >= grid.first) & (last < grid.last)
    own, mirrored = ~inner & (partner == bin), ~inner & (partner < bin)
    boundary = ~inner & (partner > bin)
    width = grid.last - grid.first
    number = torch.where(inner, row * width + last - grid.first, grid.paired - len(grid.boundary))
    number = torch.where(boundary, number + boundary.cumsum(0) - 1, number)
    number = torch.where(own, grid.paired + own.cumsum(0) - 1, number)
    source = torch.where(mirrored, partner, bin)
    return _Bins(number[source], mirrored)
