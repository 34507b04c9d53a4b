"""The retraction in PyTorch, the formula line by line."""

from collections.abc import Callable
from math import hypot, inf, nan, sqrt

import torch
from torch import Tensor

from projunn_kernels.backends import on_device
from projunn_kernels.batches import EVERY, present, surely_all
from projunn_kernels.products.eager import adjoint_product, product
from projunn_kernels.rank_update import rank_update_
from projunn_kernels.rank_update.eager import rotate_rows_
from projunn_kernels.retraction.basis import step_basis_and_norms
from projunn_kernels.retraction.rotations import named, plane_rotation, rotation

# Sizes of E, by the weight's dtype, whose rounding (in float64) is far below the weight's own.
_LARGE = {torch.float32: 1e4, torch.float64: 1e1}
_UNITARY = 1e-12  # what I + Q F Q^H may be off, in float64


def retract(
    weight: Tensor, left: Tensor, right: Tensor, retraction: str, active: Tensor | None = None
) -> Tensor:
    """Take the step in place: see `projunn_kernels.retract_`."""
    return _of_listed(_retract_all, weight, (left, right), retraction, active)


def retract_pulled(
    weight: Tensor,
    pulled: Tensor,
    right: Tensor,
    moved: Tensor,
    retraction: str,
    active: Tensor | None = None,
) -> Tensor:
    """Take the step in place: see `projunn_kernels.retract_pulled_`."""
    return _of_listed(_retract_pulled_all, weight, (pulled, right, moved), retraction, active)


def _of_listed(
    retract_all: Callable[..., Tensor],
    weight: Tensor,
    factors: tuple[Tensor, ...],
    retraction: str,
    active: Tensor | None,
) -> Tensor:
    """A step of all matrices, or of those of a list; where it was taken."""
    if active is None:
        return retract_all(weight, *factors, retraction)
    chosen, named = present(active), active >= 0
    taken = torch.zeros(active.shape, dtype=torch.bool, device=weight.device)
    if len(chosen):
        part = weight[chosen]
        taken[named] = retract_all(part, *(f[named] for f in factors), retraction)
        weight[chosen] = part
    return taken


def _retract_all(weight: Tensor, left: Tensor, right: Tensor, retraction: str) -> Tensor:
    whole = named(retraction).whole
    if whole is not None:
        return whole(weight, left, right)
    dtype = weight.dtype
    tall = weight.shape[-2] > weight.shape[-1]
    pulled = product(weight, right) if tall else adjoint_product(weight, left)
    rotated, basis, taken = rotated_basis(left if tall else right, pulled, retraction, dtype)
    if tall:
        rank_update_(weight, rotated, adjoint_product(weight, basis))
    else:
        rotate_rows_(weight, basis, rotated)
    return taken


def _retract_pulled_all(
    weight: Tensor, pulled: Tensor, right: Tensor, moved: Tensor, retraction: str
) -> Tensor:
    tall = weight.shape[-2] > weight.shape[-1]
    whole = named(retraction).whole
    if whole is not None:
        return (
            whole(weight, right, adjoint_product(weight, pulled))
            if tall
            else whole(weight, product(weight, pulled), right)
        )
    if on_device(weight):
        rotated, basis, taken = rotated_basis(right, pulled, retraction, weight.dtype)
        known = moved[..., :0]
    else:
        rotated, basis, taken, known = _rotated_triangle(right, pulled, moved, retraction)
    if tall:
        pushed = torch.cat([known, adjoint_product(weight, basis)], dim=-1)
        rank_update_(weight, rotated, pushed)
    else:
        rotate_rows_(weight, basis, rotated, known)
    return taken


def _rotated_triangle(
    right: Tensor, pulled: Tensor, moved: Tensor, retraction: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Q F^H; those columns of Q that Y does not span; where the step is taken; and W times the others.

    [Y, Z] = Q R by Householder's reflections, so that E = R_z R_y^H, and W Q = (W Y) R_y^-1 in the
    columns that Y spans.  There R_y is diagonal, of phases p, but for rounding, which one step of
    Newton's iteration from conj(p) squares.  A Y with a zero column, and a huge Z, take more care.
    """
    k, dtype = right.shape[-1], right.dtype
    precise = torch.complex128 if right.is_complex() else torch.float64
    q, r = torch.linalg.qr(torch.cat([right, pulled], dim=-1).to(precise))
    by_right, by_pulled = r[..., :k], r[..., k:]
    triangle = by_right[..., :k, :]
    phases = triangle.diagonal(dim1=-2, dim2=-1).conj()
    sizes, of_y = r.abs(), phases.abs()
    large = _LARGE[dtype.to_real()]
    if r.numel() and not (sizes.amax().item() < large and of_y.amin().item() > 0.5):
        return *rotated_basis(right, pulled, retraction, dtype), moved[..., :0]
    f, taken = rotation(by_pulled @ by_right.mH, retraction, torch.finfo(dtype).eps)
    inverse = torch.diag_embed(2 * phases) - phases[..., :, None] * triangle * phases[..., None, :]
    known = moved.to(precise) @ inverse
    if not surely_all(taken):
        q, known = (torch.where(taken[..., None, None], t, 0.0) for t in (q, known))
    rotated = (f.conj() @ q.mT).mT
    return rotated.to(dtype), q[..., k:].to(dtype), taken, known.to(dtype)


def rotated_basis(
    factor: Tensor, pulled: Tensor, retraction: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Q F^H and Q, zero where the step is not taken, and where it is."""
    one = factor.shape == (factor.shape[0], 1) and dtype == torch.float32 and not on_device(factor)
    if one and named(retraction).plane is not None:
        plane = _rotated_plane(factor, pulled, retraction)
        if plane is not None:
            return *plane, EVERY
    q, e, norms = step_basis_and_norms(factor, pulled)
    f, taken = rotation(e, retraction, torch.finfo(dtype).eps)
    if factor.shape[-1] > 1 and norms is not None and norms.numel():
        small = _small(norms, _LARGE[dtype.to_real()])
        if not surely_all(small):
            corrected, unitary = _made_unitary(f, q)
            taken = taken & (small | unitary)
            f = torch.where((taken & ~small)[..., None, None], corrected, f)
    if not surely_all(taken):
        q = torch.where(taken[..., None, None], q, 0.0)
    return (f.conj() @ q.mT).mT.to(dtype), q.to(dtype), taken


def _small(norms: Tensor, large: float) -> Tensor:
    """Where rounding of E cannot matter, which a huge step has in directions that Q lacks.

    That is of the size of E's factors, whose columns have these norms, (*batch, 1, 2k); E itself may
    be what cancels out in their product.
    """
    k = norms.shape[-1] // 2
    if norms.ndim == 2 and not on_device(norms):
        (sizes,) = norms.tolist()
        if hypot(*sizes[:k]) * hypot(*sizes[k:]) < large:
            return EVERY
        return torch.tensor(False, device="cpu")
    of_y, of_z = (torch.linalg.vector_norm(t, dim=(-2, -1)) for t in (norms[..., :k], norms[..., k:]))
    return of_y * of_z < large


def _made_unitary(f: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """F after one step of Newton and Schulz for I + Q F Q^H, and whether that was unitary to 1e-12.

    Also where columns of Q depend on each other and some are zero.  With G = Q^H Q, it misses a unitary
    matrix by Q X Q^H, X = F + F^H + F^H G F, whose square has the trace of (G X)^2.  The step takes
    F to F - (X + F G X) / 2, which misses one by the square of that.
    """
    gram = q.mH @ q
    defect = f + f.mH + f.mH @ gram @ f
    seen = gram @ defect
    unitary = (seen * seen.mT).sum((-2, -1)).abs() < _UNITARY**2
    return f - (defect + f @ seen) / 2, unitary


def _rotated_plane(factor: Tensor, pulled: Tensor, retraction: str) -> tuple[Tensor, Tensor] | None:
    """Q F^T and Q of one real step of rank one, or None if that takes more care.

    All 2 x 2 is in Python's floats, with Q from the inner products of y and z in place of Gram-Schmidt:
    in float64 good to 1e-13 where the angle between them is above 1e-3.
    """
    vectors = torch.cat([factor.mT, pulled.mT]).double()
    (yy, yz), (_, zz) = (vectors @ vectors.mT).tolist()
    a = sqrt(yy) if 0 < yy < inf else nan
    b = yz / a
    rest = zz - b * b
    if not 1e-6 * zz < rest < inf:  # nor if there is a NaN
        return None
    c = sqrt(rest)
    f = plane_rotation(a * b, 0.0, a * c, 0.0, retraction, torch.finfo(factor.dtype).eps)
    if f is None:
        return None
    q = ((1 / a, 0.0), (-b / (a * c), 1 / c))  # columns, of coefficients of y and z
    rotated = [[f1 * q1 + f2 * q2 for q1, q2 in zip(*q, strict=True)] for f1, f2 in f]
    coefficients = torch.tensor([*rotated, *q], dtype=torch.float64, device=factor.device)
    rows = (coefficients @ vectors).to(factor.dtype)
    return rows[:2].mT, rows[2:].mT
