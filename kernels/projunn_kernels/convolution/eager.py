"""The transforms in PyTorch: products with constant matrices, or the FFT, and one transposition.

Points lie side by side in signals, frequencies apart in spectra, so that something has to transpose.
That is done for as many planes at a time as leave everything in cache.  On a CPU products with constant
matrices are faster than an FFT where the sides are short: one, of few points, or two.
"""

from collections.abc import Callable
from functools import lru_cache
from math import pi, prod, sqrt

import torch
from torch import Tensor

from projunn_kernels.convolution.grid import Frequencies, frequencies
from projunn_kernels.keeping import constant

# Points of a line and of the longer side of a plane up to which products are faster than MKL's FFT,
# points up to which one product is faster than two, and how many numbers are transformed at a time
# (docs/measured.md).
LONGEST_LINE, LONGEST_SIDE, FEW_POINTS = 40, 28, 64
LEAST_ROW = 16  # points of a row that MKL's products write as fast as others
AT_A_TIME, LEAST_PLANES = 1 << 18, 64


# Of (planes, *size), (paired, planes, 2) and (own, planes): reads some of them and writes the others.
Way = Callable[[Tensor, Tensor, Tensor, Frequencies], None]


def _ways(size: list[int], real: bool, device: torch.device) -> tuple[Way, Way]:
    """The functions that transform signals of this size, and back."""
    if not real:
        return _fft, _ifft
    if device.type == "cpu":
        if prod(size) <= (FEW_POINTS if len(size) > 1 else LONGEST_LINE):
            return _product, _inverse_product
        if len(size) == 2 and min(size) > 1 and max(size) <= LONGEST_SIDE:
            return _products, _inverse_products
    return _rfft, _irfft


def transform(signal: Tensor, size: list[int], real: bool) -> tuple[Tensor, Tensor]:
    """``conj(F x)`` at the free bins: see `projunn_kernels.fourier_transform`."""
    grid = frequencies(tuple(size), real)
    batch, n = signal.shape[:2]
    paired = signal.new_empty(grid.paired, batch, n, 2)
    own = signal.new_empty(len(grid.own), batch, n)
    if signal.numel() == 0:  # MKL refuses empty batches
        return paired, own
    planes = signal.contiguous().flatten(0, 1)
    way, _ = _ways(size, real, signal.device)
    for piece, to_paired, to_own in _pieces(planes, paired.flatten(1, 2), own.flatten(1)):
        way(piece, to_paired, to_own, grid)
    return paired, own


def inverse(paired: Tensor, own: Tensor, bias: Tensor | None, size: list[int], real: bool) -> Tensor:
    """``F^-1`` of such a spectrum, plus ``bias``: see `projunn_kernels.fourier_inverse`."""
    grid = frequencies(tuple(size), real)
    paired, own = paired.contiguous(), own.contiguous()
    batch, m = paired.shape[1:3]
    signal = paired.new_empty(batch, m, *size, *(() if real else (2,)))
    if signal.numel() == 0:
        return signal
    if bias is not None and real:  # at the zero frequency
        own = own.clone()
        own[0].add_(bias, alpha=sqrt(grid.points))
    _, way = _ways(size, real, paired.device)
    pieces = _pieces(signal.flatten(0, 1), paired.flatten(1, 2), own.flatten(1))
    if way is _irfft and len(pieces) == 1:
        return _points(*pieces[0][1:], grid).view_as(signal)
    for piece, from_paired, from_own in pieces:
        way(from_paired, from_own, piece, grid)
    if bias is not None and not real:
        signal += bias.view(-1, *(1 for _ in size), 2)
    return signal


def _pieces(planes: Tensor, paired: Tensor, own: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Signals (planes, ..) and spectra (.., planes, ..) that are transformed at a time; all on a GPU."""
    count = len(planes)
    step = max(LEAST_PLANES, AT_A_TIME * count // planes.numel()) if planes.is_cpu else count
    if step >= count:
        return [(planes, paired, own)]
    return list(zip(planes.split(step), paired.split(step, 1), own.split(step, 1), strict=True))


def _product(x: Tensor, paired: Tensor, own: Tensor, grid: Frequencies) -> None:
    """One product with the matrix of the whole transform."""
    bins = torch.mm(of_all_points(grid.size, x.dtype, x.device), x.view(len(x), -1).mT)
    free, first, second = torch.split_with_sizes(bins, [len(own), grid.paired, grid.paired])
    own.copy_(free)
    torch.complex(first, second, out=torch.view_as_complex(paired))


def _inverse_product(paired: Tensor, own: Tensor, signal: Tensor, grid: Frequencies) -> None:
    bins = own.new_empty(grid.points, len(signal))
    bins[: len(own)].copy_(own)
    _apart(paired, bins[len(own) :])
    torch.mm(bins.mT, of_all_points(grid.size, own.dtype, own.device), out=signal.view(len(signal), -1))


def _products(x: Tensor, paired: Tensor, own: Tensor, grid: Frequencies) -> None:
    """Along the rows, then along the columns: (planes, height, width) to (frequencies, planes)."""
    height, width, edge = _sides(grid)
    planes = len(x)
    points = x.view(planes, height, width).permute(1, 2, 0)  # BLAS transposes as it reads
    rows = torch.bmm(_every(waves(width, x), height), points).view(height, -1)
    ends, re, im = rows.split(_widths(width, planes), 1)
    columns = torch.mm(waves(height, x), ends).view(height, edge, planes)
    free = _own(height)
    own.copy_(columns[:free].flatten(0, 1))
    if grid.boundary:
        first, second = columns[free:].flatten(0, 1).chunk(2)
        torch.complex(first, second, out=torch.view_as_complex(paired[grid.inner_count :]))
    if grid.inner_count:
        along, across = conjugate_columns(height, x)
        both = torch.mm(along, re).addmm_(across, im)
        first, second = both.view(2, -1, planes)
        torch.complex(first, second, out=torch.view_as_complex(paired[: grid.inner_count]))


def _inverse_products(paired: Tensor, own: Tensor, signal: Tensor, grid: Frequencies) -> None:
    """The transposed products in the opposite order."""
    height, width, edge = _sides(grid)
    planes, free = len(signal), _own(height)
    rows = signal.new_empty(height, width * planes)
    ends, re, im = rows.split(_widths(width, planes), 1)
    columns = signal.new_empty(height, edge, planes)
    columns[:free].view(own.shape).copy_(own)
    if grid.boundary:
        _apart(paired[grid.inner_count :], columns[free:])
    torch.mm(waves(height, own).mT, columns.view(height, -1), out=ends)
    if grid.inner_count:
        both = signal.new_empty(2 * height, re.shape[1])
        _apart(paired[: grid.inner_count], both)
        along, across = conjugate_columns(height, own)
        torch.mm(along.mT, both, out=re)
        torch.mm(across.mT, both, out=im)
    rows, wave = rows.view(height, width, planes), waves(width, own)
    if width < LEAST_ROW:
        points = torch.bmm(_every(wave.mT, height), rows)
        signal.view(planes, -1).copy_(points.view(-1, planes).mT)
    else:
        points = torch.bmm(rows.mT, _every(wave, height))
        signal.view(planes, height, width).copy_(points.transpose(0, 1))


def _rfft(x: Tensor, paired: Tensor, own: Tensor, grid: Frequencies) -> None:
    spectrum = torch.fft.rfftn(x, dim=tuple(range(1, x.ndim)), norm="ortho")
    bins = torch.view_as_real(spectrum.reshape(len(x), -1).mT.contiguous())
    boundary, _, selves = index(grid.size, x.device)
    conjugate = _conjugation(sqrt(2), len(x) if x.is_cpu else 1, x.dtype, x.device)
    inner = paired[: grid.inner_count].unflatten(0, grid.inner_shape)
    torch.mul(
        bins.view(*grid.shape, len(x), 2)[(..., grid.inner, slice(None), slice(None))],
        conjugate,
        out=inner,
    )
    if grid.boundary:
        paired[grid.inner_count :] = bins[boundary] * conjugate
    own.copy_(bins[selves][..., 0])


def _irfft(paired: Tensor, own: Tensor, signal: Tensor, grid: Frequencies) -> None:
    signal.copy_(_points(paired, own, grid))


def _points(paired: Tensor, own: Tensor, grid: Frequencies) -> Tensor:
    planes = own.shape[1]
    conjugate = _conjugation(sqrt(0.5), planes if own.is_cpu else 1, own.dtype, own.device)
    bins = paired.new_empty(grid.bins, planes, 2)
    inner = bins.view(*grid.shape, planes, 2)[(..., grid.inner, slice(None), slice(None))]
    torch.mul(paired[: grid.inner_count].unflatten(0, grid.inner_shape), conjugate, out=inner)
    boundary, mirrored, selves = index(grid.size, paired.device)
    if grid.boundary:
        pairs = paired[grid.inner_count :]
        bins[boundary], bins[mirrored] = pairs * conjugate, pairs * sqrt(0.5)
    bins[selves] = torch.stack([own, torch.zeros_like(own)], -1)
    spectrum = torch.view_as_complex(bins).mT.contiguous().view(planes, *grid.shape)
    dims = tuple(range(1, spectrum.ndim))
    return torch.fft.irfftn(spectrum, s=grid.size, dim=dims, norm="ortho")


def _fft(x: Tensor, paired: Tensor, own: Tensor, grid: Frequencies) -> None:
    bins = torch.fft.fftn(torch.view_as_complex(x), dim=tuple(range(1, x.ndim - 1)), norm="ortho")
    torch.conj_physical(bins.reshape(len(x), -1).mT, out=torch.view_as_complex(paired))


def _ifft(paired: Tensor, own: Tensor, signal: Tensor, grid: Frequencies) -> None:
    numbers = torch.view_as_complex(signal)
    torch.conj_physical(torch.view_as_complex(paired).mT, out=numbers.view(len(signal), -1))
    points = torch.fft.ifftn(numbers, dim=tuple(range(1, numbers.ndim)), norm="ortho")
    numbers.copy_(points)


@constant
def _conjugation(scale: float, planes: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Scales and conjugates the pairs of a row of planes, (planes, 2).

    A CPU takes a row as long as what it multiplies; a GPU one of any plane, for all numbers of them.
    """
    return torch.tensor([scale, -scale], dtype=dtype, device="cpu").repeat(planes, 1).to(device)


def _apart(pairs: Tensor, parts: Tensor) -> None:
    """Real and then imaginary parts, copied to ``parts``."""
    for part, target in zip(pairs.unbind(-1), parts.view(2, *pairs.shape[:-1]), strict=True):
        target.copy_(part)


def _every(matrix: Tensor, count: int) -> Tensor:
    return matrix.expand(count, -1, -1)


def _own(count: int) -> int:
    """Self-conjugate frequencies of a line of ``count`` points."""
    return min(count, 2 - count % 2)


def _sides(grid: Frequencies) -> tuple[int, int, int]:
    """Height and width of a plane, and the self-conjugate bins of a row."""
    height, width = grid.size
    return height, width, _own(width)


def _widths(width: int, planes: int) -> list[int]:
    """The columns of self-conjugate frequencies, and of the real and the imaginary parts of others."""
    edge = _own(width)
    half = (width - edge) // 2
    return [edge * planes, half * planes, half * planes]


@constant
def of_all_points(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The transform as an orthogonal matrix: own bins, real parts of paired ones, imaginary parts."""
    grid = frequencies(size, True)
    units = torch.eye(grid.points, dtype=torch.float64, device="cpu").view(-1, *size)
    paired = units.new_empty(grid.paired, grid.points, 2)
    own = units.new_empty(len(grid.own), grid.points)
    _rfft(units, paired, own, grid)
    return torch.cat([own, *paired.unbind(-1)]).to(device, dtype)


@lru_cache(maxsize=256)
def _waves(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    index = torch.arange(count, dtype=torch.float64, device="cpu")
    angle = torch.outer(index, index).remainder(count) * (2 * pi / count)
    own, half = [0, count // 2][: _own(count)], torch.arange(1, (count + 1) // 2, device="cpu")
    paired = sqrt(2) * torch.cat([angle[half].cos(), angle[half].sin()])
    return (torch.cat([angle[own].cos(), paired]) / sqrt(count)).to(dtype).to(device)


def waves(count: int, like: Tensor) -> Tensor:
    """The DFT conj(F) of a real line, an orthogonal matrix (count, count).

    Its rows are the self-conjugate frequencies, then the real parts of the others times sqrt(2), then
    their imaginary parts times sqrt(2).
    """
    return _waves(count, like.dtype, like.device)


@lru_cache(maxsize=256)
def _conjugate_columns(count: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    index = torch.arange(count, dtype=torch.float64, device="cpu")
    angle = torch.outer(index, index).remainder(count) * (2 * pi / count)
    cos, sin = angle.cos() / sqrt(count), angle.sin() / sqrt(count)
    along, across = torch.cat([cos, sin]), torch.cat([-sin, cos])
    return along.to(dtype).to(device), across.to(dtype).to(device)


def conjugate_columns(count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The complex DFT conj(F) = C + iS of a line, for real and for imaginary parts.

    Both are (2 count, count): [C; S] and [-S; C].
    """
    return _conjugate_columns(count, like.dtype, like.device)


@constant
def index(size: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers of the boundary, mirrored and own bins in the flattened half grid."""
    grid = frequencies(size, True)
    bins = (grid.boundary, grid.mirrored, grid.own)
    boundary, mirrored, own = (torch.tensor(b, dtype=torch.long, device=device) for b in bins)
    return boundary, mirrored, own
