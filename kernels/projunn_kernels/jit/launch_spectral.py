"""Launches of the spectral products: tables of frequencies, precision, grids.

Spectra arrive as `projunn_kernels.spectral` describes them, (batch, channels, *grid, 2), weights as
(paired, m, n, 2) and (own, m, n); float32 and contiguous all of them.
"""

from functools import lru_cache

import torch
import triton
from torch import Tensor

from projunn_kernels.frequencies import Frequencies, frequencies
from projunn_kernels.jit.launch import options
from projunn_kernels.jit.spectral import spectral_gradient_kernel, spectral_product_kernel
from projunn_kernels.problems import Config, Problem, device_of
from projunn_kernels.tuning import config_for

# Steps of the sums, over channels or images: 16 spill a register or two of `tf32x3` on some GPUs with
# Triton 3.8; before that `tl.dot` has no 8.
_VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
DEPTH = 8 if _VERSION >= (3, 8) else 16


def precision(amd: bool) -> str:
    """The products' precision, as ``torch.set_float32_matmul_precision`` asks for it.

    ``highest``, PyTorch's default, is ``tf32x3``: tensor cores, with float32's error; ``high`` and
    ``medium`` are ``tf32``.  On AMD GPUs always ``ieee``: their matrix cores take float32 as it is.
    """
    if amd:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


@lru_cache(maxsize=256)
def _tables(grid: Frequencies, device: torch.device) -> tuple[Tensor, Tensor]:
    source, matrix = grid.lookup()
    return source.to(device), matrix.to(device)


def _chosen(operation: str, m: int, n: int, batch: int, grid: Frequencies, x: Tensor) -> Config:
    problem = Problem(operation, not grid.own, batch, m, n, grid.bins)
    return config_for(problem, device_of(x.device))[0]


def spectral_product(
    spectrum: Tensor,
    weight: Tensor,
    own_weight: Tensor | None,
    size: list[int],
    adjoint: bool,
    config: Config | None = None,
) -> Tensor:
    """W x, or W^H x if ``adjoint``, at every frequency: one launch."""
    grid = frequencies(tuple(size), own_weight is not None)
    batch, (m, n) = spectrum.shape[0], weight.shape[1:3]
    outer = n if adjoint else m
    result = spectrum.new_empty(batch, outer, *spectrum.shape[2:])
    if result.numel() == 0:
        return result
    c = config or _chosen("spectral_product", m, n, batch, grid, spectrum)
    source, matrix = _tables(grid, spectrum.device)
    tiles = -(-outer // c.rows) * -(-batch // c.columns)
    spectral_product_kernel[(tiles, -(-grid.bins // c.warps))](
        spectrum,
        weight,
        weight if own_weight is None else own_weight,
        result,
        source,
        matrix,
        batch,
        m,
        n,
        grid.bins,
        ADJOINT=adjoint,
        HALF=own_weight is not None,
        PRECISION=precision(torch.version.hip is not None),
        BM=c.rows,
        BB=c.columns,
        BK=DEPTH,
        F=c.warps,
        **options(c.warps),
    )
    return result


def spectral_gradient(
    grad: Tensor,
    spectrum: Tensor,
    size: list[int],
    real: bool,
    scale: float,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradients of ``weight`` and ``own_weight``: one launch."""
    grid = frequencies(tuple(size), real)
    batch, m, n = grad.shape[0], grad.shape[1], spectrum.shape[1]
    result = grad.new_empty(grid.paired, m, n, 2)
    own = grad.new_empty(len(grid.own), m, n)
    c = config or _chosen("spectral_gradient", m, n, batch, grid, grad)
    source, matrix = _tables(grid, grad.device)
    tiles = -(-m // c.rows) * -(-n // c.columns)
    spectral_gradient_kernel[(tiles, -(-grid.bins // c.warps))](
        grad,
        spectrum,
        result,
        own if real else result,
        source,
        matrix,
        batch,
        m,
        n,
        grid.bins,
        scale,
        HALF=real,
        PRECISION=precision(torch.version.hip is not None),
        BM=c.rows,
        BN=c.columns,
        BK=DEPTH,
        F=c.warps,
        **options(c.warps),
    )
    return result, own
