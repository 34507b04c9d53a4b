"""Launches that find low-rank factors: of a matrix, and of a gradient that is never formed.

Tensors as in `projunn_kernels.jit.launch`, whose skinny products these are made of.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from projunn_kernels.jit.launch import (
    adjoint_partials,
    as_columns,
    chosen,
    floats,
    options,
    product_columns,
)
from projunn_kernels.jit.step_basis import orthonormal_kernel
from projunn_kernels.problems import power_of_two


def factor(matrix: Tensor, basis: Tensor, active: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``Y = orth(M^H R)``, ``X = M Y``: X (A, m, k), Y (A, n, k), k <= MAX_RANK; two reads of M."""
    right = orthonormal(adjoint_partials(matrix, as_columns(basis), active), matrix)
    return product_columns(matrix, right, active).mT, right.mT


def orthonormal(partial: Tensor, matrix: Tensor) -> Tensor:
    """The columns of what the partial sums (A, splits, k, n) of ``M^H X`` add up to, orthonormal."""
    count, splits, k, n = partial.shape
    result = partial.new_empty(count, k, n)
    c = chosen("basis", matrix, k, count, None)
    orthonormal_kernel[(count,)](
        floats(partial),
        floats(result),
        n,
        k,
        splits,
        PAIRS=partial.is_complex(),
        BN=c.columns,
        K=power_of_two(k),
        **options(c.warps),
    )
    return result


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
