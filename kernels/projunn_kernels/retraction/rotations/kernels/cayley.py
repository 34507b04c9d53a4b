"""The Cayley transform in Triton: see `projunn_kernels.retraction.rotations.cayley`."""

import triton
import triton.language as tl

from projunn_kernels.language.blocks import combination, multiply, triangle
from projunn_kernels.language.float64 import reciprocal
from projunn_kernels.language.small import eye, solve


@triton.jit
def plane(e1r, e1i, e2, precision, PAIRS: tl.constexpr):
    """F = [[f11, f12], [f21, f22]] for E = [[e1, 0], [e2, 0]], e2 real, and whether it is determined.

    Comparisons are False for NaN, so a step that is not finite is one that is not taken.
    """
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
    return f11r, f11i, f12r, f12i, f21r, f21i, f22r, f22i, taken


@triton.jit
def small(er, ei, ar, ai, precision, S: tl.constexpr, PAIRS: tl.constexpr):
    """(I - A/2)^-1 A; whether it is finite shows in the check of its unitarity."""
    fr, fi = solve(eye(S) - 0.5 * ar, -0.5 * ai, ar, ai, S, PAIRS)
    return fr, fi, precision > 0.0


@triton.jit
def terms(product, identity, p, q, FIRST: tl.constexpr):
    """As those of `projunn_kernels.retraction.rotations.kernels.exp`, of the coefficients 2^-j."""
    if FIRST == 6:
        product = product * 0.001953125 + identity * 0.015625 + p * 0.0078125 + q * 0.00390625
    elif FIRST == 3:
        product += identity * 0.125 + p * 0.0625 + q * 0.03125
    else:
        product += identity + p * 0.5 + q * 0.25
    return product


@triton.jit
def many(e, norm, blocks, size, precision, PAIRS: tl.constexpr, B: tl.constexpr):
    """`small` of a matrix in memory: where F is, and whether it is determined.

    V = (I - A/2)^-1 = (I - A^2/4)^-1 (I + A/2) by a Cholesky factor, corrected by Newton's iteration
    V <- V + V R, R = I - (I - A/2) V; F = V A, and 2 V - 2 I, which large A do not spoil.  At ``e`` are
    E, A and five matrices of scratch memory.
    """
    matrix = (blocks * B) * (blocks * B)
    a, h, m, v = e + matrix, e + 2 * matrix, e + 3 * matrix, e + 4 * matrix
    w, r = e + 5 * matrix, e + 6 * matrix
    multiply(w, a, a, a, a, blocks, 0.0, 0.0, 0.0, False, False, B)
    combination(h, w, w, blocks, 1.0, -0.25, 0.0, False, B)
    triangle(h, m, blocks, size, PAIRS, B)
    combination(w, a, a, blocks, 1.0, 0.5, 0.0, False, B)
    multiply(h, m, w, a, a, blocks, 0.0, 0.0, 0.0, False, False, B)
    multiply(v, m, h, a, a, blocks, 0.0, 0.0, 0.0, True, False, B)
    combination(m, a, a, blocks, 1.0, -0.5, 0.0, False, B)
    multiply(h, m, v, a, a, blocks, 0.0, 0.0, 0.0, False, False, B)
    rest = combination(r, h, h, blocks, 1.0, -1.0, 0.0, False, B)
    count = 0
    while (rest > 1e-13 * size) & (rest < 1.0) & (count < 5):
        multiply(w, v, r, v, v, blocks, 0.0, 1.0, 0.0, False, False, B)
        multiply(h, m, w, a, a, blocks, 0.0, 0.0, 0.0, False, False, B)
        rest = combination(r, h, h, blocks, 1.0, -1.0, 0.0, False, B)
        v, w = w, v
        count += 1
    if norm < 1.0:
        multiply(h, v, a, a, a, blocks, 0.0, 0.0, 0.0, False, False, B)
    else:
        combination(h, v, v, blocks, -2.0, 2.0, 0.0, False, B)
    return h, precision > 0.0
