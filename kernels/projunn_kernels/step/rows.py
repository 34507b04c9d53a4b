"""Launches of the passes of a step of rank 1 whose programs make the columns that they need."""

import torch
from torch import Tensor

from projunn_kernels.launching import PRECISION, Launch, Matrices, floats, half_precision, options
from projunn_kernels.retraction.launch import Warm, device_function
from projunn_kernels.step.kernels import plane_rows_kernel, unit_product_kernel


def unit_product_launch(where: Matrices, partial: Tensor) -> tuple[Launch, Tensor, Tensor]:
    """A launch that makes ``y = p / |p|`` and ``x = M y``; and y (A, 1, n) and x (A, 1, m).

    p is the sum of ``partial``, (A, splits, 1, n).
    """
    count, splits, _, n = partial.shape
    m, pairs = where.sample.shape[1], partial.is_complex()
    half = half_precision(where.sample)
    config = where.config("unit_product", 1, listed=where.listed, gradient=half)
    right, left = partial.new_empty(count, 1, n), partial.new_empty(count, 1, m)
    made = Launch(
        unit_product_kernel,
        (-(-m // config.rows), count),
        matrix=where.base,
        partial=floats(partial),
        factor=floats(right),
        result=floats(left),
        **where.arguments,
        m=m,
        n=n,
        splits=splits,
        PAIRS=pairs,
        BM=config.rows,
        BN=config.columns,
        **options(config.warps),
    )
    return made, right, left


def plane_rows_launch(
    weights: Matrices,
    right: Tensor,
    pulled: Tensor,
    warm: Warm,
    retraction: str,
    rate: float,
    scale: Tensor | None,
) -> tuple[Launch, Tensor]:
    """A launch that takes the steps ``-rate Z y^H`` and makes the next bases, and the mask of both.

    y is ``right``, (A, 1, n), Z the sum of ``pulled``, (A, splits, 1, n), the rate is ``rate``, times
    the 0-d tensor ``scale`` if given, and ``weights`` are those of a table of addresses.  Every program
    finds the norms of the columns of ``warm`` itself.
    """
    (_, m, n), splits = weights.sample.shape, pulled.shape[1]
    config = weights.config("plane_rows", 1, retraction=retraction, scaled=scale is not None)
    taken = torch.empty(weights.count, dtype=torch.int8, device=right.device)
    made = Launch(
        plane_rows_kernel,
        (-(-m // config.rows), weights.count),
        weights=weights.base,
        right=floats(right),
        partial=floats(pulled),
        columns=floats(warm.columns),
        bases=warm.bases,
        probes=warm.probes,
        skipped=warm.skipped,
        missed=warm.missed,
        taken_mask=taken,
        rate_tensor=taken if scale is None else scale,
        rate=rate,
        precision=PRECISION,
        matrices=weights.arguments["matrices"],
        m=m,
        n=n,
        splits=splits,
        ROTATE=device_function(retraction, 1),
        PAIRS=right.is_complex(),
        HAS_RATE=scale is not None,
        BM=config.rows,
        BN=config.columns,
        **options(config.warps),
    )
    return made, taken
