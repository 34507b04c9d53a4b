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
)
from projunn_kernels.convolution.tables import LEAST, padded, points_and_pairs
from projunn_kernels.convolution.tiles import FOURIER_TRANSFORM, few_points
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


def _transform_launch(signal: Tensor, size: list[int], has_bias: bool) -> Launch:
    kernel = points_transform_kernel if few_points(size) else plane_transform_kernel
    grid, arguments = _arguments("fourier_transform", signal, size)
    return Launch(kernel, grid, **arguments, **_sizes(signal.device, size, back=False))


def _inverse_launch(signal: Tensor, size: list[int], has_bias: bool) -> Launch:
    kernel = points_inverse_kernel if few_points(size) else plane_inverse_kernel
    grid, arguments = _arguments("fourier_inverse", signal, size)
    return Launch(kernel, grid, BIAS=has_bias, **arguments, **_sizes(signal.device, size, back=True))


def _arguments(operation: str, signal: Tensor, size: list[int]) -> tuple[tuple[int], dict[str, Any]]:
    """The grid, and the arguments that all kernels have: how the signal lies, tiles and precision."""
    height, width = (1, *size)[-2:]
    channels = signal.shape[1]
    planes = signal.shape[0] * channels
    by_image, by_channel, *by_axis = signal.stride()
    by_row, by_point = (width * by_axis[-1], *by_axis)[-2:]
    apart = by_point != 1 or by_row != width
    variant = {"apart": apart} if operation == FOURIER_TRANSFORM.name else {}
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
    }
    if few_points(size):
        arguments["LINE"] = not apart
    return (-(-planes // config.rows),), arguments


def _sizes(device: torch.device, size: list[int], back: bool) -> dict[str, Any]:
    """The arguments that only the size makes, and the constant matrices."""
    if few_points(size):
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
    height, width = size
    return {
        "height": height,
        "HEIGHT": padded(height),
        "WIDTH": padded(width),
        "along_rows": tables.along_rows(width, device, back),
        "along_columns": tables.along_columns(height, device),
    }
