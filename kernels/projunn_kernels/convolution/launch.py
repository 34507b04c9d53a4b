"""Launches of the transforms, with their constant matrices, precision and grids.

The kernels read memory, which knows nothing of a sign that PyTorch has only noted (``resolve_neg``).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from projunn_kernels.configs import choice
from projunn_kernels.configs.problem import Problem
from projunn_kernels.convolution import tables
from projunn_kernels.convolution.grid import frequencies
from projunn_kernels.convolution.kernels import (
    plane_inverse_kernel,
    plane_transform_kernel,
    points_inverse_kernel,
    points_transform_kernel,
    sliced_inverse_kernel,
    sliced_transform_kernel,
)
from projunn_kernels.convolution.tables import LEAST, few_points, padded, points_and_pairs
from projunn_kernels.keeping import IDLE, Recent, may_keep
from projunn_kernels.launching import Launch, choose, dot_precision, options, product_setting


def transform(signal: Tensor, size: list[int], real: bool) -> tuple[Tensor, Tensor]:
    """The spectra of real signals (batch, channels, *size) of any strides: one launch."""
    signal = signal.resolve_neg()
    bins, shape = frequencies(tuple(size), real), signal.shape[:2]
    paired, own = signal.new_empty(bins.paired, *shape, 2), signal.new_empty(len(bins.own), *shape)
    run = _kept_launch(_transform_launch, signal, size, None)
    run(signal=signal, paired=paired, own=own)
    return paired, own


def inverse(paired: Tensor, own: Tensor, bias: Tensor | None, size: list[int], real: bool) -> Tensor:
    """The signals of spectra, plus ``bias``: one launch."""
    paired, own = paired.resolve_neg().contiguous(), own.resolve_neg().contiguous()
    signal = paired.new_empty(*own.shape[1:], *size)
    bias = None if bias is None else bias.resolve_neg().contiguous()
    run = _kept_launch(_inverse_launch, signal, size, bias, paired, own)
    run(signal=signal, paired=paired, own=own, bias=own if bias is None else bias)
    return signal


# Launches without the signal, the spectra and the bias, which their calls name.
_kept: Recent[Launch] = Recent(256, IDLE)


def _kept_launch(
    make: Callable[[Tensor, list[int], bool], Launch],
    signal: Tensor,
    size: list[int],
    bias: Tensor | None,
    *spectra: Tensor,
) -> Launch:
    """The launch kept for signals of a layout, in the setting of PyTorch for products, or a new one."""
    if not may_keep(signal):
        return make(signal, size, bias is not None)
    given = (signal, *spectra) if bias is None else (signal, *spectra, bias)
    kinds = tuple((tensor.data_ptr() % 16, tensor.dtype) for tensor in given)
    layout = signal.shape, signal.stride(), tuple(size), signal.device
    key = (make, *layout, *kinds, dot_precision(torch.float32), choice.generation())
    return _kept.made(key, lambda: make(signal, size, bias is not None))


# The kernels for few points, for whole planes and for planes in slices.
_KERNELS = {
    "fourier_transform": (points_transform_kernel, plane_transform_kernel, sliced_transform_kernel),
    "fourier_inverse": (points_inverse_kernel, plane_inverse_kernel, sliced_inverse_kernel),
}


def _transform_launch(signal: Tensor, size: list[int], has_bias: bool) -> Launch:
    return _launch("fourier_transform", signal, size)


def _inverse_launch(signal: Tensor, size: list[int], has_bias: bool) -> Launch:
    return _launch("fourier_inverse", signal, size, BIAS=has_bias)


def _launch(operation: str, signal: Tensor, size: list[int], **more: Any) -> Launch:
    """With the grid, how the signal lies, tiles and precision, constant matrices."""
    height, width = (1, *size)[-2:]
    channels = signal.shape[1]
    planes = signal.shape[0] * channels
    by_image, by_channel, *by_axis = signal.stride()
    by_row, by_point = (width * by_axis[-1], *by_axis)[-2:]
    apart = by_point != 1 or by_row != width
    back = operation == "fourier_inverse"
    variant = {} if back else {"apart": apart}
    problem = Problem(operation, False, 1, height, width, planes)
    config = choose(problem, signal.device, precision=product_setting(torch.float32), **variant)
    arguments = {
        "planes": planes,
        "channels": channels,
        "width": width,
        "by_image": by_image,
        "by_channel": by_channel,
        "by_row": by_row,
        "by_point": by_point,
        "PRECISION": dot_precision(torch.float32),
        "BP": config.rows,
        **options(config.warps, config.stages),
        **more,
    }
    of_points, of_planes, in_slices = _KERNELS[operation]
    grid = (-(-planes // config.rows),)
    if few_points(size):
        return Launch(of_points, grid, LINE=not apart, **arguments, **_points(signal.device, size, back))
    sizes = {"height": height, "HEIGHT": padded(height), "WIDTH": padded(width)}
    sizes["along_rows"] = tables.along_rows(width, signal.device, back)
    if config.columns == 1:
        along = tables.along_columns(height, signal.device)
        return Launch(of_planes, grid, along_columns=along, **arguments, **sizes)
    along = tables.along_real_columns(height, signal.device, back)
    return Launch(in_slices, grid, along_columns=along, SLICE=config.columns, **arguments, **sizes)


def _points(device: torch.device, size: list[int], back: bool) -> dict[str, Any]:
    """The arguments that only a size of few points makes, and the constant matrix."""
    grid, (points, pairs) = frequencies(tuple(size), True), points_and_pairs(size)
    return {
        "points": grid.points,
        "pairs": grid.paired,
        "owns": len(grid.own),
        "POINTS": points,
        "PAIRS": pairs,
        "OWNS": LEAST,
        "table": tables.of_all_points(tuple(size), device, back),
    }
