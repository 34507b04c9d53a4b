"""Reciprocal, square root, cos and sin of a float64 without a subroutine.

A compiler for NVIDIA GPUs makes a call of each float64 division and root, for the arguments that its
short sequence does not cover, and spills registers around the call.  Here there is nothing to call: a
first guess from the bits, then Newton's iteration, to an ulp or two.  Arguments are normal numbers
(above 2.3e-308 in size); what is not finite gives what is not finite.
"""

import triton
import triton.language as tl


@triton.jit
def reciprocal(x):
    """1 / x for x > 0: the guess is right to 5.1 %, and each step squares the error."""
    y = (0x7FDE623822FC16E6 - x.to(tl.int64, bitcast=True)).to(tl.float64, bitcast=True)
    for _ in tl.static_range(4):
        y += y * (1.0 - x * y)
    return y


@triton.jit
def square_root(x):
    """sqrt(x) for x >= 0, from 1 / sqrt(x), whose guess is right to 3.5 %."""
    y = (0x5FE6EB50C7B537A9 - (x.to(tl.int64, bitcast=True) >> 1)).to(tl.float64, bitcast=True)
    half = 0.5 * x
    for _ in tl.static_range(4):
        y += y * (0.5 - half * y * y)
    root = x * y
    return root + 0.5 * y * (x - root * root)


@triton.jit
def cos_sin(x):
    """cos and sin of a float64 below 1e5 or so, to rounding: no step turns by a larger angle.

    Reduction in two parts of pi/2, the first of 33 bits; polynomials of fdlibm (Sun, 1993).
    """
    q = tl.floor(x * 0.6366197723675814 + 0.5)
    r = (x - q * 1.57079632673412561417) - q * 6.07710050650619224932e-11
    z = r * r
    s = -2.50507602534068634195e-08 + z * 1.58969099521155010221e-10
    s = 8.33333333332248946124e-03 + z * (
        -1.98412698298579493134e-04 + z * (2.75573137070700676789e-06 + z * s)
    )
    s = r + r * z * (-1.66666666666666324348e-01 + z * s)
    c = 2.08757232129817482790e-09 - z * 1.13596475577881948265e-11
    c = 2.48015872894767294178e-05 + z * (-2.75573143513906633035e-07 + z * c)
    c = 4.16666666666666019037e-02 + z * (-1.38888888888741095749e-03 + z * c)
    c = 1.0 - (0.5 * z - z * z * c)
    quarter = q - 4.0 * tl.floor(q * 0.25)
    odd = (quarter == 1.0) | (quarter == 3.0)
    cosine, sine = tl.where(odd, s, c), tl.where(odd, c, s)
    cosine = tl.where((quarter == 1.0) | (quarter == 2.0), -cosine, cosine)
    return cosine, tl.where(quarter >= 2.0, -sine, sine)


@triton.jit
def doublings(x):
    """The smallest p >= 0 with x / 2^p < 1/4, and 2^-p, for 0 <= x < 2^1000: read off the exponent."""
    exponent = (x.to(tl.int64, bitcast=True) >> 52) - 1023  # x < 2^(exponent + 1)
    p = tl.maximum(exponent + 3, 0)
    return p.to(tl.int32), ((1023 - p) << 52).to(tl.float64, bitcast=True)
