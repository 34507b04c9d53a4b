"""The launch of the low-rank update."""

from torch import Tensor

from projunn_kernels.batches import as_matrices, flattened
from projunn_kernels.configs.problem import power_of_two
from projunn_kernels.constants import MAX_RANK
from projunn_kernels.launching import (
    Launch,
    Matrices,
    as_columns,
    exact_dot,
    floats,
    options,
)
from projunn_kernels.rank_update.kernels import rank_update_kernel, update_many_kernel

_FEW = 2 * MAX_RANK  # columns that are added one after the other


def update(weight: Tensor, left: Tensor, right: Tensor, active: Tensor | None = None) -> None:
    """`projunn_kernels.rank_update_` of tensors as users have them."""
    with flattened(weight) as matrices:
        rank_update(matrices, as_matrices(left), as_matrices(right), active)


def rank_update(weight: Tensor, left: Tensor, right: Tensor, active: Tensor | None = None) -> None:
    """``W[i] += L[i] R[i]^H``, in place, for any k: one launch."""
    where, k = Matrices.of(weight, active), left.shape[-1]
    if where.count == 0 or weight.numel() == 0 or k == 0:
        return
    make = update_launch if k > _FEW else few_launch
    make(where, as_columns(left), as_columns(right))()


def few_launch(where: Matrices, left: Tensor, right: Tensor) -> Launch:
    """A launch that makes ``W += L R^H``, from L as (A, k, m) and R as (A, k, n), k <= 2 MAX_RANK."""
    weight, k = where.sample, left.shape[1]
    _, m, n = weight.shape
    config = where.config("rank_update", min(k, MAX_RANK), listed=where.listed)
    arguments = {name: value for name, value in where.arguments.items() if name != "TYPE"}
    return Launch(
        rank_update_kernel,
        (-(-m // config.rows), -(-n // config.columns), where.count),
        weight=where.base,
        left=floats(left),
        right=floats(right),
        **arguments,
        m=m,
        n=n,
        k=k,
        PAIRS=weight.is_complex(),
        BM=config.rows,
        BN=config.columns,
        K=power_of_two(k),
        **options(config.warps),
    )


def update_launch(where: Matrices, left: Tensor, right: Tensor, taken: Tensor | None = None) -> Launch:
    """A launch that makes ``W += L R^H`` for many columns, from L as (A, k, m) and R as (A, k, n).

    With ``taken`` (A,), int8, only of the matrices whose entry is set.
    """
    weight, k = where.sample, left.shape[1]
    _, m, n = weight.shape
    config = where.config("update_many", k, listed=where.listed, masked=taken is not None)
    arguments = {name: value for name, value in where.arguments.items() if name != "TYPE"}
    return Launch(
        update_many_kernel,
        (-(-m // config.rows), -(-n // config.columns), where.count),
        weight=where.base,
        left=floats(left),
        right=floats(right),
        taken_mask=floats(left) if taken is None else taken,
        **arguments,
        m=m,
        n=n,
        k=k,
        PAIRS=weight.is_complex(),
        MASKED=taken is not None,
        BM=config.rows,
        BN=config.columns,
        K=32,
        **exact_dot(),
        **options(config.warps),
    )
