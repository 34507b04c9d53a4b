"""Steps of few small matrices on a CPU by NumPy, whose calls take a third of the time of PyTorch's.

The formulas are those of `projunn_kernels.step.bank`, which takes the steps that want more care.
"""

import torch
from torch import Tensor

from projunn_kernels import arrays
from projunn_kernels.arrays import Array, adjoint
from projunn_kernels.backends import on_device
from projunn_kernels.constants import PROBE
from projunn_kernels.factorization.eager import regular_triangles
from projunn_kernels.retraction.rotations import named
from projunn_kernels.step.bank import LONG

# Matrices up to which NumPy's decompositions take less time, by whether they have one column or more,
# numbers in all, and numbers of several columns, whose QR is in float64 (docs/measured.md).
_FEW = {True: 128, False: 4}
_LARGE, _LARGE_COLUMNS = 1 << 17, 1440


def applies(weight: Tensor, direction: Tensor, basis: Tensor, retraction: str) -> bool:
    """Whether `take` can take the steps of these matrices, (*batch, m, n)."""
    k, (m, n), count = basis.shape[-1], weight.shape[-2:], weight.shape[:-2].numel()
    if not (0 < k <= min(m, n) and count > 0) or on_device(weight):
        return False
    if weight.dtype not in (torch.float32, torch.complex64) or direction.dtype != weight.dtype:
        return False
    if m * n * weight.element_size() > 4 * arrays.SMALL:
        return False
    if count > _FEW[k == 1] or weight.numel() > _LARGE:
        return False
    if k > 1 and count * max(m, n) * k > _LARGE_COLUMNS:
        return False
    if not (weight.is_contiguous() and basis.is_contiguous() and arrays.available(weight, direction)):
        return False
    return named(retraction).few is not None


def take(
    weight: Tensor, direction: Tensor, basis: Tensor, probe: Tensor, rate: float, retraction: str
) -> bool:
    """Take the steps of all matrices (*batch, m, n) in place.

    Args:
        weight, direction: W and D, (*batch, m, n), float32 or complex64.
        basis, probe: R, which is renewed, and its probe, (*batch, m, k).
        rate: the learning rate.
        retraction: the name of one that is a rotation of the step's span.

    Returns:
        False, and nothing is changed, if one of them wants more care.
    """
    w, d, r, p = arrays.shared(weight, direction, basis, probe)
    with arrays.silently():
        try:
            found = _rotation(w, d, r, rate, retraction)
        except arrays.namespace(w).linalg.LinAlgError:  # LAPACK did not converge
            return False
        if found is None:
            return False
        rotated, q, warm = found
        if w.shape[-2] > w.shape[-1]:
            w += rotated @ (adjoint(q) @ w)
        else:
            w += (w @ q) @ adjoint(rotated)
        r[...] = warm + PROBE * p
    arrays.changed(weight, basis)
    return True


def _rotation(
    w: Array, d: Array, r: Array, rate: float, retraction: str
) -> tuple[Array, Array, Array] | None:
    """Q F^H, Q and orth(X); None if a matrix wants more care."""
    xp, k = arrays.namespace(w), r.shape[-1]
    y, first = _orthonormal(adjoint(adjoint(r) @ d))
    x = d @ y
    warm, second = _orthonormal(x)
    if not regular_triangles(xp.stack([first, second])).all():
        return None
    pair = [x * -rate, w @ y] if w.shape[-2] > w.shape[-1] else [y, adjoint(adjoint(x) @ w) * -rate]
    precise = xp.complex128 if xp.iscomplexobj(w) else xp.float64
    q, s = xp.linalg.qr(xp.concat(pair, axis=-1, dtype=precise))
    rotation_of = named(retraction).few
    if rotation_of is None or not abs(s).max() < LONG:
        return None
    f = rotation_of(s[..., k:] @ adjoint(s[..., :k]), torch.finfo(torch.float32).eps)
    if f is None:
        return None
    return (q @ adjoint(f)).astype(w.dtype), q.astype(w.dtype), warm


def _orthonormal(columns: Array) -> tuple[Array, Array]:
    """An orthonormal basis and the triangle that has the columns in it; of one column, its direction."""
    xp = arrays.namespace(columns)
    if columns.shape[-1] > 1:
        found: tuple[Array, Array] = xp.linalg.qr(columns)
        return found
    whole = columns.astype(xp.complex128 if xp.iscomplexobj(columns) else xp.float64)
    norm = xp.sqrt((adjoint(whole) @ whole).real)
    return (columns / norm).astype(columns.dtype), norm.astype(columns.real.dtype)
