"""Launches of the sketch of a gradient that is never formed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from projunn_kernels.batches import as_matrices, contiguous_matrices
from projunn_kernels.factorization.launch import orthonormal
from projunn_kernels.launching import as_columns
from projunn_kernels.products.launch import adjoint_partials, product_columns
from projunn_kernels.sketching.eager import numbers, stored


def factors(
    inputs: list[Tensor], grads: list[Tensor], basis: Tensor, pairs: bool, group: str = ""
) -> tuple[Tensor, Tensor]:
    """`projunn_kernels.sketch`, without a ``group``, of tensors as users have them."""
    inputs, grads, basis = numbers(inputs, grads, basis, pairs)
    xs, gs = ([contiguous_matrices(t) for t in tensors] for tensors in (inputs, grads))
    left, right = sketch(xs, gs, as_matrices(basis))
    batch = basis.shape[:-2]
    left, right = (t.reshape(*batch, *t.shape[-2:]).resolve_conj() for t in (left, right))
    return stored(left, right, pairs)


def sketch(inputs: Sequence[Tensor], grads: Sequence[Tensor], basis: Tensor) -> tuple[Tensor, Tensor]:
    """`projunn_kernels.sketch` of x (B, rows, n) and g (B, rows, m), k <= MAX_RANK: X and Y.

    Four launches for each x and g, and one for all.  The kernels make ``M Y`` and ``M^H X``: everything
    but x and g is conjugated on the way in and out.
    """
    both = list(zip(inputs, grads, strict=True))
    start = as_columns(basis.conj())
    pulled = [adjoint_partials(x, product_columns(g, start, None), None) for x, g in both]
    right = orthonormal(_joined(pulled))
    pushed = [adjoint_partials(g, product_columns(x, right, None), None) for x, g in both]
    return _joined(pushed).sum(1).conj().mT, right.conj().mT


def _joined(partials: list[Tensor]) -> Tensor:
    """The partial sums of all x and g side by side; those of a single one are not copied."""
    return partials[0] if len(partials) == 1 else torch.cat(partials, 1)
