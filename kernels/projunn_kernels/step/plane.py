"""Real steps of rank one on a CPU, where calls of PyTorch cost what passes over small matrices do.

    of one matrix, along the tangent part            y = A r / |A r|        z = 2 A y
    of a bank or a small one, along the direction    y = D^T r / |D^T r|    x = D y    z = W^T x

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

from projunn_kernels import arrays
from projunn_kernels.arrays import Array, cast
from projunn_kernels.backends import on_device
from projunn_kernels.batches import EVERY
from projunn_kernels.constants import PROBE
from projunn_kernels.products import processor
from projunn_kernels.products.eager import adjoint_product
from projunn_kernels.retraction.rotations import named, plane_rotation

_SMALLEST = 1e-70  # of |z|^2: the inverse of its root is a float32
# Numbers of a bank whose steps take less time so than from their parts (docs/measured.md).
_LARGE = 1 << 19
_FEW = 1 << 13  # numbers up to which NumPy adds a product in less time than PyTorch
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
    if not (basis.shape[-1] == 1 and m <= n > 1 and 0 < weight.numel() <= _LARGE):
        return False
    if weight.ndim == 2 and not (weight.numel() <= arrays.SMALL and arrays.available(weight, direction)):
        return False
    if not weight.dtype == direction.dtype == torch.float32 or on_device(weight):
        return False
    flat = weight.is_contiguous() and basis.is_contiguous()
    return flat and named(retraction).angle is not None


def bank_step(
    weight: Tensor, direction: Tensor, basis: Tensor, probe: Tensor, rate: Any, retraction: str
) -> Tensor:
    """Take the steps of matrices (B, m, n) in place, but of those that want more care.

    Returns:
        The mask of the steps taken, (B,).  Nothing of the other matrices has changed.
    """
    rate = rate.item() if isinstance(rate, Tensor) else rate
    small = weight.shape[-1] * weight.shape[-2] <= arrays.SMALL
    if small and arrays.available(weight, direction):
        w, d, r, p = arrays.shared(weight, direction, basis, probe)
        with arrays.silently():
            rows, mask = _follow_planes(w, d, r, p, rate, retraction)
            if weight.numel() <= _FEW:
                w += (rows[:, :2] @ w.mT).mT @ rows[:, 2:]
                arrays.changed(weight, basis)
                return mask
        arrays.changed(basis)
        rows = arrays.tensor(rows)
    else:
        rows, mask = _follow_planes(weight, direction, basis, probe, rate, retraction)
    weight.baddbmm_(torch.bmm(rows[:, :2], weight.mT).mT, rows[:, 2:])
    return mask


def _follow_planes(
    weight: Array, direction: Array, basis: Array, probe: Array, rate: float, retraction: str
) -> tuple[Array, Tensor]:
    """Q^T above F Q^T, (B, 4, n), zero where the step wants more care, and where not; renews R."""
    rows, warm, simple = _turned_planes(weight, direction, basis, rate, retraction)
    warm = warm + PROBE * probe
    mask = EVERY
    if not simple.all():
        where = arrays.namespace(weight).where
        mask = arrays.tensor(simple).view(-1)
        rows, warm = where(simple, rows, 0.0), where(simple, warm, basis)
    basis[...] = warm
    return rows, mask


def _turned_planes(
    weight: Array, direction: Array, basis: Array, rate: float, retraction: str
) -> tuple[Array, Array, Array]:
    """Q^T above F Q^T, (B, 4, n), x / |x|, and which of the matrices (B, m, n) want no more care.

    q1 = y and q2 are made in float64 by Gram-Schmidt, done twice, so that with b = q1^T z, c = q2^T z

        E = -rate [[b, 0], [c, 0]]        |x| = |z| = sqrt(b^2 + c^2)
    """
    xp = arrays.namespace(weight)
    pulled = cast(basis.mT @ direction, xp.float64)  # vectors are rows: BLAS is the faster
    q1 = pulled / xp.sqrt(pulled @ pulled.mT)
    x = cast(q1, weight.dtype) @ direction.mT
    z = cast(x @ weight, xp.float64)
    b = z @ q1.mT
    rest = z - b * q1
    rest -= (rest @ q1.mT) * q1
    c = xp.sqrt(rest @ rest.mT)
    size = xp.hypot(b, c)
    angle_of = named(retraction).angle
    assert angle_of is not None
    angle, usable = angle_of(b * -rate, c * -rate, torch.finfo(torch.float32).eps)
    less, sine = xp.cos(angle) - 1, xp.sin(angle)
    q2 = rest / c
    rows = xp.concat([q1, q2, q1 * less - q2 * sine, q2 * less + q1 * sine], axis=1)
    simple = (c > _PARALLEL * size) & usable  # False for NaN
    return cast(rows, weight.dtype), (x / size).mT, simple
