"""The small unitary matrix of a step, minus the identity, in float64.

A step D at W is ``W^H D = Q E Q^H`` in its basis (`basis`), E of size 2k x 2k.  With
``A = (E - E^H)/2`` the three retractions are ``W (I + Q F Q^H)``:

    exp      F = e^A - I                          projUNN-T  (arXiv 2203.05483, section 3)
    polar    F = polar(I + E) - I                 projUNN-D, the nearest unitary matrix to W + D
    cayley   F = (I - A/2)^-1 (I + A/2) - I       = (I - A/2)^-1 A

k = 1 is in closed form.  For real matrices I + F is then a plane rotation (or, "polar" with
det(I + E) < 0, a reflection); a single one on the CPU is computed in Python's floats, which takes a
fifth of the time of so many operators on one number.
"""

from math import atan, atan2, cos, inf, sin, sqrt

import torch
from torch import Tensor

from projunn_kernels.retraction import iterations

RETRACTIONS = ("exp", "polar", "cayley")


def rotation(e: Tensor, retraction: str, precision: float) -> tuple[Tensor, Tensor]:
    """F (*batch, 2k, 2k) and a mask (*batch) of the steps that can be taken.

    The mask is False, and F zero, where E is not finite or the result is not determined to working
    ``precision``: for ``polar`` where the smallest singular value of W + D is below 4 ``precision``
    times the largest (in the span of the step), for ``exp`` where it would turn a plane by more than
    ``precision**-0.5`` radians.
    """
    if e.shape == (2, 2) and e.device.type == "cpu" and not e.is_complex():
        return _single(e, retraction, precision)
    if e.shape[-1] == 2:
        f, usable = _closed_form(e, retraction, precision)
    else:
        finite = e.isfinite().all(dim=(-2, -1))
        f, regular = _dense(torch.where(finite[..., None, None], e, 0.0), retraction, precision)
        usable = finite & regular
    return torch.where(usable[..., None, None], f, 0.0), usable


def _dense(e: Tensor, retraction: str, precision: float) -> tuple[Tensor, Tensor]:
    identity = torch.eye(e.shape[-1], dtype=e.dtype, device=e.device)
    if e.device.type != "cpu":
        return _iterated(e, identity, retraction, precision)
    if retraction == "polar":
        u, s, vh = torch.linalg.svd(identity + e)
        return u @ vh - identity, s[..., -1] > 4 * precision * s[..., 0]
    a = (e - e.mH) / 2
    if retraction == "cayley":
        f = torch.linalg.solve(identity - a / 2, a)
        return f, f.isfinite().all(dim=(-2, -1))
    angles, vectors = torch.linalg.eigh(-1j * a)
    phases = torch.complex(-2 * (angles / 2).sin().square(), angles.sin())  # e^(i angle) - 1
    f = (vectors * phases.unsqueeze(-2)) @ vectors.mH
    return f if e.is_complex() else f.real, angles.abs().amax(-1) < precision**-0.5


def _iterated(e: Tensor, identity: Tensor, retraction: str, precision: float) -> tuple[Tensor, Tensor]:
    """`_dense` without a decomposition, for which a device would have to report to the host."""
    a = (e - e.mH) / 2
    if retraction == "polar":
        u, regular = iterations.polar_factor(identity + e)
        f, usable = u - identity, regular > 4 * precision
    elif retraction == "cayley":
        f = torch.linalg.solve_ex(identity - a / 2, a).result
        usable = f.isfinite().all(dim=(-2, -1))
    else:
        size = torch.linalg.matrix_norm(a)
        usable = size.square() * precision < e.shape[-1]
        f = iterations.exponential(torch.where(usable[..., None, None], a, 0.0))
    error = torch.linalg.matrix_norm(f + f.mH + f.mH @ f)
    return f, usable & (error < 1e-9)


def _single(e: Tensor, retraction: str, precision: float) -> tuple[Tensor, Tensor]:
    (e11, e12), (e21, e22) = e.tolist()
    f = plane_rotation(e11, e12, e21, e22, retraction, precision)
    if f is None:
        return torch.zeros_like(e), torch.tensor(False)
    return torch.tensor(f, dtype=e.dtype), torch.tensor(True)


def plane_rotation(
    e11: float, e12: float, e21: float, e22: float, retraction: str, precision: float
) -> list[list[float]] | None:
    """`_closed_form` of one real matrix; None where the step cannot be taken.

    Every comparison below is False for NaN.
    """
    twice, sign = e21 - e12, 1.0
    if retraction == "polar":
        n11, n22 = 1 + e11, 1 + e22
        det = n11 * n22 - e12 * e21
        usable = abs(det) > 4 * precision * (n11 * n11 + e12 * e12 + e21 * e21 + n22 * n22)
        if det < 0:
            sign, twice = -1.0, e21 + e12
        angle = atan2(twice, n11 + sign * n22)
    elif retraction == "cayley":
        usable, angle = abs(twice) < inf, 2 * atan(twice / 4)
    else:
        usable, angle = abs(twice) < 2 / sqrt(precision), twice / 2
    if not usable:
        return None
    c, s = cos(angle), sin(angle)
    return [[c - 1, -sign * s], [s, sign * c - 1]]


def _closed_form(e: Tensor, retraction: str, precision: float) -> tuple[Tensor, Tensor]:
    """`_dense` for 2 x 2.  Every comparison below is False for NaN."""
    e11, e12, e21, e22 = e.flatten(-2).unbind(-1)
    if retraction == "polar":
        # polar(N) = (N + e^(i arg det N) adj(N)^H) / (sum of the singular values), N = I + E
        n11, n22 = 1 + e11, 1 + e22
        det = n11 * n22 - e12 * e21
        phase, size = det.sgn(), det.abs()
        squares = sum(x.abs().square() for x in (n11, e12, e21, n22))
        total = (squares + 2 * size).sqrt()
        f = _matrix(
            (n11 + phase * n22.conj()) / total - 1,
            (e12 - phase * e21.conj()) / total,
            (e21 - phase * e12.conj()) / total,
            (n22 + phase * n11.conj()) / total - 1,
        )
        return f, size > 4 * precision * squares
    # A = [[i t, -conj(s)], [s, i u]]
    s = (e21 - e12.conj()) / 2
    limit = precision**-0.5 if retraction == "exp" else torch.inf
    if not e.is_complex():
        if retraction == "cayley":
            half = s.square() / 2
            diagonal, corner = -half / (1 + half / 2), s / (1 + half / 2)
        else:
            diagonal, corner = s.cos() - 1, s.sin()
        return _matrix(diagonal, -corner, corner, diagonal), s.abs() < limit
    t, u = e11.imag, e22.imag
    if retraction == "cayley":
        # (I - A/2)^-1 A = (adj(I - A/2) A) / det(I - A/2), and adj(I - A/2) A = A - det(A)/2 I
        minor = s.abs().square() - t * u
        det = 1 + minor / 4 - 0.5j * (t + u)
        f = _matrix(1j * t - minor / 2, -s.conj(), s, 1j * u - minor / 2) / det[..., None, None]
        return f, minor.abs() < limit
    # e^A = e^(i mean) (cos w I + sin w / w (A - i mean I)), with eigenvalues i (mean +- w)
    mean, tilt = (t + u) / 2, (t - u) / 2
    w = (tilt.square() + s.abs().square()).sqrt()
    phase = torch.polar(torch.ones_like(mean), mean)
    cos, sinc = w.cos(), torch.sinc(w / torch.pi)
    corner, slope = phase * sinc * s, 1j * tilt * sinc
    f = _matrix(
        phase * (cos + slope) - 1,
        -phase * sinc * s.conj(),
        corner,
        phase * (cos - slope) - 1,
    )
    return f, mean.abs() + w < limit


def _matrix(f11: Tensor, f12: Tensor, f21: Tensor, f22: Tensor) -> Tensor:
    return torch.stack([f11, f12, f21, f22], dim=-1).unflatten(-1, (2, 2))
