"""Launches of the products of matrices with a few columns."""

import torch
from torch import Tensor

from projunn_kernels.configs.problem import Problem, device_of, power_of_two
from projunn_kernels.constants import MAX_RANK
from projunn_kernels.launching import (
    active_count,
    active_list,
    as_columns,
    choose,
    configured,
    floats,
    half_precision,
    launch,
    options,
)
from projunn_kernels.products.kernels import adjoint_product_kernel, product_kernel
from projunn_kernels.products.tiles import row_splits


def adjoint_partials(matrix: Tensor, columns: Tensor, active: Tensor | None) -> Tensor:
    """``M^H X`` as (A, splits, k, n) partial sums, from X as (A, k, m), k <= MAX_RANK."""
    count, k = active_count(active, matrix), columns.shape[1]
    _, m, n = matrix.shape
    problem = Problem("adjoint_product", matrix.is_complex(), k, m, n, count)
    listed = active is not None
    config = choose(problem, matrix.device, active=listed, gradient=half_precision(matrix))
    splits = row_splits(problem, config, device_of(matrix.device))
    rows_each = -(-m // (splits * config.rows)) * config.rows
    splits = -(-m // rows_each)
    partial = columns.new_empty(count, splits, k, n)
    launch(
        adjoint_product_kernel,
        (-(-n // config.columns), splits, count),
        matrix=floats(matrix),
        factor=floats(columns),
        partial=floats(partial),
        active=active_list(partial, active),
        m=m,
        n=n,
        k=k,
        rows_each=rows_each,
        splits=splits,
        PAIRS=matrix.is_complex(),
        ACTIVE=listed,
        BM=config.rows,
        BN=config.columns,
        K=power_of_two(k),
        **options(config.warps),
    )
    return partial


def product_columns(matrix: Tensor, columns: Tensor, active: Tensor | None) -> Tensor:
    """``M Y`` as (A, k, m), from Y as (A, k, n), k <= MAX_RANK."""
    count, k = active_count(active, matrix), columns.shape[1]
    _, m, n = matrix.shape
    listed = active is not None
    config = configured("product", matrix, k, count, active=listed, gradient=half_precision(matrix))
    result = columns.new_empty(count, k, m)
    launch(
        product_kernel,
        (-(-m // config.rows), count),
        matrix=floats(matrix),
        factor=floats(columns),
        result=floats(result),
        active=active_list(result, active),
        m=m,
        n=n,
        k=k,
        PAIRS=matrix.is_complex(),
        ACTIVE=listed,
        BM=config.rows,
        BN=config.columns,
        K=power_of_two(k),
        **options(config.warps),
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
