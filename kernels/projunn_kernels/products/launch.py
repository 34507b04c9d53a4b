"""TODO."""

import torch
from torch import Tensor

from projunn_kernels.configs.closed_form import row_splits
from projunn_kernels.configs.problem import Config, device_of, power_of_two
from projunn_kernels.factorization.eager import MAX_RANK
from projunn_kernels.launching import (
    active_count,
    active_list,
    as_columns,
    chosen,
    floats,
    options,
    problem_of,
)
from projunn_kernels.products.kernels import adjoint_product_kernel, product_kernel


def adjoint_partials(
    matrix: Tensor, columns: Tensor, active: Tensor | None, config: Config | None = None
) -> Tensor:
    """``M^H X`` as (A, splits, k, n) partial sums, from X as (A, k, m), k <= MAX_RANK."""
    count, k = active_count(active, matrix), columns.shape[1]
    _, m, n = matrix.shape
    problem = problem_of("adjoint_product", matrix, k, count)
    c = chosen("adjoint_product", matrix, k, count, config)
    splits = row_splits(problem, c, device_of(matrix.device))
    rows_each = -(-m // (splits * c.rows)) * c.rows
    splits = -(-m // rows_each)
    partial = columns.new_empty(count, splits, k, n)
    adjoint_product_kernel[(-(-n // c.columns), splits, count)](
        floats(matrix),
        floats(columns),
        floats(partial),
        active_list(partial, active),
        m,
        n,
        k,
        rows_each,
        splits,
        PAIRS=matrix.is_complex(),
        ACTIVE=active is not None,
        BM=c.rows,
        BN=c.columns,
        K=power_of_two(k),
        **options(c.warps),
    )
    return partial


def product_columns(
    matrix: Tensor, columns: Tensor, active: Tensor | None, config: Config | None = None
) -> Tensor:
    """``M Y`` as (A, k, m), from Y as (A, k, n), k <= MAX_RANK."""
    count, k = active_count(active, matrix), columns.shape[1]
    _, m, n = matrix.shape
    c = chosen("product", matrix, k, count, config)
    result = columns.new_empty(count, k, m)
    product_kernel[(-(-m // c.rows), count)](
        floats(matrix),
        floats(columns),
        floats(result),
        active_list(result, active),
        m,
        n,
        k,
        PAIRS=matrix.is_complex(),
        ACTIVE=active is not None,
        BM=c.rows,
        BN=c.columns,
        K=power_of_two(k),
        **options(c.warps),
    )
    return result


def adjoint_product(matrix: Tensor, factor: Tensor, active: Tensor | None = None) -> Tensor:
    """``M^H X``, (A, n, k), for any k."""
    parts = as_columns(factor).split(MAX_RANK, 1)
    sums = [adjoint_partials(matrix, p.contiguous(), active).sum(1) for p in parts]
    return torch.cat(sums, 1).mT


def product(matrix: Tensor, factor: Tensor, active: Tensor | None = None) -> Tensor:
    """``M Y``, (A, m, k), for any k."""
    parts = as_columns(factor).split(MAX_RANK, 1)
    return torch.cat([product_columns(matrix, p.contiguous(), active) for p in parts], 1).mT
