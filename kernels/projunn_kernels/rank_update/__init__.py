"""The block-sparse low-rank update ``W[i] += L[i] R[i]^H``, in place.

W is (*batch, m, n), L (*batch, m, r), R (*batch, n, r).  With ``active``, a list (A,) of indices into W
(B, m, n), L is (A, m, r) and R (A, n, r), and no other matrix is read or written.  A negative index
stands for no matrix, so that a list can have a fixed length on the device.  On a GPU, and up to 16
columns, tiles whose rows of L or of R are zero are neither read nor written.
"""

from torch import Tensor

from projunn_kernels.operation import Operation, nothing
from projunn_kernels.rank_update import eager
from projunn_kernels.rank_update.tiles import RANK_UPDATE, UPDATE_MANY

_rank_update = Operation(
    name="rank_update_",
    eager=eager.rank_update,
    launches="projunn_kernels.rank_update.launch:update",
    fake=nothing,
    on="weight",
    kernels=(RANK_UPDATE, UPDATE_MANY),
    mutates=("weight",),
)


def rank_update_(weight: Tensor, left: Tensor, right: Tensor, active: Tensor | None = None) -> Tensor:
    """``W += L R^H`` in place; returns ``weight``.

    Args:
        weight: W, (*batch, m, n), real or complex.
        left, right: L (*batch, m, r) and R (*batch, n, r), of the same dtype.
        active: (A,), the indices of the matrices of W (B, m, n) to update, each at most once, or None
            for all.  L is then (A, m, r) and R (A, n, r); entries of negative index are left out.
    """
    _rank_update(weight=weight, left=left, right=right, active=active)
    return weight
