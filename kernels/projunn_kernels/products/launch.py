"""Launches of the products of matrices with a few columns."""

import torch
from torch import Tensor

from projunn_kernels.configs.problem import Config, Device, Problem, device_of, power_of_two
from projunn_kernels.constants import MAX_COLUMNS, MAX_RANK
from projunn_kernels.launching import (
    Launch,
    Matrices,
    as_columns,
    exact_dot,
    floats,
    half_precision,
    options,
)
from projunn_kernels.products.kernels import (
    adjoint_many_kernel,
    adjoint_product_kernel,
    product_kernel,
    product_many_kernel,
)


def row_splits(problem: Problem, config: Config, device: Device) -> tuple[int, int]:
    """How many programs share the rows of an adjoint product, and how many rows each of them has.

    They are enough to fill the GPU four times; twice for many columns, whose partial sums are large.
    Each has at least 64 rows, so that the partial sums of a few stay a few percent of the traffic.
    """
    tiles = -(-problem.n // config.columns) * max(1, problem.matrices)
    wanted = -(-(4 if problem.k <= MAX_RANK else 2) * device.processors // tiles)
    splits = max(1, min(wanted, problem.m // 64))
    rows_each = -(-problem.m // (splits * config.rows)) * config.rows
    return -(-problem.m // rows_each), rows_each


def adjoint_launch(
    where: Matrices, k: int, columns: Tensor, bases: bool = False
) -> tuple[Launch, Tensor]:
    """A launch that makes ``M^H X``, and its partial sums (A, splits, k, n), k <= MAX_COLUMNS.

    ``columns`` is X as (A, k, m) or, for ``bases``, the table of addresses of X as (m, k).
    """
    matrix = where.sample
    _, m, n = matrix.shape
    kind = "bases" if bases else where.listed
    name, kernel, columns_each, more = (
        ("adjoint_product", adjoint_product_kernel, power_of_two(k), {})
        if k <= MAX_RANK
        else ("adjoint_many", adjoint_many_kernel, max(16, power_of_two(k)), exact_dot())
    )
    config = where.config(name, k, listed=kind, gradient=half_precision(matrix))
    problem = Problem(name, matrix.is_complex(), k, m, n, where.count)
    splits, rows_each = row_splits(problem, config, device_of(matrix.device))
    dtype = torch.complex64 if matrix.is_complex() else torch.float32
    partial = torch.empty(where.count, splits, k, n, dtype=dtype, device=matrix.device)
    made = Launch(
        kernel,
        (-(-n // config.columns), splits, where.count),
        matrix=where.base,
        factor=columns if bases else floats(columns),
        partial=floats(partial),
        **where.arguments,
        m=m,
        n=n,
        k=k,
        rows_each=rows_each,
        splits=splits,
        PAIRS=matrix.is_complex(),
        BASES=bases,
        BM=config.rows,
        BN=config.columns,
        K=columns_each,
        **more,
        **options(config.warps),
    )
    return made, partial


def product_launch(where: Matrices, columns: Tensor) -> tuple[Launch, Tensor]:
    """A launch that makes ``M Y``, (A, k, m), from Y as (A, k, n), k <= MAX_COLUMNS; and its result."""
    matrix, (count, k, _) = where.sample, columns.shape
    _, m, n = matrix.shape
    name, kernel, columns_each, more = (
        ("product", product_kernel, power_of_two(k), {})
        if k <= MAX_RANK
        else ("product_many", product_many_kernel, max(16, power_of_two(k)), exact_dot())
    )
    config = where.config(name, k, listed=where.listed, gradient=half_precision(matrix))
    result = columns.new_empty(count, k, m)
    made = Launch(
        kernel,
        (-(-m // config.rows), count),
        matrix=where.base,
        factor=floats(columns),
        result=floats(result),
        **where.arguments,
        m=m,
        n=n,
        k=k,
        PAIRS=matrix.is_complex(),
        BM=config.rows,
        BN=config.columns,
        K=columns_each,
        **more,
        **options(config.warps),
    )
    return made, result


def adjoint_partials(matrix: Tensor, columns: Tensor, active: Tensor | None) -> Tensor:
    """``M^H X`` as (A, splits, k, n) partial sums, from X as (A, k, m), k <= MAX_COLUMNS."""
    run, partial = adjoint_launch(Matrices.of(matrix, active), columns.shape[1], columns)
    run()
    return partial


def product_columns(matrix: Tensor, columns: Tensor, active: Tensor | None) -> Tensor:
    """``M Y`` as (A, k, m), from Y as (A, k, n), k <= MAX_COLUMNS."""
    run, result = product_launch(Matrices.of(matrix, active), columns)
    run()
    return result


def adjoint_product(matrix: Tensor, factor: Tensor, active: Tensor | None = None) -> Tensor:
    """``M^H X``, (A, n, k), for any k."""
    parts = as_columns(factor).split(MAX_COLUMNS, 1)
    sums = [adjoint_partials(matrix, p.contiguous(), active).sum(1) for p in parts]
    return torch.cat(sums, 1).mT


def product(matrix: Tensor, factor: Tensor, active: Tensor | None = None) -> Tensor:
    """``M Y``, (A, m, k), for any k."""
    parts = as_columns(factor).split(MAX_COLUMNS, 1)
    return torch.cat([product_columns(matrix, p.contiguous(), active) for p in parts], 1).mT
