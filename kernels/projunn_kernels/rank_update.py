"""The block-sparse low-rank update ``W[i] += L[i] R[i]^H``, in place.

W is (*batch, m, n), L (*batch, m, r), R (*batch, n, r).  With ``active``, a list (A,) of indices into
W (B, m, n), L and R are (A, m, r) and (A, n, r), and no other block is read or written; negative
indices stand for nothing, so that a list can have a fixed length on the device.  On a GPU a tile whose
rows of L or R are zero is left alone too.

No m x n temporary is made: in PyTorch a few columns go one broadcast pass each, which for real
numbers beats a GEMM whose inner dimension is that short; more columns go as one GEMM.
"""

from torch import Tensor

from projunn_kernels.backends import opaque, operator, uses_triton
from projunn_kernels.blocks import as_blocks, flattened, present
from projunn_kernels.products import product

# Real updates of up to this many columns are faster as passes than as a GEMM (docs/measured.md).
_MAX_PASSES = 4
# A W of more numbers than the first is turned in blocks of rows of the second, which stay in cache.
_LARGE, _BLOCK = 1 << 23, 1 << 20


def rank_update_reference(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The formula, out of place."""
    return weight + left @ right.mH


def rank_update_(weight: Tensor, left: Tensor, right: Tensor, active: Tensor | None = None) -> Tensor:
    """``W += L R^H`` in place; returns ``weight``."""
    if opaque(weight):
        _operator(weight, left, right, active)
    else:
        _update(weight, left, right, active)
    return weight


def turn_rows_(weight: Tensor, basis: Tensor, turned: Tensor) -> None:
    """``W += (W Q) T^H`` in place, in PyTorch: Q is ``basis``, T ``turned``, both (*batch, n, r)."""
    blocks = (weight,)
    few = not weight.is_complex() and basis.shape[-1] <= _MAX_PASSES
    if few and weight.ndim == 2 and weight.numel() > _LARGE:
        blocks = weight.split(max(1, _BLOCK // weight.shape[1]))
    for rows in blocks:
        _passes(rows, product(rows, basis), turned)


def _update(weight: Tensor, left: Tensor, right: Tensor, active: Tensor | None) -> None:
    if uses_triton(weight):
        from projunn_kernels.jit import launch

        with flattened(weight) as blocks:
            launch.rank_update(blocks, as_blocks(left), as_blocks(right), active)
    elif active is None:
        _passes(weight, left, right)
    else:
        chosen = present(active)
        if len(chosen):
            part = weight[chosen]
            weight[chosen] = _passes(part, left[active >= 0], right[active >= 0])


def _passes(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
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
        _passes(block, l, r)
    return weight


@operator("projunn::rank_update_", mutates_args=("weight",))
def _operator(weight: Tensor, left: Tensor, right: Tensor, active: Tensor | None = None) -> None:
    _update(weight, left, right, active)


@_operator.register_fake
def _(weight, left, right, active=None):  # type: ignore[no-untyped-def]
    return None
