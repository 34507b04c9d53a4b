"""The low-rank factors of a linear layer's gradient, from its input and its output's gradient.

    G = sum g^T conj(x)    Y = orth(G^H R) = orth(sum x^T (conj(g) R))    X = G Y = sum g^T (conj(x) Y)

x is (*batch, rows, n), g (*batch, rows, m), the basis R (*batch, m, k); G ~ X Y^H with X (*batch, m, k)
and Y (*batch, n, k), orthonormal columns.  These are the factors that `projunn_kernels.factor` takes of
G, to rounding, but G, m x n, is never formed: x and g are read twice each, 4 k rows (m + n) flops in
place of 2 rows m n.  Section 3.3 of arXiv 2203.05483 has the sketch of a given G.

On a GPU, for k up to `MAX_RANK`, the kernels are those of `factor`: four launches for each x and g, and
one for all.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from projunn_kernels.constants import MAX_RANK
from projunn_kernels.operation import Operation
from projunn_kernels.sketching import eager


def sketch(
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor],
    basis: Tensor,
    pairs: bool = False,
    group: str = "",
) -> tuple[Tensor, Tensor]:
    """Low-rank factors of the gradient ``G = sum g^T conj(x) ~ X Y^H``, which is not formed.

        Y = orth(sum x^T (conj(g) R))        X = sum g^T (conj(x) Y)

    Args:
        inputs: the x, at least one, (*batch, rows, n).
        grads: the g, one for each x, (*batch, rows, m).  They may have a lower precision than R, as
            under autocast; x is then converted to it.
        basis: R, (*batch, m, k).
        pairs: True if R, X and Y are complex numbers stored as pairs of reals, with a trailing axis of
            size 2; x and g may be pairs or complex.
        group: name of a group of processes (`projunn_kernels.sketching.ranks`), or none.  With it the
            factors are those of the mean of their G, the same on all of them, if R is.

    Returns:
        X (*batch, m, k) and Y (*batch, n, k) in the dtype of ``basis``.  If all rows are
        zero, or there are none, X is zero.
    """
    left, right = _sketch(inputs=list(inputs), grads=list(grads), basis=basis, pairs=pairs, group=group)
    return left, right


def _fits(inputs: list[Tensor], basis: Tensor, pairs: bool, group: str = "", **_: Any) -> bool:
    rank = basis.shape[-2] if pairs else basis.shape[-1]
    return (
        not group and 0 < rank <= MAX_RANK and basis.numel() > 0 and all(x.numel() > 0 for x in inputs)
    )


def _fake(
    inputs: list[Tensor], grads: list[Tensor], basis: Tensor, pairs: bool, group: str = ""
) -> tuple[Tensor, Tensor]:
    n = inputs[0].shape[-1 if inputs[0].is_complex() or not pairs else -2]
    batch, rest = (basis.shape[:-3], basis.shape[-2:]) if pairs else (basis.shape[:-2], basis.shape[-1:])
    right = basis.new_empty((*batch, n, *rest))
    return torch.empty_like(basis, memory_format=torch.contiguous_format), right


def _flops(
    inputs: list[Tensor], grads: list[Tensor], basis: Tensor, pairs: bool, group: str = ""
) -> int:
    """Two products with k columns for each x and each g."""
    is_pairs_or_complex = pairs or basis.is_complex()
    rank = basis.shape[-2] if pairs else basis.shape[-1]
    stored = sum(t.numel() // (2 if pairs and not t.is_complex() else 1) for t in (*inputs, *grads))
    return 4 * rank * stored * (4 if is_pairs_or_complex else 1)


_sketch = Operation(
    name="sketch",
    eager=eager.sketch,
    launches="projunn_kernels.sketching.launch:factors",
    fits=_fits,
    fake=_fake,
    flops=_flops,
    on="basis",
)
