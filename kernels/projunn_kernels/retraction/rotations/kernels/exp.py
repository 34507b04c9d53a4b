"""The exponential in Triton: see `projunn_kernels.retraction.rotations.exp`."""

import triton
import triton.language as tl

from projunn_kernels.language.float64 import cos_sin, doublings, reciprocal, square_root
from projunn_kernels.language.plane import TINY
from projunn_kernels.language.small import eye, frobenius, matmul


@triton.jit
def plane(e1r, e1i, e2, precision, PAIRS: tl.constexpr):
    """F = [[f11, f12], [f21, f22]] for E = [[e1, 0], [e2, 0]], e2 real, and whether it is determined.

    Comparisons are False for NaN, so a step that is not finite is one that is not taken.
    """
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
def small(er, ei, ar, ai, precision, S: tl.constexpr, PAIRS: tl.constexpr):
    """e^A - I, where no plane turns by too many radians."""
    norm = frobenius(ar, ai, PAIRS)
    taken = norm * norm * precision < S
    used = tl.where(taken, 1.0, 0.0)
    fr, fi = _exponential(ar * used, ai * used, norm * used, S, PAIRS)
    return fr, fi, taken


@triton.jit
def _exponential(ar, ai, norm, S: tl.constexpr, PAIRS: tl.constexpr):
    """e^A - I: Taylor to degree 12 of A / 2^p, of norm 1/4 at most, squared p times."""
    times, scale = doublings(norm)
    ar, ai = ar * scale, ai * scale
    br, bi = matmul(ar, ai, ar, ai, PAIRS)
    cr, ci = matmul(br, bi, ar, ai, PAIRS)
    identity = eye(S)
    # sum of A^j / j! for j = 1..12, in groups of three powers around C = A^3; constants are inverted by
    # the compiler, since a division would be a subroutine
    fr = (
        identity * (1.0 / 362880.0)
        + ar * (1.0 / 3628800.0)
        + br * (1.0 / 39916800.0)
        + cr * (1.0 / 479001600.0)
    )
    fi = ai * (1.0 / 3628800.0) + bi * (1.0 / 39916800.0) + ci * (1.0 / 479001600.0)
    fr, fi = matmul(cr, ci, fr, fi, PAIRS)
    fr, fi = matmul(
        cr,
        ci,
        fr + identity * (1.0 / 720.0) + ar * (1.0 / 5040.0) + br * (1.0 / 40320.0),
        fi + ai * (1.0 / 5040.0) + bi * (1.0 / 40320.0),
        PAIRS,
    )
    fr, fi = matmul(
        cr,
        ci,
        fr + identity * (1.0 / 6.0) + ar * (1.0 / 24.0) + br * (1.0 / 120.0),
        fi + ai * (1.0 / 24.0) + bi * (1.0 / 120.0),
        PAIRS,
    )
    fr, fi = fr + ar + br * 0.5, fi + ai + bi * 0.5
    for _ in range(times):
        sr, si = matmul(fr, fi, fr, fi, PAIRS)
        fr, fi = 2.0 * fr + sr, 2.0 * fi + si
    return fr, fi


@triton.jit
def terms(product, identity, p, q, FIRST: tl.constexpr):
    """Of the coefficients 1 / (j + 1)!, three from ``FIRST`` on, of I, P and Q, and ``product``.

    Of the last three, the coefficient of ``product`` is the next one.
    """
    if FIRST == 6:
        product = (
            product * (1.0 / 3628800.0)
            + identity * (1.0 / 5040.0)
            + p * (1.0 / 40320.0)
            + q * (1.0 / 362880.0)
        )
    elif FIRST == 3:
        product += identity * (1.0 / 24.0) + p * (1.0 / 120.0) + q * (1.0 / 720.0)
    else:
        product += identity + p * 0.5 + q * (1.0 / 6.0)
    return product
