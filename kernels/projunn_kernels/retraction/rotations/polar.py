"""The polar factor: projUNN-D of arXiv 2203.05483, section 3.

    polar(W + D), the nearest unitary matrix        F = polar(I + E) - I

A step is not taken where W + D is singular to working precision: where its smallest singular value, in
the span of the step, is below 4 ``precision`` times the largest, or times 1, the norm of W.
"""

from math import atan2, cos, sin, sqrt

import torch
from torch import Tensor

from projunn_kernels import iterations
from projunn_kernels.arrays import Array, namespace
from projunn_kernels.batches import every
from projunn_kernels.retraction.rotations.declaration import (
    Retraction,
    entries,
    identity_like,
    largest,
    matrix,
)

# Norms of X^H X - I: up to which it is iterated, and which one step takes to rounding.
_NEAR, _NEARLY = 0.5, 1e-8


def _dense(e: Tensor, precision: float) -> tuple[Tensor, Tensor]:
    """By steps of Newton and Schulz where I + E is near a unitary matrix, else by singular values."""
    near = _of_small(e)
    if near is not None:
        return near, every(e.shape[:-2])
    identity = identity_like(e)
    try:
        u, s, vh = torch.linalg.svd(identity + e)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # LAPACK did not converge
        return _iterated(e, precision)
    return u @ vh - identity, s[..., -1] > 4 * precision * s[..., 0].clamp_min(1)


def _of_small(e: Tensor) -> Tensor | None:
    """F by X <- X (3 I - X^H X) / 2 for X = I + F; None unless X^H X - I is small in all of a batch."""
    f = e
    while True:
        error = f + f.mH + f.mH @ f
        size = largest(torch.linalg.matrix_norm(error))
        if not size < _NEAR:
            return None
        f = f - (error + f @ error) / 2
        if size < _NEARLY:
            return f


def _few(e: Array, precision: float) -> Array | None:
    xp = namespace(e)
    identity = xp.eye(e.shape[-1], dtype=e.dtype)
    u, s, vh = xp.linalg.svd(identity + e)
    if not (s[..., -1] > 4 * precision * s[..., 0].clip(1)).all():
        return None
    return u @ vh - identity


def _iterated(e: Tensor, precision: float) -> tuple[Tensor, Tensor]:
    """By Newton's iteration, for singular values that differ by less than a factor 1e7."""
    identity = identity_like(e)
    u, regular = iterations.polar_factor(identity + e)
    largest = torch.linalg.matrix_norm(identity + e).clamp_max(1)  # or somewhat more than that
    return u - identity, regular * largest > 4 * precision


def _two_by_two(e: Tensor, precision: float) -> tuple[Tensor, Tensor]:
    """polar(N) = (N + e^(i arg det N) adj(N)^H) / (sum of the singular values), N = I + E."""
    e11, e12, e21, e22 = entries(e)
    n11, n22 = 1 + e11, 1 + e22
    det = n11 * n22 - e12 * e21
    phase, size = det.sgn(), det.abs()
    squares = torch.stack([x.abs().square() for x in (n11, e12, e21, n22)]).sum(0)
    total = (squares + 2 * size).sqrt()
    f = matrix(
        (n11 + phase * n22.conj()) / total - 1,
        (e12 - phase * e21.conj()) / total,
        (e21 - phase * e12.conj()) / total,
        (n22 + phase * n11.conj()) / total - 1,
    )
    return f, size > 4 * precision * squares.maximum(squares.sqrt())


def _plane(e11: float, e12: float, e21: float, e22: float, precision: float) -> list[list[float]] | None:
    """A rotation or, with det(I + E) < 0, a reflection."""
    n11, n22 = 1 + e11, 1 + e22
    det = n11 * n22 - e12 * e21
    squares = n11 * n11 + e12 * e12 + e21 * e21 + n22 * n22
    if not abs(det) > 4 * precision * max(squares, sqrt(squares)):
        return None
    sign = -1.0 if det < 0 else 1.0
    angle = atan2(e21 - sign * e12, n11 + sign * n22)
    c, s = cos(angle), sin(angle)
    return [[c - 1, -sign * s], [s, sign * c - 1]]


def _angle(e11: Array, e21: Array, precision: float) -> tuple[Array, Array]:
    """Not where it is a reflection."""
    det = 1 + e11
    squares = det * det + e21 * e21 + 1
    usable = det > 4 * precision * squares  # which is at least 1
    return namespace(e21).arctan2(e21, 1 + det), usable


POLAR = Retraction(
    name="polar",
    dense=_dense,
    two_by_two=_two_by_two,
    plane=_plane,
    few=_few,
    angle=_angle,
    iterated=_iterated,
    kernels="projunn_kernels.retraction.rotations.kernels.polar",
    limit=0.125,
    of_defect=True,
)
