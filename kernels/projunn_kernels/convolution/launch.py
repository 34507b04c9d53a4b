"""Launches of the transforms, with their tables of cosines and sines, precision and grids."""

from collections.abc import Callable
from functools import lru_cache
from math import pi, sqrt
from typing import Any

import torch
from torch import Tensor

from projunn_kernels.configs import choice
from projunn_kernels.configs.problem import Config, Problem, power_of_two
from projunn_kernels.convolution.grid import frequencies
from projunn_kernels.convolution.kernels import fourier_inverse_kernel, fourier_transform_kernel
from projunn_kernels.convolution.tiles import LEAST
from projunn_kernels.keeping import Recent, may_keep
from projunn_kernels.launching import Launch, choose, dot_precision, options, product_setting


@lru_cache(maxsize=256)
def _wave(points: int, device: torch.device) -> Tensor:
    """cos and sin of 2 pi j / points, (2, points)."""
    angle = torch.arange(points, dtype=torch.float64) * (2 * pi / points)
    return torch.stack([angle.cos(), angle.sin()]).float().to(device)


def _arguments(operation: str, signal: Tensor, size: list[int]) -> tuple[Config, dict[str, Any]]:
    """The configuration of a launch, and the arguments that both kernels have."""
    height, width = (1, *size)[-2:]
    channels = signal.shape[1]
    planes = signal.shape[0] * channels
    problem = Problem(operation, False, 1, height, width, planes)
    config = choose(problem, signal.device, precision=product_setting(torch.float32))
    by_image, by_channel, *by_axis = signal.stride()
    return config, {
        "wave_of_rows": _wave(width, signal.device),
        "wave_of_columns": _wave(height, signal.device),
        "planes": planes,
        "channels": channels,
        "height": height,
        "width": width,
        "by_image": by_image,
        "by_channel": by_channel,
        "by_row": (0, *by_axis)[-2],
        "by_point": by_axis[-1],
        "scale": 1 / sqrt(height * width),
        "HEIGHT": 1 if height == 1 else max(LEAST, power_of_two(height)),
        "PRECISION": dot_precision(torch.float32),
        "BP": config.rows,
        "BC": config.columns,
        "BF": 1 if height == 1 else LEAST,
        **options(config.warps),
    }


def _tiles(numbers: int, tile: int) -> int:
    return -(-numbers // tile)


def transform(signal: Tensor, size: list[int], real: bool) -> tuple[Tensor, Tensor]:
    """The spectra of real signals (batch, channels, *size) of any strides: one launch."""
    bins, shape = frequencies(tuple(size), real), signal.shape[:2]
    paired, own = signal.new_empty(bins.paired, *shape, 2), signal.new_empty(len(bins.own), *shape)
    run = _kept_launch(_transform_launch, signal, size, None)
    run(signal=signal, paired=paired, own=own)
    return paired, own


def inverse(paired: Tensor, own: Tensor, bias: Tensor | None, size: list[int], real: bool) -> Tensor:
    """The signals of spectra, plus ``bias``: one launch."""
    paired, own = paired.contiguous(), own.contiguous()
    signal = paired.new_empty(*own.shape[1:], *size)
    bias = None if bias is None else bias.contiguous()
    run = _kept_launch(_inverse_launch, signal, size, bias, paired, own)
    run(signal=signal, paired=paired, own=own, bias=own if bias is None else bias)
    return signal


# Launches without the signal, the spectra and the bias, which their calls name.
_kept: Recent[Launch] = Recent(256)


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
    alignment = tuple(tensor.data_ptr() % 16 for tensor in given)
    layout = signal.shape, signal.stride(), tuple(size), signal.device
    key = (make, *layout, *alignment, dot_precision(torch.float32), choice.generation())
    return _kept.found(key) or _kept.keep(key, make(signal, size, bias is not None))


def _transform_launch(signal: Tensor, size: list[int], has_bias: bool) -> Launch:
    config, arguments = _arguments("fourier_transform", signal, size)
    grid = _tiles(arguments["planes"], config.rows), max(1, _tiles((size[-1] - 1) // 2, config.columns))
    return Launch(fourier_transform_kernel, grid, BW=config.depth, **arguments)


def _inverse_launch(signal: Tensor, size: list[int], has_bias: bool) -> Launch:
    config, arguments = _arguments("fourier_inverse", signal, size)
    grid = _tiles(arguments["planes"], config.rows), _tiles(arguments["height"], arguments["BF"])
    width = max(LEAST, power_of_two(size[-1]))
    return Launch(fourier_inverse_kernel, grid, BIAS=has_bias, WIDTH=width, **arguments)
