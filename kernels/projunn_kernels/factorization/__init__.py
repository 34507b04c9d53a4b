"""The low-rank factors of a matrix, and of its tangent part, from a basis R.

    Y = orth(M^H R)      X = M Y         M ~ X Y^H                                   two reads of M

    A = (W^H M - M^H W)/2                the part of M that moves a unitary W
    Y = orth(A R)        B = A Y         Z = 2 B - Y (Y^H B)        A ~ skew(Z Y^H)  two reads of M

M is (*batch, m, n), R and X (*batch, m, k), Y (*batch, n, k).  With ``active`` (A,), M is (B, m, n)
and the factors have A in place of the batch.  M may be float16 or bfloat16 where R is float32.

A is never formed.  It is applied to a few columns: A R = (W^H (M R) - M^H (W R))/2.  The skew-Hermitian
part of Z Y^H is P A P less its corner (I - Y Y^H) P A P (I - Y Y^H), with P the projector on the span of
Y and A Y: a step along it is a step along a projection of A, and so never goes uphill.  Of full rank,
k = min(m, n), Y is W^H, and there is no corner.  Here R, Y and Z are (*batch, n, k); for tall matrices
(m > n) they belong to M^H and W^H, and are (*batch, m, k).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from projunn_kernels.constants import MAX_MANY
from projunn_kernels.factorization import eager
from projunn_kernels.factorization.tiles import ORTHONORMAL, TRIANGLE
from projunn_kernels.operation import Operation
from projunn_kernels.products.tiles import (
    ADJOINT_MANY,
    ADJOINT_PRODUCT,
    PRODUCT,
    PRODUCT_MANY,
)

__all__ = ["TangentFactors", "factor", "orthonormalize", "tangent_factors"]


class TangentFactors(NamedTuple):
    """Z and Y, (*batch, n, k), and W Y, (*batch, m, k); of the mirror image if W is tall."""

    pulled: Tensor
    right: Tensor
    moved: Tensor


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


def tangent_factors(
    matrix: Tensor, weight: Tensor, basis: Tensor, active: Tensor | None = None
) -> TangentFactors:
    """Z, Y and W Y of the tangent part, in the dtype of ``basis``; Y has orthonormal columns.

    With ``active`` only ``weight`` is (B, m, n): ``matrix`` (A, m, n) and the basis belong to the list.
    """
    return TangentFactors(*_tangent(matrix=matrix, weight=weight, basis=basis, active=active))


def orthonormalize(columns: Tensor) -> Tensor:
    """An orthonormal basis of a few columns: (*batch, n, k) gives (*batch, n, min(n, k)), same dtype.

    Columns that depend on the others, or are zero, give something finite.  On a CPU, for k > 1, that is
    a unit vector orthogonal to the others; for k = 1 and on a GPU it may be zero or almost zero.
    """
    basis: Tensor = _orthonormalize(columns=columns)
    return basis


def _some_columns(columns: Tensor) -> bool:
    n, k = columns.shape[-2:]
    return 1 < k <= min(n, MAX_MANY) and columns.numel() > 0


def _fake_basis(columns: Tensor) -> Tensor:
    n, k = columns.shape[-2:]
    return columns.new_empty((*columns.shape[:-1], min(n, k)))


def _fake(matrix: Tensor, basis: Tensor, active: Tensor | None = None) -> list[Tensor]:
    right = basis.new_empty((*basis.shape[:-2], matrix.shape[-1], basis.shape[-1]))
    return [torch.empty_like(basis, memory_format=torch.contiguous_format), right]


def _fake_tangent(
    matrix: Tensor, weight: Tensor, basis: Tensor, active: Tensor | None = None
) -> list[Tensor]:
    moved = basis.new_empty((*basis.shape[:-2], min(matrix.shape[-2:]), basis.shape[-1]))
    return [*(torch.empty_like(basis, memory_format=torch.contiguous_format) for _ in range(2)), moved]


_factor = Operation(
    name="factor",
    eager=eager.factor,
    launches="projunn_kernels.factorization.launch:factors",
    fake=_fake,
    on="matrix",
    kernels=(ADJOINT_PRODUCT, PRODUCT, ADJOINT_MANY, PRODUCT_MANY),
    plain=eager.plain_factor,
)
_tangent = Operation(
    name="tangent_factors",
    eager=eager.tangent_factors,
    launches="projunn_kernels.factorization.launch:tangents",
    fake=_fake_tangent,
    on="weight",
)
_orthonormalize = Operation(
    name="orthonormalize",
    eager=eager.orthonormalize,
    launches="projunn_kernels.factorization.launch:orthonormal_columns",
    fits=_some_columns,
    fake=_fake_basis,
    on="columns",
    kernels=(ORTHONORMAL, TRIANGLE),
    plain=eager.plain_orthonormalize,
)
