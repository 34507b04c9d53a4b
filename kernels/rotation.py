"""The small unitary matrix of a step, minus the identity, in float64.

A step ``D = X Y^H`` at W, with ``W^H X = Z = Q R_z`` and ``Y = Q R_y``, is ``W^H D = Q E Q^H`` with
``E = R_z R_y^H`` (2k x 2k).  With ``A = (E - E^H)/2`` the three retractions are ``W (I + Q F Q^H)``:

    exp      F = e^A - I                          projUNN-T  (arXiv 2203.05483, section 3)
    polar    F = polar(I + E) - I                 projUNN-D, the nearest unitary matrix to W + D
    cayley   F = (I - A/2)^-1 (I + A/2) - I

k = 1 is in closed form.  There ``R_y = (a, 0)``, ``R_z = (b, c)`` with a, c >= 0, so that with
``s = a c/2`` and ``t = a Im b`` we have ``A = [[i t, -s], [s, 0]]``: for real matrices the exponential
is the plane rotation by the angle s.
"""

import torch
from torch import Tensor

RETRACTIONS = ("exp", "polar", "cayley")


def rotation(
    r_y: Tensor, r_z: Tensor, retraction: str, precision: float
) -> tuple[Tensor, Tensor]:
    """F (*batch, 2k, 2k) and a mask (*batch) of the steps that can be taken.

    The mask is False, and F zero, where a coordinate is not finite or the result is not determined to
    working ``precision``: for ``polar`` where the smallest singular value of W + D is below
    4 ``precision`` times the largest (in the span of the step), for ``exp`` where it would turn a
    plane by more than ``precision**-0.5`` radians.
    """
    usable = r_y.isfinite().all(dim=(-2, -1)) & r_z.isfinite().all(dim=(-2, -1))
    if r_y.shape[-1] == 1:
        f, regular = _closed_form(r_y, r_z, retraction, precision)
    else:
        gate = usable[..., None, None]
        e = torch.where(gate, r_z, 0.0) @ torch.where(gate, r_y, 0.0).mH
        f, regular = _dense(e, retraction, precision)
    usable = usable & regular
    return torch.where(usable[..., None, None], f, 0.0), usable


def _dense(e: Tensor, retraction: str, precision: float) -> tuple[Tensor, Tensor]:
    identity = torch.eye(e.shape[-1], dtype=e.dtype, device=e.device)
    if retraction == "polar":
        u, s, vh = torch.linalg.svd(identity + e)
        return u @ vh - identity, s[..., -1] > 4 * precision * s[..., 0]
    a = (e - e.mH) / 2
    if retraction == "cayley":
        f = torch.linalg.solve(identity - a / 2, a)
        return f, torch.ones_like(f[..., 0, 0], dtype=torch.bool)
    angles, vectors = torch.linalg.eigh(-1j * a)
    phases = torch.complex(-2 * (angles / 2).sin().square(), angles.sin())  # e^(i angle) - 1
    f = (vectors * phases.unsqueeze(-2)) @ vectors.mH
    return f if e.is_complex() else f.real, angles.abs().amax(-1) < precision**-0.5


def _closed_form(
    r_y: Tensor, r_z: Tensor, retraction: str, precision: float
) -> tuple[Tensor, Tensor]:
    a = r_y[..., 0, 0].real if r_y.is_complex() else r_y[..., 0, 0]
    b, c = r_z[..., 0, 0], r_z[..., 1, 0]
    if retraction == "polar":
        # polar of N = [[p, 0], [r, 1]] is (N + e^(i arg det N) adj(N)^H) / (sum of singular values)
        p, r = 1 + a * b, a * c
        size = p.abs()
        phase = p.sgn()
        total = torch.hypot(1 + size, r.abs())
        f = _matrix((p + phase) / total - 1, -phase * r / total, r / total, (1 + size) / total - 1)
        squares = size.square() + r.abs().square() + 1
        return f, size > 4 * precision * squares
    s = a * c / 2
    if retraction == "cayley":
        half = s.square() / 2
        turn = 1j * (a * b.imag) if b.is_complex() else torch.zeros_like(s)
        det = 1 - turn / 2 + half / 2
        f = _matrix((turn - half) / det, -s / det, s / det, -half / det)
        return f, torch.ones_like(a, dtype=torch.bool)
    if not b.is_complex():
        cos, sin = s.cos(), s.sin()
        return _matrix(cos - 1, -sin, sin, cos - 1), s.abs() < precision**-0.5
    mean = a * b.imag / 2
    angle = torch.hypot(mean, s.real)
    sinc = torch.sinc(angle / torch.pi)
    phase = torch.polar(torch.ones_like(mean), mean)
    cos, tilt, shear = angle.cos(), 1j * mean * sinc, sinc * s
    f = _matrix(phase * (cos + tilt) - 1, -phase * shear, phase * shear, phase * (cos - tilt) - 1)
    return f, angle < precision**-0.5


def _matrix(f11: Tensor, f12: Tensor, f21: Tensor, f22: Tensor) -> Tensor:
    return torch.stack([f11, f12, f21, f22], dim=-1).unflatten(-1, (2, 2))
