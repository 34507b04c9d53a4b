"""The spectral products in operations that change nothing in place, on real numbers.

Transforms, derivatives and exporters run these.  The formulas are those of `spectral`.  Which bins and
matrices belong together is computed, because exporters know no constant tensors that an operator makes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from projunn_kernels.convolution.grid import Frequencies, frequencies


def spectral_product(
    spectrum: Tensor, weight: Tensor, own_weight: Tensor | None, size: list[int], adjoint: bool
) -> Tensor:
    """``W_k x_k``, or ``W_k^H x_k``, at every bin: see `projunn_kernels.spectral_product`."""
    grid = frequencies(tuple(size), own_weight is not None)
    bins = _bins(grid, spectrum.device)
    x_re, x_im = spectrum.flatten(2, -2).index_select(2, bins.source).permute(2, 0, 1, 3).unbind(-1)
    bank = weight
    if own_weight is not None:
        bank = torch.cat([weight, torch.stack([own_weight, torch.zeros_like(own_weight)], -1)])
        x_im = torch.where(bins.own[:, None, None], 0.0, x_im)
    w_re, w_im = bank.index_select(0, bins.matrix).unbind(-1)
    w_re, w_im = (w_re, -w_im) if adjoint else (w_re.mT, w_im.mT)
    y_re = x_re @ w_re - x_im @ w_im
    y_im = x_re @ w_im + x_im @ w_re
    if own_weight is not None:
        y_im = torch.where(bins.mirrored[:, None, None], -y_im, y_im)
    y = torch.stack([y_re, y_im], -1).permute(1, 2, 0, 3)
    return y.reshape(*y.shape[:2], *grid.shape, 2)


def spectral_gradient(
    grad: Tensor, spectrum: Tensor, size: list[int], real: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """``sum_b g_k conj(x_k)^T`` at the free bins: see `projunn_kernels.spectral_gradient`."""
    grid = frequencies(tuple(size), real)
    bins = _bins(grid, grad.device)
    free = torch.where(bins.mirrored, grid.bins, bins.matrix).argsort()
    paired, own = free[: grid.paired], free[grid.paired : grid.paired + len(grid.own)]
    (g_re, g_im), (x_re, x_im) = (
        t.flatten(2, -2).index_select(2, paired).permute(2, 0, 1, 3).unbind(-1) for t in (grad, spectrum)
    )
    by_re = g_re.mT @ x_re + g_im.mT @ x_im
    by_im = g_im.mT @ x_re - g_re.mT @ x_im
    g_own, x_own = (
        t.flatten(2, -2)[..., 0].index_select(2, own).permute(2, 0, 1) for t in (grad, spectrum)
    )
    return torch.stack([by_re, by_im], -1) * (2 * scale if real else scale), g_own.mT @ x_own * scale


class _Bins(NamedTuple):
    """What is known of every bin of a flattened spectrum.

    Attributes:
        source: the bin whose value it takes: a mirrored bin's partner, or itself.
        matrix: the number of its matrix in the list of the paired and then the own ones.
        mirrored, own: whether it is one.
    """

    source: Tensor
    matrix: Tensor
    mirrored: Tensor
    own: Tensor


def _bins(grid: Frequencies, device: torch.device) -> _Bins:
    bin = torch.arange(grid.bins, device=device)
    if not grid.own:
        none = bin < 0
        return _Bins(bin, bin, none, none)
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
    return _Bins(source, number[source], mirrored, own)
