"""Launches of the spectral products, with their tables of frequencies, precision and grids.

Spectra are (batch, channels, *grid, 2) and weights (paired, m, n, 2) and (own, m, n), as in `spectral`;
all are float32 and contiguous.
"""

from functools import lru_cache

import torch
import triton
from torch import Tensor

from projunn_kernels.configs.problem import Config, Problem
from projunn_kernels.convolution.grid import Frequencies, frequencies
from projunn_kernels.convolution.kernels import spectral_gradient_kernel, spectral_product_kernel
from projunn_kernels.launching import choose, dot_precision, launch, options, product_setting

# Steps of the sums, over channels or images: 16 spill a register or two of `tf32x3` on some GPUs with
# Triton 3.8; before that `tl.dot` has no 8.
_VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
DEPTH = 8 if _VERSION >= (3, 8) else 16


@lru_cache(maxsize=256)
def _tables(grid: Frequencies, device: torch.device) -> tuple[Tensor, Tensor]:
    source, matrix = grid.lookup()
    return source.to(device), matrix.to(device)


def _chosen(
    operation: str, m: int, n: int, batch: int, grid: Frequencies, x: Tensor, **variant: bool
) -> Config:
    problem = Problem(operation, not grid.own, batch, m, n, grid.bins)
    return choose(problem, x.device, **variant, precision=product_setting(torch.float32))


def spectral_product(
    spectrum: Tensor,
    weight: Tensor,
    own_weight: Tensor | None,
    size: list[int],
    adjoint: bool,
) -> Tensor:
    """W x, or W^H x if ``adjoint``, at every frequency: one launch."""
    spectrum, weight = spectrum.contiguous(), weight.contiguous()
    own_weight = None if own_weight is None else own_weight.contiguous()
    grid = frequencies(tuple(size), own_weight is not None)
    batch, (m, n) = spectrum.shape[0], weight.shape[1:3]
    outer = n if adjoint else m
    result = spectrum.new_empty(batch, outer, *spectrum.shape[2:])
    if result.numel() == 0:
        return result
    config = _chosen("spectral_product", m, n, batch, grid, spectrum, adjoint=adjoint)
    source, matrix = _tables(grid, spectrum.device)
    tiles = -(-outer // config.rows) * -(-batch // config.columns)
    launch(
        spectral_product_kernel,
        (tiles, -(-grid.bins // config.warps)),
        spectrum=spectrum,
        weight=weight,
        own_weight=weight if own_weight is None else own_weight,
        result=result,
        source=source,
        matrix=matrix,
        batch=batch,
        m=m,
        n=n,
        frequencies=grid.bins,
        ADJOINT=adjoint,
        HALF=own_weight is not None,
        PRECISION=dot_precision(torch.float32),
        BM=config.rows,
        BB=config.columns,
        BK=DEPTH,
        F=config.warps,
        **options(config.warps),
    )
    return result


def spectral_gradient(
    grad: Tensor,
    spectrum: Tensor,
    size: list[int],
    real: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The gradients of ``weight`` and ``own_weight``: one launch."""
    grad, spectrum = grad.contiguous(), spectrum.contiguous()
    grid = frequencies(tuple(size), real)
    batch, m, n = grad.shape[0], grad.shape[1], spectrum.shape[1]
    result = grad.new_empty(grid.paired, m, n, 2)
    own = grad.new_empty(len(grid.own), m, n)
    config = _chosen("spectral_gradient", m, n, batch, grid, grad)
    source, matrix = _tables(grid, grad.device)
    tiles = -(-m // config.rows) * -(-n // config.columns)
    launch(
        spectral_gradient_kernel,
        (tiles, -(-grid.bins // config.warps)),
        grad=grad,
        spectrum=spectrum,
        weight_grad=result,
        own_grad=own if real else result,
        source=source,
        matrix=matrix,
        batch=batch,
        m=m,
        n=n,
        frequencies=grid.bins,
        scale=scale,
        HALF=real,
        PRECISION=dot_precision(torch.float32),
        BM=config.rows,
        BN=config.columns,
        BK=DEPTH,
        F=config.warps,
        **options(config.warps),
    )
    return result, own
