"""Factors of a matrix in PyTorch."""

from math import hypot, inf
from operator import getitem

import torch
from torch import Tensor

from projunn_kernels import iterations
from projunn_kernels.arrays import Array, namespace
from projunn_kernels.backends import on_device
from projunn_kernels.batches import surely_all
from projunn_kernels.products.eager import adjoint_product, product, product_by_rows

_SMALLEST = 1e-150  # norms below are zero: their squares underflow in float64
# Parts of QR's triangle that are rounding: below 16 eps of the largest in their columns, or below these.
_DEPENDENT = 16
_NOTHING = {4: 1e-30, 8: 1e-290}  # by the bytes of a real number


def factor(matrix: Tensor, basis: Tensor, active: Tensor | None = None) -> list[Tensor]:
    """X and Y: see `projunn_kernels.factor`."""
    if active is not None:
        matrix = matrix[active.clamp_min(0).long()]
    matrix = matrix.to(basis.dtype)
    right = orthonormalize(adjoint_product(matrix, basis))
    return [product(matrix, right), right]


def tangent_factors(
    matrix: Tensor, weight: Tensor, basis: Tensor, active: Tensor | None = None
) -> list[Tensor]:
    """Z, Y and W Y: see `projunn_kernels.tangent_factors`."""
    if active is not None:
        weight = weight[active.clamp_min(0).long()]
    matrix = matrix.to(basis.dtype)
    into, back = (product if weight.ndim == 2 else product_by_rows), adjoint_product
    if weight.shape[-2] > weight.shape[-1]:
        into, back = back, into
    if of_full_rank(weight, basis):
        right = weight if into is adjoint_product else weight.mH
        right = right.clone(memory_format=torch.contiguous_format)
    else:
        doubled = back(weight, into(matrix, basis)) - back(matrix, into(weight, basis))
        right = orthonormalize(doubled)
    moved = into(weight, right)
    doubled = back(weight, into(matrix, right)) - back(matrix, moved)
    return [off_corner(doubled, right), right, moved]


def of_full_rank(weight: Tensor, basis: Tensor) -> bool:
    """Whether a step can have all of A: one with Y = W^H has no corner."""
    return basis.shape[-1] == min(weight.shape[-2:])


def off_corner(doubled: Tensor, right: Tensor) -> Tensor:
    """``Z = 2 B - Y S`` from 2 B and Y, with S = Y^H B, which is skew-Hermitian but for rounding."""
    if right.shape[-1] == 1 and not right.is_complex():
        return doubled  # S is zero
    inner = right.mH @ doubled
    return doubled - right @ ((inner - inner.mH) / 4)


def orthonormalize(columns: Tensor) -> Tensor:
    """An orthonormal basis of a few columns: see `projunn_kernels.orthonormalize`."""
    if columns.shape[-1] == 1:
        norm = vector_norms(columns.mT)
        if columns.element_size() > 4 * (1 + columns.is_complex()):  # squares may leave float64
            size = torch.linalg.vector_norm(columns, torch.inf, dim=(-2, -1), keepdim=True)
            apart = (size < 1e-140) | (size > 1e140)
            if not surely_all(~apart):
                scaled = columns / size.clamp_min(torch.finfo(columns.dtype).tiny)
                columns = torch.where(apart, scaled, columns)
                norm = vector_norms(columns.mT)
        return (columns / norm.clamp_min(_SMALLEST)).to(columns.dtype)
    regular = None
    if not on_device(columns):
        q, r = torch.linalg.qr(columns)
        regular = _regular(r)
        if regular is None:
            return q
    n, k = columns.shape[-2:]
    if k > n or columns.numel() == 0:  # any basis of the whole space will do
        identity = torch.eye(n, min(n, k), dtype=columns.dtype, device=columns.device)
        basis = identity.expand(*columns.shape[:-1], -1).contiguous()
    else:
        precise = columns.to(torch.complex128 if columns.is_complex() else torch.float64)
        basis = iterations.orthonormal(precise).to(columns.dtype).contiguous()
    return basis if regular is None else torch.where(regular[..., None, None], q, basis)


def _regular(r: Tensor) -> Tensor | None:
    """Which triangles R of a QR decomposition are of independent columns; None: all.

    LAPACK's QR of other complex columns may hold NaN, and fills up with directions that they lack.
    """
    nothing = _NOTHING[r.element_size() // (1 + r.is_complex())]
    if r.ndim == 2:
        parts = list(map(getitem, r.tolist(), range(len(r))))  # the diagonal
        # A complex number's ``abs`` raises where it overflows.
        parts = [hypot(x.real, x.imag) for x in parts] if r.is_complex() else list(map(abs, parts))
        least_part = max(nothing, 1e-4 * max(parts, default=0.0))
        if sum(parts) < inf and min(parts, default=inf) > least_part:  # a NaN is in the sum
            return None
    regular = regular_triangles(r)
    return None if bool(regular.all()) else regular


def regular_triangles(r: Array) -> Array:
    """Which R (*batch, k, n) of QR decompositions are of independent columns; False for NaN."""
    xp = namespace(r)
    parts, precision = abs(r[..., : r.shape[-2]]), xp.finfo(r.dtype)
    sizes, columns = xp.linalg.diagonal(parts), xp.amax(parts, -2)
    least = xp.clip(_DEPENDENT * precision.eps * columns, _NOTHING[precision.bits // 8], None)
    return (sizes > least).all(-1)


def plain_factor(matrix: Tensor, basis: Tensor, active: Tensor | None = None) -> list[Tensor]:
    """`factor` in operations that PyTorch differentiates, on every device."""
    if active is not None:
        matrix = matrix[active.clamp_min(0).long()]
    matrix = matrix.to(basis.dtype)
    right = plain_orthonormalize(matrix.mH @ basis)
    return [matrix @ right, right]


def plain_orthonormalize(columns: Tensor) -> Tensor:
    """`orthonormalize` in operations that PyTorch differentiates, on every device."""
    return orthonormalize(columns) if columns.shape[-1] == 1 else torch.linalg.qr(columns)[0]


def vector_norms(vectors: Tensor) -> Tensor:
    """2-norms along the last axis, which is kept, in float64.

    Of complex numbers as pairs: PyTorch's norm of complex ones takes 5 to 30 times as long.
    """
    if vectors.is_complex():
        vectors = torch.view_as_real(vectors.resolve_conj()).flatten(-2)
    return torch.linalg.vector_norm(vectors, dim=-1, keepdim=True, dtype=torch.float64)
