"""Real steps of rank one on a CPU, where calls of PyTorch cost what passes over small matrices do.

    of one matrix, along the tangent part        y = A r / |A r|        z = 2 A y
    of a bank, along the direction               y = D^T r / |D^T r|    x = D y    z = W^T x

    Q E Q^T = -rate z y^T    W += (W Q) (Q F^T)^T    r <- z / |z| + 0.01 probe, or x / |x| + 0.01 probe

`projunn_kernels.factorization` and `projunn_kernels.retraction` have the same for all others.  What is
2 x 2 of one matrix is in Python's floats, and W y, a product with the W that is stored, is read off W
once.
"""

from math import inf, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from projunn_kernels.backends import on_device
from projunn_kernels.batches import EVERY, surely_all
from projunn_kernels.constants import PROBE
from projunn_kernels.products import processor
from projunn_kernels.products.eager import adjoint_product
from projunn_kernels.retraction.rotations import named, plane_rotation

_SMALLEST = 1e-70  # of |z|^2: the inverse of its root is a float32
# Numbers of a bank whose steps take less time so than from their parts (docs/measured.md).
_LARGE = 1 << 19
_PARALLEL = 1e-12  # sine of the angle between y and z below which rounding may be what is left of it


def applies(weight: Tensor, basis: Tensor, retraction: str) -> bool:
    """Whether `plane_step` can take the step of this parameter."""
    one = weight.ndim == 2 and basis.shape[-1] == 1 and weight.dtype == torch.float32
    return one and not on_device(weight) and named(retraction).plane is not None


def plane_step(
    weight: Tensor, direction: Tensor, basis: Tensor, probe: Tensor, rate: float, retraction: str
) -> bool:
    """Take the step in place.  False, and nothing is changed, if it wants more care, or is not taken."""
    tall = weight.shape[0] > weight.shape[1]
    w, d = (weight.mT, direction.mT) if tall else (weight, direction)

    def twice_tangent(x: Tensor) -> tuple[Tensor, Tensor]:
        """W x and 2 A x."""
        moved = _times(w, x)
        back = _times(w.mT, _times(d, x))
        return moved, torch.addmv(back, d.mT, moved, alpha=-1)

    first = twice_tangent(basis.squeeze(1))[1]
    size = vector_norm(first, dtype=torch.float64).item()
    if not 0 < size < inf:
        return False
    y = (first / size).to(weight.dtype)
    moved, z = twice_tangent(y)
    vectors = torch.stack([y, z]).double()
    (yy, yz), (_, zz) = (vectors @ vectors.mT).tolist()
    if not 1e-6 < yy < 2:
        return False
    a = sqrt(yy)
    b = yz / a
    rest = zz - b * b
    if not 0 < rest < inf or rest < 1e-6 * zz or zz < _SMALLEST:
        return False
    c = sqrt(rest)
    precision = torch.finfo(weight.dtype).eps
    f = plane_rotation(-rate * a * b, 0.0, -rate * a * c, 0.0, retraction, precision)
    if f is None:
        return False
    q = ((1 / a, 0.0), (-b / (a * c), 1 / c))  # columns, of coefficients of y and z
    rotated = [[f1 * q1 + f2 * q2 for q1, q2 in zip(*q, strict=True)] for f1, f2 in f]
    coefficients = torch.tensor([*rotated, q[1]], dtype=torch.float64, device=weight.device)
    rows = (coefficients @ vectors).to(weight.dtype)
    other = _times(w, rows[2])
    if processor.short_products_are_fast():
        w.addmm_(torch.stack([moved, other]).mT, rows[:2])
    else:
        w.addcmul_(moved.unsqueeze(1), rows[0])
        w.addcmul_(other.unsqueeze(1), rows[1])
    torch.mul(probe, PROBE, out=basis).add_(z.unsqueeze(1), alpha=1 / sqrt(zz))
    return True


def _times(matrix: Tensor, x: Tensor) -> Tensor:
    """A product of a matrix, or of its transpose, which `adjoint_product` may split among cores."""
    if matrix.is_contiguous() or torch.get_num_threads() == 1:
        return torch.mv(matrix, x)
    return adjoint_product(matrix.mT, x.unsqueeze(1)).squeeze(1)


def applies_to_bank(weight: Tensor, direction: Tensor, basis: Tensor, retraction: str) -> bool:
    """Whether `bank_step` can take the steps of these matrices, (*batch, m, n)."""
    m, n = weight.shape[-2:]
    if weight.ndim == 2 or not (basis.shape[-1] == 1 and m <= n > 1 and 0 < weight.numel() <= _LARGE):
        return False
    if not weight.dtype == direction.dtype == torch.float32 or on_device(weight):
        return False
    flat = weight.is_contiguous() and basis.is_contiguous()
    return flat and named(retraction).angle is not None


def bank_step(
    weight: Tensor, direction: Tensor, basis: Tensor, probe: Tensor, rate: Any, retraction: str
) -> Tensor:
    """Take the steps of matrices (B, m, n) in place, but of those that want more care.

    q1 = y and q2 are made in float64 by Gram-Schmidt, done twice, so that with b = q1^T z, c = q2^T z

        E = -rate [[b, 0], [c, 0]]        |x| = |z| = sqrt(b^2 + c^2)

    Returns:
        The mask of the steps taken, (B,).  Nothing of the other matrices has changed.
    """
    pulled = torch.bmm(basis.mT, direction)  # all vectors are rows: BLAS is the faster for banks
    q1 = pulled / vector_norm(pulled, dim=-1, keepdim=True, dtype=torch.float64)
    column = q1.mT
    x = torch.bmm(q1.to(weight.dtype), direction.mT)
    z = torch.bmm(x, weight).double()
    b = torch.bmm(z, column)
    rest = torch.addcmul(z, b, q1, value=-1)
    rest = torch.addcmul(rest, torch.bmm(rest, column), q1, value=-1)
    c = vector_norm(rest, dim=-1, keepdim=True)
    size = torch.hypot(b, c)
    angle = named(retraction).angle
    assert angle is not None
    less, sine, taken = angle(b * -rate, c * -rate, torch.finfo(weight.dtype).eps)
    q2, warm = rest / c, x.mT / size
    first = torch.addcmul(q1 * less, q2, sine, value=-1)
    second = torch.addcmul(q2 * less, q1, sine)
    simple = (c > _PARALLEL * size) & taken  # False for NaN
    rows = torch.cat([q1, q2, first, second], dim=1)  # of Q and of F Q^T
    mask = EVERY
    if not surely_all(simple):
        mask, rows = simple.view(-1), torch.where(simple, rows, 0.0)
        warm, probe = torch.where(simple, warm, basis), torch.where(simple, probe, 0.0)
    q, rotated = rows.to(weight.dtype).split(2, dim=1)
    weight.baddbmm_(torch.bmm(q, weight.mT).mT, rotated)
    torch.add(warm, probe, alpha=PROBE, out=basis)
    return mask
