"""The low-rank update in PyTorch.

No m x n temporary is made.  A few columns take a broadcast pass each, which for real numbers is faster
than a GEMM with so short an inner dimension; more columns take one GEMM.
"""

from torch import Tensor

from projunn_kernels.batches import as_matrices, flattened, present
from projunn_kernels.products.eager import product

# Real updates of up to this many columns are faster as passes than as a GEMM (docs/measured.md).
_MAX_PASSES = 4
# A W of more numbers than the first is updated in panels of rows of the second, which stay in cache.
_LARGE, _BLOCK = 1 << 23, 1 << 20


def rank_update(weight: Tensor, left: Tensor, right: Tensor, active: Tensor | None = None) -> None:
    """``W += L R^H`` in place; shapes as in `projunn_kernels.rank_update_`."""
    if active is None:
        _passes(weight, left, right)
        return
    chosen = present(active)
    if len(chosen):
        part = weight[chosen]
        weight[chosen] = _passes(part, left[active >= 0], right[active >= 0])


def rotate_rows_(weight: Tensor, basis: Tensor, rotated: Tensor) -> None:
    """``W += (W Q) T^H`` in place, in PyTorch: Q is ``basis``, T ``rotated``, both (*batch, n, r)."""
    blocks = (weight,)
    few = not weight.is_complex() and basis.shape[-1] <= _MAX_PASSES
    if few and weight.ndim == 2 and weight.numel() > _LARGE:
        blocks = weight.split(max(1, _BLOCK // weight.shape[1]))
    for rows in blocks:
        _passes(rows, product(rows, basis), rotated)


def _passes(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    rank = left.shape[-1]
    if not weight.is_complex() and rank <= _MAX_PASSES:
        rows = right.mT.contiguous()  # a pass is vectorised only along a contiguous row
        for j in range(rank):
            weight.addcmul_(left[..., j : j + 1], rows[..., j : j + 1, :])
        return weight
    if weight.ndim == 2:
        return weight.addmm_(left, right.mH)
    if weight.ndim == 3 and weight.numel() > 0:
        return weight.baddbmm_(left, right.mH)
    if weight.numel() > 0:
        with flattened(weight) as matrices:
            matrices.baddbmm_(as_matrices(left), as_matrices(right).mH)
    return weight
