"""The low-rank update ``W += L R^H``, in place.

    W[i] += L[i] R[i]^H        W (*batch, m, n), L (*batch, m, r), R (*batch, n, r)

No m x n temporary is made: a few columns go one broadcast pass each, which for real numbers
beats a GEMM whose inner dimension is that short; more columns go as one GEMM.
"""

from torch import Tensor

# Real updates of up to this many columns are faster as passes than as a GEMM (docs/measured.md).
_MAX_PASSES = 4


def rank_update_reference(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The formula, out of place."""
    return weight + left @ right.mH


def rank_update_(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``W += L R^H`` in place; returns ``weight``."""
    rank = left.shape[-1]
    if not weight.is_complex() and rank <= _MAX_PASSES:
        rows = right.mT.contiguous()  # a pass is vectorised only along a contiguous row
        for j in range(rank):
            weight.addcmul_(left[..., j : j + 1], rows[..., j : j + 1, :])
        return weight
    if weight.ndim == 2:
        return weight.addmm_(left, right.mH)
    if weight.ndim == 3:
        return weight.baddbmm_(left, right.mH)
    for block, l, r in zip(weight.unbind(0), left.unbind(0), right.unbind(0), strict=True):
        rank_update_(block, l, r)
    return weight
