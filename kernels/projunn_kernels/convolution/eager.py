"""The spectral products in PyTorch: batched complex GEMMs with a matrix for each frequency.

The FFT stores the frequencies side by side, the GEMMs want them apart; the copies between the two cost a
tenth of the products on a CPU.  Conjugates are taken of the smaller operand.
"""

from functools import lru_cache

import torch
from torch import Tensor

from projunn_kernels.convolution.grid import Frequencies, frequencies


def spectral_product(
    spectrum: Tensor, weight: Tensor, own_weight: Tensor | None, size: list[int], adjoint: bool
) -> Tensor:
    """``W_k x_k``, or ``W_k^H x_k``, at every frequency: see `projunn_kernels.spectral_product`."""
    grid = frequencies(tuple(size), own_weight is not None)
    x, w = torch.view_as_complex(spectrum.contiguous()), torch.view_as_complex(weight.contiguous())
    # W^H y = conj(W^T conj(y)): so W itself is never conjugated.
    paired, own = gather_bins(x, grid, conjugate=adjoint)
    channels = w.shape[2 if adjoint else 1]
    values = paired.new_empty(*paired.shape[:2], channels)
    torch.bmm(paired, w if adjoint else w.mT, out=values)
    if adjoint:
        values.conj_physical_()
    if own_weight is not None:
        own = own @ (own_weight if adjoint else own_weight.mT)
    return torch.view_as_real(_scatter_bins(values, own, grid))


def spectral_gradient(
    grad: Tensor, spectrum: Tensor, size: list[int], real: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """``sum_b g_k conj(x_k)^T`` at every free frequency: see `projunn_kernels.spectral_gradient`."""
    grid = frequencies(tuple(size), real)
    g, x = torch.view_as_complex(grad.contiguous()), torch.view_as_complex(spectrum.contiguous())
    g_paired, g_own = gather_bins(g, grid)
    x_paired, x_own = gather_bins(x, grid, conjugate=True)
    result = g.new_empty(grid.paired, g.shape[1], x.shape[1])
    alpha = 2 * scale if real else scale
    torch.baddbmm(result, g_paired.mT, x_paired, beta=0, alpha=alpha, out=result)
    return torch.view_as_real(result), (g_own.mT @ x_own).mul_(scale)


def counts(spectrum: Tensor, size: list[int], real: bool, scale: float) -> Tensor:
    """The factor with which each frequency enters the weights' gradient, (*grid, 1).

    It is ``scale``, for ``real`` signals twice that at paired bins, and 0 at mirrored bins.
    """
    grid = frequencies(tuple(size), real)
    result = spectrum.new_full((grid.bins,), 2 * scale if real else scale)
    if grid.own:
        _, mirrored, own = index(grid.size, True, spectrum.device)
        result[own], result[mirrored] = scale, 0
    return result.view(*grid.shape, 1)


def gather_bins(x: Tensor, grid: Frequencies, *, conjugate: bool = False) -> tuple[Tensor, Tensor]:
    """A spectrum's paired bins (paired, batch, n), complex, and own bins (own, batch, n), real."""
    batch, n = x.shape[:2]
    paired = x.new_empty(grid.paired, batch, n)
    inner = x[..., grid.inner]
    axes = (*range(2, x.ndim), 0, 1)
    source = inner.conj() if conjugate else inner
    count = grid.paired - len(grid.boundary)
    paired[:count].view(*grid.inner_shape, batch, n).copy_(source.permute(axes))
    boundary, _, own = index(grid.size, bool(grid.own), x.device)
    flat = x.flatten(2)
    if len(grid.boundary):
        chosen = flat[..., boundary]
        paired[count:].copy_((chosen.conj_physical() if conjugate else chosen).permute(2, 0, 1))
    return paired, flat[..., own].real.permute(2, 0, 1).contiguous()


def _scatter_bins(paired: Tensor, own: Tensor, grid: Frequencies) -> Tensor:
    """The inverse of `gather_bins`.  Mirrored bins are filled in by conjugation."""
    _, batch, m = paired.shape
    result = paired.new_empty(batch, m, *grid.shape)
    axes = (-2, -1, *range(len(grid.shape)))
    count = grid.paired - len(grid.boundary)
    result[..., grid.inner].copy_(paired[:count].view(*grid.inner_shape, batch, m).permute(axes))
    if grid.own:
        boundary, mirrored, selves = index(grid.size, True, paired.device)
        flat, values = result.flatten(2), paired[count:].permute(1, 2, 0)
        flat[..., boundary] = values
        flat[..., mirrored] = values.conj_physical()
        flat[..., selves] = own.permute(1, 2, 0).to(paired.dtype)
    return result


@lru_cache(maxsize=256)
def index(size: tuple[int, ...], real: bool, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    grid = frequencies(size, real)
    bins = (grid.boundary, grid.mirrored, grid.own)
    boundary, mirrored, own = (torch.tensor(b, dtype=torch.long, device=device) for b in bins)
    return boundary, mirrored, own
