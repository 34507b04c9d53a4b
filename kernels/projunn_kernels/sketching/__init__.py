"""The low-rank factors of a linear layer's gradient, from its input and its output's gradient.

    G = sum g^T conj(x)    Y = orth(G^H R) = orth(sum x^T (conj(g) R))    X = G Y = sum g^T (conj(x) Y)

x is (*batch, rows, n), g (*batch, rows, m), the basis R (*batch, m, k); G ~ X Y^H with X (*batch, m, k)
and Y (*batch, n, k), orthonormal columns.  These are the factors that `projunn_kernels.factor` takes of
G, to rounding, but G, m x n, is never formed: x and g are read twice each, 4 k rows (m + n) flops in
place of 2 rows m n.  Section 3.3 of arXiv 2203.05483 has the sketch of a given G.

`tangent_sketch` keeps what a step along the tangent part A = (W^H G - G^H W)/2 needs (`factorization`):

    Y = orth(A R)    V = orth(W Y)    G ~ [G Y - V (V^H G Y), V] [Y, G^H V]^H

of rank 2k, which has the same products with Y and with V as G, and so the same A Y.  R and Y are
(*batch, n, k), or of the mirror image if W is tall.  x and g are read four times each.

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
    inputs: Sequence[Tensor], grads: Sequence[Tensor], basis: Tensor, pairs: bool = False
) -> tuple[Tensor, Tensor]:
    """X and Y of the formula above, contiguous, in the dtype of ``basis``.

    The sums go over the x of ``inputs`` and the g of ``grads``, at least one of each.  With ``pairs``,
    R, X and Y are complex numbers stored as real pairs, with a trailing axis of size 2; x and g may be.
    The g may have a lower precision than R, as under autocast: x is read in it, too.  Rows that are all
    zero, or none, give X = 0.
    """
    left, right = _sketch(inputs=list(inputs), grads=list(grads), basis=basis, pairs=pairs)
    return left, right


def tangent_sketch(
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor],
    weight: Tensor,
    basis: Tensor,
    pairs: bool = False,
) -> tuple[Tensor, Tensor]:
    """The factors above, (*batch, m, 2k) and (*batch, n, 2k); else as `sketch`, with W in pairs, too."""
    left, right = _tangent_sketch(
        inputs=list(inputs), grads=list(grads), weight=weight, basis=basis, pairs=pairs
    )
    return left, right


def _fake_tangent(
    inputs: list[Tensor], grads: list[Tensor], weight: Tensor, basis: Tensor, pairs: bool
) -> tuple[Tensor, Tensor]:
    return fake_sketch(weight, basis, pairs)


def fake_sketch(weight: Tensor, basis: Tensor, pairs: bool) -> tuple[Tensor, Tensor]:
    """Empty factors of the shapes that `tangent_sketch` returns."""
    rows, rank = (-3, -2) if pairs else (-2, -1)
    trailing = (2,) if pairs else ()
    left, right = (
        basis.new_empty((*basis.shape[:rows], n, 2 * basis.shape[rank], *trailing))
        for n in (weight.shape[rows], weight.shape[rank])
    )
    return left, right


def _fits(inputs: list[Tensor], basis: Tensor, pairs: bool, **_: Any) -> bool:
    rank = basis.shape[-2] if pairs else basis.shape[-1]
    return 0 < rank <= MAX_RANK and basis.numel() > 0 and all(x.numel() > 0 for x in inputs)


def _fake(
    inputs: list[Tensor], grads: list[Tensor], basis: Tensor, pairs: bool
) -> tuple[Tensor, Tensor]:
    n = inputs[0].shape[-1 if inputs[0].is_complex() or not pairs else -2]
    batch, rest = (basis.shape[:-3], basis.shape[-2:]) if pairs else (basis.shape[:-2], basis.shape[-1:])
    right = basis.new_empty((*batch, n, *rest))
    return torch.empty_like(basis, memory_format=torch.contiguous_format), right


_sketch = Operation(
    name="sketch",
    eager=eager.sketch,
    launches="projunn_kernels.sketching.launch:factors",
    fits=_fits,
    fake=_fake,
    on="basis",
)
_tangent_sketch = Operation(
    name="tangent_sketch",
    eager=eager.tangent_sketch,
    launches="projunn_kernels.sketching.launch:tangents",
    fits=_fits,
    fake=_fake_tangent,
    on="basis",
)
