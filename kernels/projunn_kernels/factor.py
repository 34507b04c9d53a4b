"""The low-rank factors of a matrix from a basis R of its range.

    Y = orth(M^H R)      X = M Y         M ~ X Y^H        two reads of M

M is (*batch, m, n), R and X (*batch, m, k), Y (*batch, n, k).  With ``active`` (A,), M is (B, m, n)
and the factors have A in place of the batch.  M may be float16 or bfloat16 where R is float32.
"""

import torch
from torch import Tensor

from projunn_kernels.backends import opaque, operator, uses_triton
from projunn_kernels.blocks import as_blocks
from projunn_kernels.products import adjoint_product, product

# Share of a fixed random direction in a warm basis, without which a gradient orthogonal to the basis
# would be invisible for ever.
PROBE = 0.01
MAX_RANK = 8  # of the kernels that orthonormalize in registers; wider factors use library functions
_SMALLEST = 1e-150  # norms below are zero: their squares underflow in float64


def factor(matrix: Tensor, basis: Tensor, active: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """X and Y of the formula above, in the dtype of ``basis``."""
    if opaque(matrix):
        left, right = _operator(matrix, basis, active)
        return left, right
    return _factor(matrix, basis, active)


def _factor(matrix: Tensor, basis: Tensor, active: Tensor | None) -> tuple[Tensor, Tensor]:
    if not uses_triton(matrix):
        if active is not None:
            matrix = matrix[active.clamp_min(0).long()]
        matrix = matrix.to(basis.dtype)
        right = orthonormalize(adjoint_product(matrix, basis))
        return product(matrix, right), right
    from projunn_kernels.jit import launch, launch_factors

    blocks, start = as_blocks(matrix.contiguous()), as_blocks(basis)
    if basis.shape[-1] <= MAX_RANK:
        left, right = launch_factors.factor(blocks, start, active)
    else:
        right = orthonormalize(launch.adjoint_product(blocks, start, active))
        left = launch.product(blocks, right, active)
    batch = basis.shape[:-2]
    return left.reshape(*batch, *left.shape[-2:]), right.reshape(*batch, *right.shape[-2:])


def orthonormalize(columns: Tensor) -> Tensor:
    """Orthonormal basis (*batch, n, k) of a few columns; a zero matrix gives some finite one."""
    if columns.shape[-1] > 1:
        return torch.linalg.qr(columns)[0]
    norm = vector_norms(columns.mT)
    return (columns / norm.clamp_min(_SMALLEST)).to(columns.dtype)


def vector_norms(vectors: Tensor) -> Tensor:
    """2-norms along the last axis, which is kept, in float64.

    Of complex numbers as pairs: PyTorch's norm of complex ones takes 5 to 30 times as long.
    """
    if vectors.is_complex():
        vectors = torch.view_as_real(vectors.resolve_conj()).flatten(-2)
    return torch.linalg.vector_norm(vectors, dim=-1, keepdim=True, dtype=torch.float64)


@operator("projunn::factor", mutates_args=())
def _operator(matrix: Tensor, basis: Tensor, active: Tensor | None = None) -> list[Tensor]:
    return [factor.contiguous() for factor in _factor(matrix, basis, active)]


@_operator.register_fake
def _(matrix, basis, active=None):  # type: ignore[no-untyped-def]
    right = basis.new_empty((*basis.shape[:-2], matrix.shape[-1], basis.shape[-1]))
    return [torch.empty_like(basis, memory_format=torch.contiguous_format), right]
