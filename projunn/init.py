"""Initialisers: each replaces every matrix of a batch by a unitary one, in place.

They take a `projunn.UnitaryParameter` or any floating-point tensor (*batch, m, n), real or complex, and
return it.  ``parameter.data`` is read as the parameter is (`projunn.matrix_view`).  They compute in
float64, so that float32 weights start with the defect of one rounding, 4e-8.  Rectangular matrices get
orthonormal rows or columns, whichever are fewer.  ``generator`` is the source of the random numbers, on
the tensor's device; by default it is PyTorch's own.  A tensor that does not hold real or complex
matrices, or an expanded one, raises ``ValueError``, and what is no tensor or no generator ``TypeError``.
"""

from math import pi

import torch
from torch import Tensor

from projunn import arguments
from projunn.arguments import matrices
from projunn.manifold import matrix_view


def haar_(tensor: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draws unitary matrices from the Haar measure, which is the uniform distribution.

    Each is a product of Householder reflections, with signs or phases.  The QR decomposition of a
    Gaussian matrix makes such a product from vectors of ever fewer Gaussian numbers.  Here these vectors
    are drawn directly, which takes half of the time.  Returns ``tensor``.

    Source: Stewart, SIAM J. Numer. Anal. 17, 1980; of the phases Mezzadri, Notices of the AMS 54, 2007.
    """
    matrix = _matrix(tensor)
    arguments.check_generator(generator)
    *batch, m, n = matrix.shape
    shape = (*batch, max(m, n), min(m, n))
    noise = torch.randn(shape, dtype=_precise(matrix), device=matrix.device, generator=generator)
    vectors = noise.tril()
    norms, first = torch.linalg.vector_norm(vectors, dim=-2), noise.diagonal(dim1=-2, dim2=-1)
    phases = first.sgn()
    scaled = vectors / (first + phases * norms).unsqueeze(-2)  # as LAPACK stores a reflection
    q = torch.linalg.householder_product(scaled, (1 + first.abs() / norms).to(scaled.dtype))
    q = q * -phases.unsqueeze(-2)
    matrix.copy_(q if m >= n else q.mH)
    return tensor


def identity_(tensor: Tensor) -> Tensor:
    """Sets ones on the diagonal and zeros elsewhere; returns ``tensor``."""
    matrix = _matrix(tensor)
    matrix.zero_().diagonal(dim1=-2, dim2=-1).fill_(1)
    return tensor


def henaff_(tensor: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draws rotations of the pairs of coordinates (2j, 2j + 1), by angles uniform in [-pi, pi).

    Complex matrices are diagonal, with such angles as phases.  A last coordinate without a partner stays
    fixed.  Returns ``tensor``.  Source: Henaff, Szlam, LeCun, ICML 2016.
    """
    return _rotations(tensor, -pi, pi, generator)


def cayley_(tensor: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draws rotations of the pairs of coordinates (2j, 2j + 1), by angles t uniform in [0, pi/2).

    They are the Cayley transforms of skew-symmetric matrices with entries tan(t/2).  Complex matrices
    are diagonal, with such angles as phases.  A last coordinate without a partner stays fixed.  Returns
    ``tensor``.  Source: Helfrich, Willmott, Ye, ICML 2018.
    """
    return _rotations(tensor, 0, pi / 2, generator)


def _rotations(tensor: Tensor, low: float, high: float, generator: torch.Generator | None) -> Tensor:
    matrix = _matrix(tensor)
    arguments.check_generator(generator)
    identity_(matrix)
    size = min(matrix.shape[-2:])
    planes = size if matrix.is_complex() else size // 2
    real = _precise(matrix).to_real()
    angles = torch.empty((*matrix.shape[:-2], planes), dtype=real, device=matrix.device)
    angles.uniform_(low, high, generator=generator)
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    if matrix.is_complex():
        diagonal.copy_(torch.polar(torch.ones_like(angles), angles))
        return tensor
    cos, sin = angles.cos(), angles.sin()
    even, odd = slice(0, 2 * planes, 2), slice(1, 2 * planes, 2)
    diagonal[..., even].copy_(cos)
    diagonal[..., odd].copy_(cos)
    matrix[..., even, odd].diagonal(dim1=-2, dim2=-1).copy_(-sin)
    matrix[..., odd, even].diagonal(dim1=-2, dim2=-1).copy_(sin)
    return tensor


def _matrix(tensor: Tensor) -> Tensor:
    matrix = matrices("tensor", matrix_view(arguments.tensor("tensor", tensor)).detach())
    return arguments.own_memory("tensor", matrix)


def _precise(matrix: Tensor) -> torch.dtype:
    return torch.complex128 if matrix.is_complex() else torch.float64
