"""The low-rank update in PyTorch.

No m x n temporary is made.  A few columns take a broadcast pass each, which for real numbers is faster
than a GEMM with so short an inner dimension, except where MKL is fast at these; more columns take one
GEMM.
"""

import torch
from torch import Tensor

from projunn_kernels.batches import as_matrices, flattened, present
from projunn_kernels.products import processor
from projunn_kernels.products.eager import product, product_by_rows

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


def rotate_rows_(weight: Tensor, basis: Tensor, rotated: Tensor, known: Tensor | None = None) -> None:
    """``W += (W Q) T^H`` in place, in PyTorch: Q is ``basis``, T ``rotated``, both (*batch, n, r).

    Q may lack its first columns, if ``known`` is the product of W with them.
    """
    few = not weight.is_complex() and rotated.shape[-1] <= _MAX_PASSES
    if not (few and weight.ndim == 2 and weight.numel() > _LARGE):
        left = (product_by_rows if known is not None and weight.ndim > 2 else product)(weight, basis)
        _passes(weight, left if known is None else torch.cat([known, left], dim=-1), rotated)
        return
    each = max(1, _BLOCK // weight.shape[1])
    begun = [None] * len(weight) if known is None else known.split(each)
    for rows, first in zip(weight.split(each), begun, strict=known is not None):
        left = product(rows, basis)
        _passes(rows, left if first is None else torch.cat([first, left], dim=-1), rotated)


def _passes(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    rank, rows = left.shape[-1], right.mH
    if not weight.is_complex() and rank <= _MAX_PASSES:
        rows = rows.contiguous()  # a pass is vectorised only along a contiguous row
        if weight.device.type != "cpu" or not processor.short_products_are_fast():
            for j in range(rank):
                weight.addcmul_(left[..., j : j + 1], rows[..., j : j + 1, :])
            return weight
    if weight.ndim == 2:
        return weight.addmm_(left, rows)
    if weight.ndim == 3 and weight.numel() > 0:
        return weight.baddbmm_(left, rows)
    if weight.numel() > 0:
        with flattened(weight) as matrices:
            matrices.baddbmm_(as_matrices(left), as_matrices(rows))
    return weight
