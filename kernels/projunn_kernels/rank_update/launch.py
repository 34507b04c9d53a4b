"""The launch of the low-rank update."""

from torch import Tensor

from projunn_kernels.batches import as_matrices, flattened
from projunn_kernels.configs.problem import power_of_two
from projunn_kernels.constants import MAX_RANK
from projunn_kernels.launching import (
    active_count,
    active_list,
    as_columns,
    configured,
    floats,
    launch,
    options,
)
from projunn_kernels.rank_update.kernels import rank_update_kernel


def update(weight: Tensor, left: Tensor, right: Tensor, active: Tensor | None = None) -> None:
    """`projunn_kernels.rank_update_` of tensors as users have them."""
    with flattened(weight) as matrices:
        rank_update(matrices, as_matrices(left), as_matrices(right), active)


def rank_update(weight: Tensor, left: Tensor, right: Tensor, active: Tensor | None = None) -> None:
    """``W[i] += L[i] R[i]^H``, in place, for any k: one launch."""
    count, k = active_count(active, weight), left.shape[-1]
    _, m, n = weight.shape
    if count == 0 or weight.numel() == 0 or k == 0:
        return
    listed = active is not None
    config = configured("rank_update", weight, min(k, MAX_RANK), count, active=listed)
    columns = as_columns(left)
    launch(
        rank_update_kernel,
        (-(-m // config.rows), -(-n // config.columns), count),
        weight=floats(weight),
        left=floats(columns),
        right=floats(as_columns(right)),
        active=active_list(columns, active),
        m=m,
        n=n,
        k=k,
        PAIRS=weight.is_complex(),
        ACTIVE=listed,
        BM=config.rows,
        BN=config.columns,
        K=power_of_two(k),
        **options(config.warps),
    )
