"""Steps of rank 1, in float64: an orthonormal basis of the plane of ``z y^H``.

It is the basis of `projunn_kernels.retraction.basis`.  With q1 = y / a and z = b q1 + c q2,
``E = [[a b, 0], [a c, 0]]``.  A complex number is two scalars here.
"""

import triton
import triton.language as tl

from projunn_kernels.constants import PROBE as _PROBE
from projunn_kernels.language.float64 import reciprocal, square_root

# Norms below are zero: nothing can be divided by them.
TINY = tl.constexpr(1e-150)
# What two passes of Gram-Schmidt leave of z, relative to z, need not be orthogonal to y below this size.
ROUNDING = tl.constexpr(1e-17)
PROBE = tl.constexpr(_PROBE)


@triton.jit
def dot(ar, ai, br, bi, PAIRS: tl.constexpr):
    """``a^H b`` of two float64 columns.

    Where a thread has one product, a compiler may fuse it with the first addition across threads.  Each
    then has a sum of its own, and which of them is kept is left to chance.  Zero is added to prevent it.
    """
    if PAIRS:
        re, im = tl.sum(ar * br + ai * bi), tl.sum(ar * bi - ai * br)
    else:
        re = tl.sum(tl.fma(ar, br, tl.zeros_like(ar)))
        im = 0.0 * re
    return re, im


@triton.jit
def product(ar, ai, br, bi, PAIRS: tl.constexpr):
    """a b, elementwise."""
    if PAIRS:
        re, im = ar * br - ai * bi, ar * bi + ai * br
    else:
        re = ar * br
        im = re
    return re, im


@triton.jit
def plane_basis(yr, yi, zr, zi, PAIRS: tl.constexpr):
    """q1, q2 and the first column e1, e2 of E, from whole float64 columns; Gram-Schmidt, twice."""
    a = square_root(dot(yr, yi, yr, yi, PAIRS)[0])
    inverse = reciprocal(tl.maximum(a, TINY))
    q1r, q1i = yr * inverse, yi * inverse
    br, bi = dot(q1r, q1i, zr, zi, PAIRS)
    sr, si = product(q1r, q1i, br, bi, PAIRS)
    zr, zi = zr - sr, zi - si
    gr, gi = dot(q1r, q1i, zr, zi, PAIRS)
    sr, si = product(q1r, q1i, gr, gi, PAIRS)
    zr, zi = zr - sr, zi - si
    c = square_root(dot(zr, zi, zr, zi, PAIRS)[0])
    c = tl.where(c <= (tl.abs(br) + tl.abs(bi)) * ROUNDING, 0.0, c)
    inverse = tl.where(c == 0.0, 0.0, reciprocal(tl.maximum(c, TINY)))
    return q1r, q1i, zr * inverse, zi * inverse, (br + gr) * a, (bi + gi) * a, c * a


@triton.jit
def rotated(q1r, q1i, q2r, q2i, ar, ai, br, bi, PAIRS: tl.constexpr):
    """``q1 conj(a) + q2 conj(b)``: a column of Q F^H."""
    if PAIRS:
        re = q1r * ar + q1i * ai + q2r * br + q2i * bi
        im = q1i * ar - q1r * ai + q2i * br - q2r * bi
    else:
        re = q1r * ar + q2r * br
        im = re
    return re, im


@triton.jit
def plane_rotation(yr, yi, zr, zi, precision, ROTATE: tl.constexpr, PAIRS: tl.constexpr):
    """The columns of Q and of ``T = Q F^H``, in float32, and whether their step can be taken.

    From whole float64 columns Y and Z of the step ``Z Y^H``.
    """
    q1r, q1i, q2r, q2i, e1r, e1i, e2 = plane_basis(yr, yi, zr, zi, PAIRS)
    f11r, f11i, f12r, f12i, f21r, f21i, f22r, f22i, taken = ROTATE(e1r, e1i, e2, precision, PAIRS)
    taken = taken & (e2 < 1e300) & (tl.abs(e1r) + tl.abs(e1i) < 1e300)
    t1r, t1i = rotated(q1r, q1i, q2r, q2i, f11r, f11i, f12r, f12i, PAIRS)
    t2r, t2i = rotated(q1r, q1i, q2r, q2i, f21r, f21i, f22r, f22i, PAIRS)
    q1r, q1i, q2r, q2i = (
        q1r.to(tl.float32), q1i.to(tl.float32), q2r.to(tl.float32), q2i.to(tl.float32)
    )  # fmt: skip
    t1r, t1i, t2r, t2i = (
        t1r.to(tl.float32), t1i.to(tl.float32), t2r.to(tl.float32), t2i.to(tl.float32)
    )  # fmt: skip
    return q1r, q1i, q2r, q2i, t1r, t1i, t2r, t2i, taken
