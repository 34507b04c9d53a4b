"""The exponential: projUNN-T of arXiv 2203.05483, section 3.

    W exp(A), A = (W^H D - D^H W)/2        F = e^A - I

It follows the geodesic.  A step that would rotate by an angle above ``precision**-0.5`` radians is not
taken, because rounding decides that angle.
"""

from math import cos, sin, sqrt

import torch
from torch import Tensor

from projunn_kernels import iterations
from projunn_kernels.arrays import Array, namespace
from projunn_kernels.batches import every
from projunn_kernels.retraction.rotations.declaration import (
    Retraction,
    entries,
    function_of_angles,
    largest,
    matrix,
    skew,
    turned_by,
)

_TINY = torch.finfo(torch.float64).tiny
_SMALL = 16  # norms of A below which a polynomial takes less time: squarings cost little more


def _dense(e: Tensor, precision: float) -> tuple[Tensor, Tensor]:
    """By a polynomial or, where all of a batch have to wait for one large A, by eigenvalues."""
    a = skew(e)
    size = largest(torch.linalg.matrix_norm(a))
    if size < _SMALL:
        return iterations.exponential_of_size(a, size), every(e.shape[:-2])
    try:
        angles, vectors = torch.linalg.eigh(-1j * a)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # of entries near the largest float
        return _iterated(e, precision)
    f = (vectors * _turned_by(angles).unsqueeze(-2)) @ vectors.mH
    return f if e.is_complex() else f.real, angles.abs().amax(-1) < precision**-0.5


def _turned_by(angles: Array) -> Array:
    """e^(i angle) - 1."""
    xp = namespace(angles)
    return -2 * xp.sin(angles / 2) ** 2 + 1j * xp.sin(angles)


def _few(e: Array, precision: float) -> Array | None:
    return function_of_angles(e, _turned_by, precision**-0.5)


def _iterated(e: Tensor, precision: float) -> tuple[Tensor, Tensor]:
    a = skew(e)
    size = torch.linalg.matrix_norm(a)
    usable = size.square() * precision < e.shape[-1]
    return iterations.exponential(torch.where(usable[..., None, None], a, 0.0)), usable


def _two_by_two(e: Tensor, precision: float) -> tuple[Tensor, Tensor]:
    """Of A = [[i t, -conj(s)], [s, i u]].  Every comparison is False for NaN."""
    e11, e12, e21, e22 = entries(e)
    s, limit = (e21 - e12.conj()) / 2, precision**-0.5
    if not e.is_complex():
        diagonal, corner = s.cos() - 1, s.sin()
        return matrix(diagonal, -corner, corner, diagonal), s.abs() < limit
    # e^A = e^(i mean) (cos w I + sin w / w (A - i mean I)), with eigenvalues i (mean +- w)
    t, u = e11.imag, e22.imag
    mean, tilt = (t + u) / 2, (t - u) / 2
    w = (tilt.square() + s.abs().square()).sqrt().clamp_min(_TINY)
    phase = torch.polar(torch.ones_like(mean), mean)
    cosine, sinc = w.cos(), w.sin() / w  # of the same number w, so that cos^2 + sin^2 = 1
    corner, slope = phase * sinc * s, 1j * tilt * sinc
    f = matrix(
        phase * (cosine + slope) - 1,
        -phase * sinc * s.conj(),
        corner,
        phase * (cosine - slope) - 1,
    )
    return f, mean.abs() + w < limit


def _plane(e11: float, e12: float, e21: float, e22: float, precision: float) -> list[list[float]] | None:
    twice = e21 - e12
    if not abs(twice) < 2 / sqrt(precision):
        return None
    return turned_by(cos(twice / 2), sin(twice / 2))


def _angle(e11: Array, e21: Array, precision: float) -> tuple[Array, Array]:
    half = e21 / 2
    return half, abs(half) < precision**-0.5


EXP = Retraction(
    name="exp",
    dense=_dense,
    two_by_two=_two_by_two,
    plane=_plane,
    few=_few,
    angle=_angle,
    iterated=_iterated,
    kernels="projunn_kernels.retraction.rotations.kernels.exp",
    limit=0.5,
    squared=True,
)
