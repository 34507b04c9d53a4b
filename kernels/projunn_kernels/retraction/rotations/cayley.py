"""The Cayley transform.

W (I - A/2)^-1 (I + A/2), A = (W^H D - D^H W)/2        F = (I - A/2)^-1 A
"""

from math import atan, cos, inf, sin

import torch
from torch import Tensor

from projunn_kernels import iterations
from projunn_kernels.arrays import Array, namespace
from projunn_kernels.retraction.rotations.declaration import (
    Retraction,
    entries,
    function_of_angles,
    identity_like,
    matrix,
    skew,
    turned_by,
)

_ROUNDING = 1e-14  # of the products in float64, for each column
_LOOSE = 1e-12
_TURNED = 1e150  # half a turn, to rounding; its square is a number


def _dense(e: Tensor, precision: float) -> tuple[Tensor, Tensor]:
    """By elimination and, where that is not unitary (A huge, its columns dependent), by eigenvalues.

    A step that neither makes unitary is not taken.
    """
    a = skew(e)
    f = torch.linalg.solve_ex(identity_like(e) - a / 2, a).result
    unitary = _defect(f) < _ROUNDING * e.shape[-1]
    if not unitary.all():
        f = torch.where(unitary[..., None, None], f, _of_eigenvalues(a))
        unitary = _defect(f) < _LOOSE
    return f, unitary


def _defect(f: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(f + f.mH + f.mH @ f)


def _of_eigenvalues(a: Tensor) -> Tensor:
    """F of a decomposition: an eigenvalue i t of A becomes i t / (1 - i t/2)."""
    angles, vectors = torch.linalg.eigh(-1j * a)
    f = (vectors * _turned_by(angles).unsqueeze(-2)) @ vectors.mH
    f = f if a.is_complex() else f.real
    for _ in range(4):  # Newton-Schulz steps of I + F, which may be off by 1e-3
        error = f + f.mH + f.mH @ f
        f = f - (error + f @ error) / 2
    return f


def _turned_by(angles: Array) -> Array:
    """What becomes of the eigenvalues i angle of A in F."""
    return 1j * angles / (1 - 0.5j * angles)


def _few(e: Array, precision: float) -> Array | None:
    return function_of_angles(e, _turned_by, inf)


def _iterated(e: Tensor, precision: float) -> tuple[Tensor, Tensor]:
    """For steps of a size below 1e7.  F = 2 (I - A/2)^-1 - 2 I, too, which large A do not spoil."""
    a, identity = skew(e), identity_like(e)
    inverse = iterations.inverse(identity - a / 2)
    small = torch.linalg.matrix_norm(a, keepdim=True) < 1
    f = torch.where(small, inverse @ a, 2 * (inverse - identity))
    return f, f.isfinite().all(dim=(-2, -1))


def _two_by_two(e: Tensor, precision: float) -> tuple[Tensor, Tensor]:
    """Of A = [[i t, -conj(s)], [s, i u]].  Every comparison is False for NaN."""
    e11, e12, e21, e22 = entries(e)
    s = (e21 - e12.conj()) / 2
    if not e.is_complex():
        near = s.clamp(-_TURNED, _TURNED)
        half = near.square() / 2
        diagonal, corner = -half / (1 + half / 2), near / (1 + half / 2)
        return matrix(diagonal, -corner, corner, diagonal), s.abs() < torch.inf
    # (I - A/2)^-1 A = (adj(I - A/2) A) / det(I - A/2), and adj(I - A/2) A = A - det(A)/2 I
    t, u = e11.imag, e22.imag
    minor = s.abs().square() - t * u
    det = 1 + minor / 4 - 0.5j * (t + u)
    f = matrix(1j * t - minor / 2, -s.conj(), s, 1j * u - minor / 2) / det[..., None, None]
    return f, minor.abs() < torch.inf


def _plane(e11: float, e12: float, e21: float, e22: float, precision: float) -> list[list[float]] | None:
    twice = e21 - e12
    if not abs(twice) < inf:
        return None
    angle = 2 * atan(twice / 4)
    return turned_by(cos(angle), sin(angle))


def _angle(e11: Array, e21: Array, precision: float) -> tuple[Array, Array]:
    return 2 * namespace(e21).arctan(e21 / 4), abs(e21) < torch.inf


CAYLEY = Retraction(
    name="cayley",
    dense=_dense,
    two_by_two=_two_by_two,
    plane=_plane,
    few=_few,
    angle=_angle,
    iterated=_iterated,
    kernels="projunn_kernels.retraction.rotations.kernels.cayley",
    limit=0.125,
)
