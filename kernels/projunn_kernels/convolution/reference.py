"""The Fourier-domain convolution bin by bin, real or complex, with autograd's own gradient."""

from math import sqrt

import torch
from torch import Tensor

from projunn_kernels.convolution.grid import frequencies


def spectrum(signal: Tensor, size: list[int], real: bool) -> tuple[Tensor, Tensor]:
    """``conj(F x)`` at the free bins, one after the other: `projunn_kernels.fourier_transform`."""
    grid = frequencies(tuple(size), real)
    x = signal if real else torch.view_as_complex(signal)
    full = torch.fft.fftn(x, dim=tuple(range(2, 2 + len(size))), norm="ortho").conj()
    empty = [full.new_empty(0, *x.shape[:2])]
    bins = torch.cat(empty + [full[:, :, *k][None] for k in grid.wavenumbers().tolist()])
    scale = sqrt(2) if real else 1.0
    paired = torch.view_as_real((bins[: grid.paired] * scale).resolve_conj())
    return paired, bins[grid.paired :].real


def spectral_product(
    spectrum: Tensor, weight: Tensor, own_weight: Tensor | None, size: list[int]
) -> Tensor:
    """Bin by bin, complex tensors: (batch, n, *grid) to (batch, m, *grid)."""
    grid = frequencies(tuple(size), own_weight is not None)
    matrices = weight if own_weight is None else torch.cat([weight, own_weight.to(weight.dtype)])
    result = spectrum.new_zeros(spectrum.shape[0], weight.shape[1], *grid.shape)
    for k, matrix in zip(grid.wavenumbers().tolist(), matrices, strict=True):
        result[:, :, *k] = spectrum[:, :, *k] @ matrix.mT
    flat = result.flatten(2)
    flat[..., list(grid.mirrored)] = flat[..., list(grid.boundary)].conj()
    return result


def fourier_convolution(
    input: Tensor, weight: Tensor, own_weight: Tensor | None, bias: Tensor | None, size: list[int]
) -> Tensor:
    """The formula on real or complex tensors, with autograd's own gradient."""
    dims = tuple(range(2, input.ndim))
    if own_weight is None:
        y = torch.fft.ifftn(
            spectral_product(torch.fft.fftn(input, dim=dims), weight, None, size), dim=dims
        )
    else:
        x = torch.fft.rfftn(input, dim=dims)
        y = torch.fft.irfftn(spectral_product(x, weight, own_weight, size), s=size, dim=dims)
    return y if bias is None else y + bias.view(-1, *(1 for _ in size))
