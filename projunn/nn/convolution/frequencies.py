"""From the matrices that a convolution stores, one for each free frequency, to its filter and back.

All functions take the matrices as `projunn_kernels.frequencies` numbers them: ``paired`` (P, m, n),
complex, and ``own`` (R, m, n), real, or None for complex signals.
"""

from math import pi

import torch
from torch import Tensor

from projunn.manifold import nearest
from projunn_kernels import Frequencies


def full_response(paired: Tensor, own: Tensor | None, grid: Frequencies) -> Tensor:
    """W_k at every point k of the full grid, (*size, m, n) complex; differentiable."""
    bank = paired if own is None else torch.cat([paired, own.to(paired.dtype)])
    size = torch.tensor(grid.size, device="cpu")
    known = grid.wavenumbers()
    strides = torch.tensor([size[i + 1 :].prod() for i in range(len(size))], device="cpu")
    number = torch.arange(len(known), device="cpu")
    place = torch.zeros(grid.points, dtype=torch.long, device="cpu")
    conjugated = torch.zeros(grid.points, dtype=torch.bool, device="cpu")
    if own is not None:
        mirror = ((-known) % size * strides).sum(-1)
        place[mirror], conjugated[mirror] = number, True
    here = (known * strides).sum(-1)
    place[here], conjugated[here] = number, False
    matrices = bank[place.to(bank.device)]
    flipped = conjugated.to(bank.device)[:, None, None]
    return torch.where(flipped, matrices.conj(), matrices).view(*grid.size, *paired.shape[1:])


def filter_taps(paired: Tensor, own: Tensor | None, grid: Frequencies) -> Tensor:
    """The filter K with y[p] = sum_q K[q] x[p - q]: (*size, m, n), real unless ``own`` is None."""
    response = full_response(paired, own, grid)
    taps = torch.fft.ifftn(response, dim=tuple(range(len(grid.size))))
    return taps if own is None else taps.real


def resample(taps: Tensor, grid: Frequencies, groups: int) -> tuple[Tensor, Tensor]:
    """Matrices of another grid: the filter's Fourier transform there, each made unitary.

    The taps are (*size, groups m, n), the matrices (P groups, m, n) and (R groups, m, n).

    The filter is read as centred, offsets -s/2 <= q < s/2 along an axis of s taps; its transform
    sum_q K[q] exp(-2 pi i k q / size) is evaluated at the wavenumbers k of ``grid`` and replaced by the
    nearest unitary (semi-orthogonal) matrix.  Frequencies that both grids have keep their matrix.
    """
    response = taps.to(torch.complex128)
    for axis, size in enumerate(grid.size):
        count = taps.shape[axis]
        offsets = torch.arange(count, device=taps.device)
        offsets = torch.where(offsets < (count + 1) // 2, offsets, offsets - count)
        wave = torch.arange(size, device=taps.device)
        angle = -2 * pi / size * (torch.outer(wave, offsets) % size).double()
        transform = torch.polar(torch.ones_like(angle), angle)
        response = torch.tensordot(transform, response.movedim(axis, 0), 1).movedim(0, axis)
    known = grid.wavenumbers().to(taps.device)
    matrices = response[known.unbind(-1)].unflatten(1, (groups, -1)).flatten(0, 1)
    count = grid.paired * groups
    return nearest(matrices[:count]), nearest(matrices[count:].real)


def windowed(stored: Tensor, own: Tensor | None, grid: Frequencies, window: tuple[int, ...]) -> Tensor:
    """The part of a filter inside a window around its centre, as matrices again.

    Args:
        stored: paired matrices as real pairs, (P, m, n, 2).
        own: (R, m, n), or None.
        window: w, the taps kept along each axis: offsets -((w - 1) // 2) to w // 2.

    Returns:
        (P + R, m, n, 2), real pairs.  Real arithmetic only: it compiles without complex numbers.
    """
    bank = stored if own is None else torch.cat([stored, torch.stack([own, torch.zeros_like(own)], -1)])
    cos, sin, weights = _waves(grid, window, stored)
    if own is None:
        weights = weights.new_full(weights.shape, 1 / grid.points)
    flat = bank.flatten(1)
    # K[q] = sum_k c_k W_k exp(+i angle): c is twice as large where -k is not listed.
    real_part, imaginary_part = (
        torch.unflatten(wave @ flat, 1, bank.shape[1:]) for wave in (cos * weights, sin * weights)
    )
    taps_re = real_part[..., 0] - imaginary_part[..., 1]
    if own is not None:
        inside = torch.stack([taps_re, torch.zeros_like(taps_re)], -1)
    else:
        inside = torch.stack([taps_re, real_part[..., 1] + imaginary_part[..., 0]], -1)
    # W_k = sum_q K[q] exp(-i angle)
    along, across = (
        torch.unflatten(wave.T @ inside.flatten(1), 1, bank.shape[1:]) for wave in (cos, sin)
    )
    return torch.stack([along[..., 0] + across[..., 1], along[..., 1] - across[..., 0]], -1)


def energy_weights(grid: Frequencies, like: Tensor) -> Tensor:
    """c_k with sum_q |K[q]|^2 = sum_k c_k |W_k|^2 over the paired and own bins of real signals."""
    weights = like.new_full((grid.paired + len(grid.own),), 1 / grid.points)
    weights[: grid.paired] *= 2
    return weights


def _waves(grid: Frequencies, window: tuple[int, ...], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """cos and sin of 2 pi k.q / size for the window's offsets q, (taps, bins), and the weights c_k."""
    ranges = [torch.arange(-((w - 1) // 2), w // 2 + 1, device="cpu") for w in window]
    offsets = torch.cartesian_prod(*ranges).view(-1, len(window))
    turns = offsets[:, None] * grid.wavenumbers()[None]  # exact integers
    size = torch.tensor(grid.size, device="cpu")
    angle = (2 * pi * ((turns % size) / size.double()).sum(-1)).to(like.device)
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype), energy_weights(grid, like)
