"""TODO."""

from collections.abc import Sequence

import torch
from torch import Tensor

from projunn_kernels.factorization.launch import orthonormal
from projunn_kernels.launching import as_columns
from projunn_kernels.products.launch import adjoint_partials, product_columns


def sketch(inputs: Sequence[Tensor], grads: Sequence[Tensor], basis: Tensor) -> tuple[Tensor, Tensor]:
    """`projunn_kernels.sketch` of x (B, rows, n) and g (B, rows, m), k <= MAX_RANK: X and Y.

    Four launches for each x and g, and one for all.  The kernels make ``M Y`` and ``M^H X``: everything
    but x and g is conjugated on the way in and out.
    """
    pairs = list(zip(inputs, grads, strict=True))
    start = as_columns(basis.conj())
    pulled = [adjoint_partials(x, product_columns(g, start, None), None) for x, g in pairs]
    right = orthonormal(torch.cat(pulled, 1), inputs[0])
    pushed = [adjoint_partials(g, product_columns(x, right, None), None) for x, g in pairs]
    return torch.cat(pushed, 1).sum(1).conj().mT, right.conj().mT
