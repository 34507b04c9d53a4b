"""The constant matrices of the transforms, in halves, (2, rows, columns): one for a size and device."""

from collections.abc import Sequence
from math import pi, prod, sqrt

import torch
from torch import Tensor

from projunn_kernels.configs.problem import power_of_two
from projunn_kernels.convolution import eager
from projunn_kernels.convolution.grid import frequencies
from projunn_kernels.keeping import constant

LEAST = 16  # rows and columns of the operands of `tl.dot`
FEW_POINTS = 64  # up to which kernels make the whole transform by one product


def padded(points: int) -> int:
    """How many points a side has with what pads it for `tl.dot`."""
    return max(LEAST, power_of_two(points))


def points_and_pairs(size: Sequence[int]) -> tuple[int, int]:
    """Points and paired bins of `of_all_points` with what pads them: alike for all sizes of a bucket."""
    points = padded(prod(power_of_two(side) for side in size))
    return points, max(LEAST, points // 2)


def few_points(size: Sequence[int]) -> bool:
    """True if kernels multiply by the matrix of the whole transform, and not by rows and columns."""
    return points_and_pairs(size)[0] <= FEW_POINTS


@constant
def along_rows(width: int, device: torch.device, back: bool) -> Tensor:
    """(points, 2 slots): sqrt(2 / width) times the cosines and then the sines of all frequencies.

    Slot 0 has two cosines, of the frequencies 0 and width / 2.  ``back`` transposes it, for the inverse.
    """
    wave = _real_waves(width)
    return _halves(wave.mT if back else wave, device)


@constant
def along_real_columns(height: int, device: torch.device, back: bool) -> Tensor:
    """(points, cosines and then sines of the frequencies up to height / 2), over the root of the height.

    Slot 0 is that of `along_rows`.  ``back`` transposes it, for the inverse.
    """
    wave = sqrt(0.5) * _real_waves(height)
    return _halves(wave.mT if back else wave, device)


@constant
def along_columns(height: int, device: torch.device) -> Tensor:
    """(points, cosines and then sines of the frequencies), over the root of the height."""
    wave = torch.zeros(padded(height), 2, padded(height), dtype=torch.float64, device="cpu")
    turns = torch.arange(height, dtype=torch.float64, device="cpu") / height
    angle = 2 * pi * turns[:, None] * torch.arange(height, device="cpu")
    wave[:height, :, :height] = torch.stack([angle.cos(), angle.sin()], 1)
    return _halves(wave.flatten(1) / sqrt(height), device)


@constant
def of_all_points(size: tuple[int, ...], device: torch.device, back: bool) -> Tensor:
    """(points, cosines, sines and own bins): the transform of each point's unit signal.

    ``back`` transposes it, for the inverse.
    """
    points, (most, pairs) = prod(size), points_and_pairs(size)
    grid = frequencies(size, True)
    waves = eager.of_all_points(size, torch.float64, torch.device("cpu")).mT
    own, cosines, sines = waves.split([len(grid.own), grid.paired, grid.paired], 1)
    matrix = torch.zeros(most, 2 * pairs + LEAST, dtype=torch.float64, device="cpu")
    for first, part in ((0, cosines), (pairs, sines), (2 * pairs, own)):
        matrix[:points, first : first + part.shape[1]] = part
    return _halves(matrix.mT if back else matrix, device)


def _real_waves(count: int) -> Tensor:
    wave = torch.zeros(padded(count), 2, padded(count) // 2, dtype=torch.float64, device="cpu")
    points = torch.arange(count, dtype=torch.float64, device="cpu")
    for k in range((count + 1) // 2):
        angle = 2 * pi * k / count * points
        wave[:count, 0, k], wave[:count, 1, k] = angle.cos(), angle.sin()
    if count % 2 == 0:
        wave[:count, 1, 0] = (pi * points).cos()
    return sqrt(2 / count) * wave.flatten(1)


def _halves(matrix: Tensor, device: torch.device) -> Tensor:
    """The nearest numbers of 11 bits, as TF32 has them, and what they leave, in float32."""
    bits = matrix.float().contiguous().view(torch.int32)
    leading = ((bits + 4096) & -8192).view(torch.float32)
    return torch.stack([leading, (matrix - leading).float()]).to(device)
