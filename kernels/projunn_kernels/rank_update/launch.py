"""TODO."""

from torch import Tensor

from projunn_kernels.configs.problem import Config, power_of_two
from projunn_kernels.factorization.eager import MAX_RANK
from projunn_kernels.launching import active_count, active_list, as_columns, chosen, floats, options
from projunn_kernels.rank_update.kernels import rank_update_kernel


def rank_update(
    weight: Tensor,
    left: Tensor,
    right: Tensor,
    active: Tensor | None = None,
    config: Config | None = None,
) -> None:
    """``W[i] += L[i] R[i]^H``, in place, for any k: one launch."""
    count, k = active_count(active, weight), left.shape[-1]
    _, m, n = weight.shape
    if count == 0 or weight.numel() == 0 or k == 0:
        return
    c = chosen("rank_update", weight, min(k, MAX_RANK), count, config)
    columns = as_columns(left)
    rank_update_kernel[(-(-m // c.rows), -(-n // c.columns), count)](
        floats(weight),
        floats(columns),
        floats(as_columns(right)),
        active_list(columns, active),
        m,
        n,
        k,
        PAIRS=weight.is_complex(),
        ACTIVE=active is not None,
        BM=c.rows,
        BN=c.columns,
        K=power_of_two(k),
        **options(c.warps),
    )
