"""k = 1: the step ``z y^H`` in an orthonormal basis of its plane, and the rotation there, in float64.

`retraction.basis` and `projunn_kernels.rotation` in closed form: q1 = y/a, z = b q1 + c q2,
``E = [[a b, 0], [a c, 0]]``, and F from E for each retraction.  A complex number is two scalars.
"""

import triton
import triton.language as tl

from projunn_kernels.constants import PROBE as _PROBE
from projunn_kernels.language.float64 import cos_sin, reciprocal, square_root

# Norms below are zero: nothing can be divided by them.
TINY = tl.constexpr(1e-150)
PROBE = tl.constexpr(_PROBE)
EXP = tl.constexpr(0)
POLAR = tl.constexpr(1)
CAYLEY = tl.constexpr(2)


@triton.jit
def dot(ar, ai, br, bi, PAIRS: tl.constexpr):
    """``a^H b`` of two float64 columns."""
    if PAIRS:
        re, im = tl.sum(ar * br + ai * bi), tl.sum(ar * bi - ai * br)
    else:
        re = tl.sum(ar * br)
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
    inverse = reciprocal(tl.maximum(c, TINY))
    return q1r, q1i, zr * inverse, zi * inverse, (br + gr) * a, (bi + gi) * a, c * a


@triton.jit
def plane_rotation(e1r, e1i, e2, precision, RETRACTION: tl.constexpr, PAIRS: tl.constexpr):
    """F = [[f11, f12], [f21, f22]] for E = [[e1, 0], [e2, 0]], e2 real, and whether it is determined.

    Comparisons are False for NaN, so a step that is not finite is one that is not taken.
    """
    if RETRACTION == POLAR:
        # polar(N) = (N + phase adj(N)^H) / (sum of the singular values), N = [[1 + e1, 0], [e2, 1]]
        nr = 1.0 + e1r
        size = square_root(nr * nr + e1i * e1i) if PAIRS else tl.abs(nr)
        squares = size * size + e2 * e2 + 1.0
        scale = reciprocal(square_root(squares + 2.0 * size))
        inverse = reciprocal(tl.maximum(size, TINY))
        pr, pi = nr * inverse, e1i * inverse
        f11r, f11i = (nr + pr) * scale - 1.0, (e1i + pi) * scale
        f12r, f12i = -pr * e2 * scale, -pi * e2 * scale
        f21r, f21i = e2 * scale, 0.0 * e2
        # phase conj(n11) = |n11| since det N = n11
        f22r, f22i = (1.0 + size) * scale - 1.0, 0.0 * e2
        taken = size > 4.0 * precision * squares
    elif RETRACTION == CAYLEY:
        # A = [[i t, -s], [s, 0]], s = e2 / 2;  F = (I - A/2)^-1 A
        s = e2 / 2.0
        if PAIRS:
            t = e1i
            minor = s * s
            dr, di = 1.0 + minor / 4.0, -t / 2.0
            scale = reciprocal(dr * dr + di * di)
            ir, ii = dr * scale, -di * scale
            f11r, f11i = -minor / 2.0 * ir - t * ii, -minor / 2.0 * ii + t * ir
            f12r, f12i = -s * ir, -s * ii
            f21r, f21i = s * ir, s * ii
            f22r, f22i = -minor / 2.0 * ir, -minor / 2.0 * ii
            taken = minor * precision * precision < 1.0
        else:
            half = s * s / 2.0
            inverse = reciprocal(1.0 + half / 2.0)
            f11r, f12r, f21r = -half * inverse, -s * inverse, s * inverse
            f22r = f11r
            f11i, f12i, f21i, f22i = f11r, f11r, f11r, f11r
            taken = tl.abs(s) * precision < 1.0
    else:
        s = e2 / 2.0
        if PAIRS:
            # e^A = e^(i mean) (cos w I + sin w / w (A - i mean I)), eigenvalues i (mean +- w)
            mean = e1i / 2.0
            w = square_root(mean * mean + s * s)
            cw, sw = cos_sin(w)
            sinc = tl.where(w < 1e-8, 1.0, sw * reciprocal(tl.maximum(w, TINY)))
            pr, pi = cos_sin(mean)
            slope = mean * sinc
            f11r, f11i = pr * cw - pi * slope - 1.0, pi * cw + pr * slope
            f12r, f12i = -pr * sinc * s, -pi * sinc * s
            f21r, f21i = pr * sinc * s, pi * sinc * s
            f22r, f22i = pr * cw + pi * slope - 1.0, pi * cw - pr * slope
            angle = tl.abs(mean) + w
        else:
            ch, sh = cos_sin(s / 2.0)
            f11r, f21r = -2.0 * sh * sh, 2.0 * sh * ch
            f12r, f22r = -f21r, f11r
            f11i, f12i, f21i, f22i = f11r, f11r, f11r, f11r
            angle = tl.abs(s)
        taken = angle * angle * precision < 1.0
    return f11r, f11i, f12r, f12i, f21r, f21i, f22r, f22i, taken


@triton.jit
def turned(q1r, q1i, q2r, q2i, ar, ai, br, bi, PAIRS: tl.constexpr):
    """``q1 conj(a) + q2 conj(b)``: a column of Q F^H."""
    if PAIRS:
        re = q1r * ar + q1i * ai + q2r * br + q2i * bi
        im = q1i * ar - q1r * ai + q2i * br - q2r * bi
    else:
        re = q1r * ar + q2r * br
        im = re
    return re, im
