"""Factors of a matrix in PyTorch."""

import torch
from torch import Tensor

from projunn_kernels import iterations
from projunn_kernels.backends import on_device
from projunn_kernels.products.eager import adjoint_product, product

_SMALLEST = 1e-150  # norms below are zero: their squares underflow in float64


def factor(matrix: Tensor, basis: Tensor, active: Tensor | None = None) -> list[Tensor]:
    """X and Y: see `projunn_kernels.factor`."""
    if active is not None:
        matrix = matrix[active.clamp_min(0).long()]
    matrix = matrix.to(basis.dtype)
    right = orthonormalize(adjoint_product(matrix, basis))
    return [product(matrix, right), right]


def orthonormalize(columns: Tensor) -> Tensor:
    """An orthonormal basis of a few columns: see `projunn_kernels.orthonormalize`."""
    if columns.shape[-1] == 1:
        norm = vector_norms(columns.mT)
        return (columns / norm.clamp_min(_SMALLEST)).to(columns.dtype)
    if not on_device(columns):
        return torch.linalg.qr(columns)[0]
    n, k = columns.shape[-2:]
    if k > n or columns.numel() == 0:  # any basis of the whole space will do
        identity = torch.eye(n, min(n, k), dtype=columns.dtype, device=columns.device)
        return identity.expand(*columns.shape[:-1], -1).contiguous()
    precise = columns.to(torch.complex128 if columns.is_complex() else torch.float64)
    return iterations.orthonormal(precise).to(columns.dtype).contiguous()


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
