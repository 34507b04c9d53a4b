"""Which bins of a discrete Fourier spectrum have a free matrix, and where they lie in the spectrum.

A circular convolution on a grid of ``size`` points has one matrix W_k for each frequency k.  For complex
signals all of them are free.  For real signals W_{-k} = conj(W_k), and ``torch.fft.rfftn`` keeps only
the half grid ``(*size[:-1], size[-1] // 2 + 1)``.  That still holds three kinds of bins:

    paired     k != -k: a free complex matrix.  The inner ones, with 0 < k_d < size_d / 2 along the last
               axis d, come first, row by row; then the boundary ones, one of each pair k, -k with
               k_d = 0 or k_d = size_d / 2;
    mirrored   the other of each such pair: -k of a boundary bin, with the conjugate of its matrix;
    own        k = -k, zero or Nyquist along every axis: a free real matrix.

Bins are numbered in the (half) grid row by row, as in the flattened spectrum.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True)
class Frequencies:
    """The bins of a grid.

    Attributes:
        size: points along each axis of the signal.
        shape: the spectrum's axes: ``size``, or the half grid of real signals.
        first, last: the slice of the last axis that the inner bins take; all of it for complex signals.
        boundary: numbers of the boundary bins in the flattened spectrum.
        mirrored: those of their partners, in the same order.
        own: those of the self-conjugate bins; the zero frequency is the first.
    """

    size: tuple[int, ...]
    shape: tuple[int, ...]
    first: int
    last: int
    boundary: tuple[int, ...]
    mirrored: tuple[int, ...]
    own: tuple[int, ...]

    @property
    def inner(self) -> slice:
        """The inner bins, along the last axis of the spectrum."""
        return slice(self.first, self.last)

    @property
    def points(self) -> int:
        """Points of the signal's grid, N."""
        return prod(self.size)

    @property
    def inner_shape(self) -> tuple[int, ...]:
        """The axes of the inner bins."""
        return (*self.shape[:-1], self.last - self.first)

    @property
    def inner_count(self) -> int:
        """How many inner bins there are: the first of the paired ones."""
        return prod(self.inner_shape)

    @property
    def paired(self) -> int:
        """How many matrices are free and complex."""
        return self.inner_count + len(self.boundary)

    @property
    def bins(self) -> int:
        """Bins of the spectrum, mirrored ones too."""
        return prod(self.shape)

    def wavenumbers(self) -> Tensor:
        """Integer wavenumbers of the paired bins and then of the own bins, (paired + own, axes)."""
        axes = [torch.arange(n, device="cpu") for n in self.shape]
        grid = torch.cartesian_prod(*axes).view(*self.shape, -1)
        inner = grid[..., self.inner, :].reshape(-1, len(self.size))
        rest = torch.tensor((*self.boundary, *self.own), dtype=torch.long, device="cpu")
        return torch.cat([inner, grid.view(-1, len(self.size))[rest]])


@lru_cache(maxsize=1024)
def frequencies(size: tuple[int, ...], real: bool) -> Frequencies:
    """The bins of a grid of ``size`` points, of real or of complex signals."""
    if not real:
        return Frequencies(size, size, 0, size[-1], (), (), ())
    *outer, last = size
    shape = (*outer, last // 2 + 1)
    boundary, mirrored, own = [], [], []
    for index in product(*(range(n) for n in outer), {0, last // 2} if last % 2 == 0 else {0}):
        partner = (*((-k) % n for k, n in zip(index, outer, strict=False)), index[-1])
        here, there = _flat(index, shape), _flat(partner, shape)
        if here == there:
            own.append(here)
        elif here < there:
            boundary.append(here)
            mirrored.append(there)
    inner = 1, 1 + (last - 1) // 2
    return Frequencies(size, shape, *inner, tuple(boundary), tuple(mirrored), tuple(sorted(own)))


def _flat(index: tuple[int, ...], shape: tuple[int, ...]) -> int:
    flat = 0
    for k, n in zip(index, shape, strict=True):
        flat = flat * n + k
    return flat
