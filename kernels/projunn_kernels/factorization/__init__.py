"""The low-rank factors of a matrix from a basis R of its range.

    Y = orth(M^H R)      X = M Y         M ~ X Y^H        two reads of M

M is (*batch, m, n), R and X (*batch, m, k), Y (*batch, n, k).  With ``active`` (A,), M is (B, m, n)
and the factors have A in place of the batch.  M may be float16 or bfloat16 where R is float32.
"""

import torch
from torch import Tensor

from projunn_kernels.constants import MAX_RANK
from projunn_kernels.factorization import eager
from projunn_kernels.factorization.tiles import ORTHONORMAL
from projunn_kernels.operation import Operation
from projunn_kernels.products.tiles import ADJOINT_PRODUCT, PRODUCT

__all__ = ["factor", "orthonormalize"]


def factor(matrix: Tensor, basis: Tensor, active: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Low-rank factors ``X = M Y`` and ``Y = orth(M^H R)``, so that M ~ X Y^H.

    Args:
        matrix: M, (*batch, m, n), real or complex; also float16 or bfloat16 with a float32 ``basis``.
        basis: R, (*batch, m, k).
        active: (A,), the indices of the matrices of M (B, m, n) to factorize, or None for all.  R is
            then (A, m, k).

    Returns:
        X, shaped like R, and Y, (*batch, n, k) or (A, n, k), in the dtype of ``basis``.
    """
    left, right = _factor(matrix=matrix, basis=basis, active=active)
    return left, right


def orthonormalize(columns: Tensor) -> Tensor:
    """An orthonormal basis of a few columns: (*batch, n, k) gives (*batch, n, min(n, k)), same dtype.

    Columns that depend on the others, or are zero, give something finite.  On a CPU, for k > 1, that is
    a unit vector orthogonal to the others; for k = 1 and on a GPU it may be zero or almost zero.
    """
    basis: Tensor = _orthonormalize(columns=columns)
    return basis


def _some_columns(columns: Tensor) -> bool:
    n, k = columns.shape[-2:]
    return 1 < k <= min(n, MAX_RANK) and columns.numel() > 0


def _fake_basis(columns: Tensor) -> Tensor:
    n, k = columns.shape[-2:]
    return columns.new_empty((*columns.shape[:-1], min(n, k)))


def _fake(matrix: Tensor, basis: Tensor, active: Tensor | None = None) -> list[Tensor]:
    right = basis.new_empty((*basis.shape[:-2], matrix.shape[-1], basis.shape[-1]))
    return [torch.empty_like(basis, memory_format=torch.contiguous_format), right]


_factor = Operation(
    name="factor",
    eager=eager.factor,
    launches="projunn_kernels.factorization.launch:factors",
    fake=_fake,
    on="matrix",
    kernels=(ADJOINT_PRODUCT, PRODUCT),
    plain=eager.plain_factor,
)
_orthonormalize = Operation(
    name="orthonormalize",
    eager=eager.orthonormalize,
    launches="projunn_kernels.factorization.launch:orthonormal_columns",
    fits=_some_columns,
    fake=_fake_basis,
    on="columns",
    kernels=(ORTHONORMAL,),
    plain=eager.plain_orthonormalize,
)
