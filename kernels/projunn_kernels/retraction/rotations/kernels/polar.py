"""The polar factor in Triton: see `projunn_kernels.retraction.rotations.polar`."""

import triton
import triton.language as tl

from projunn_kernels.language.blocks import combination, multiply, triangle
from projunn_kernels.language.float64 import reciprocal, square_root
from projunn_kernels.language.plane import TINY
from projunn_kernels.language.small import eye, frobenius, matmul, solve


@triton.jit
def plane(e1r, e1i, e2, precision, PAIRS: tl.constexpr):
    """F = [[f11, f12], [f21, f22]] for E = [[e1, 0], [e2, 0]], e2 real, and whether it is determined.

    Comparisons are False for NaN, so a step that is not finite is one that is not taken.
    """
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
    return f11r, f11i, f12r, f12i, f21r, f21i, f22r, f22i, taken


@triton.jit
def _inverse_adjoint(xr, xi, S: tl.constexpr, PAIRS: tl.constexpr):
    """X^-H = X (X^H X)^-1."""
    gr, gi = matmul(tl.trans(xr), -tl.trans(xi), xr, xi, PAIRS)
    hr, hi = solve(gr, gi, eye(S), tl.zeros((S, S), tl.float64), S, PAIRS)
    return matmul(xr, xi, hr, hi, PAIRS)


@triton.jit
def small(er, ei, ar, ai, precision, S: tl.constexpr, PAIRS: tl.constexpr):
    """polar(I + E) - I by Newton's iteration X <- (g X + X^-H / g) / 2, g = sqrt(|X^-1| / |X|)."""
    identity = eye(S)
    xr, xi = identity + er, ei
    ir, ii = _inverse_adjoint(xr, xi, S, PAIRS)
    size, inverse = frobenius(xr, xi, PAIRS), frobenius(ir, ii, PAIRS)
    # S / (|X| |X^-1|), in Frobenius norms, is between 1 and S times the ratio of singular values
    regular = tl.maximum(size, 1.0) * inverse * 4.0 * precision < S
    change, count = size * 0.0 + 1.0, 0
    # X^-H is made again at the loop's head, not carried from its end: with an X^-H from before the loop,
    # Triton 3.6 fails to compile it.
    while (change > 1e-14) & (count < 20) & regular:
        ir, ii = _inverse_adjoint(xr, xi, S, PAIRS)
        size, inverse = frobenius(xr, xi, PAIRS), frobenius(ir, ii, PAIRS)
        g = square_root(inverse * reciprocal(size))
        h = reciprocal(g)
        yr, yi = 0.5 * (g * xr + h * ir), 0.5 * (g * xi + h * ii)
        change = frobenius(yr - xr, yi - xi, PAIRS)
        xr, xi = yr, yi
        count += 1
    return xr - identity, xi, regular


@triton.jit
def terms(product, identity, p, q, FIRST: tl.constexpr):
    """As those of `projunn_kernels.retraction.rotations.kernels.exp`, of ((1 + x)^(-1/2) - 1) / x."""
    if FIRST == 6:
        product *= 46189.0 / 262144.0
        product += identity * (-429.0 / 2048.0) + p * (6435.0 / 32768.0) + q * (-12155.0 / 65536.0)
    elif FIRST == 3:
        product += identity * (35.0 / 128.0) + p * (-63.0 / 256.0) + q * (231.0 / 1024.0)
    else:
        product += identity * -0.5 + p * 0.375 + q * -0.3125
    return product


@triton.jit
def many(e, norm, blocks, size, precision, PAIRS: tl.constexpr, B: tl.constexpr):
    """`small` of a matrix in memory: where F is, and whether it is determined.

    By steps of Newton and Schulz, X <- X (3 I - X^H X) / 2, where X^H X is near I, else as `small`.  At
    ``e`` are E, A and five matrices of scratch memory.
    """
    matrix = (blocks * B) * (blocks * B)
    x, y, g = e + 2 * matrix, e + 3 * matrix, e + 4 * matrix
    m, h, inverse = e + 5 * matrix, e + 6 * matrix, e + matrix
    combination(x, e, e, blocks, 1.0, 1.0, 0.0, False, B)
    regular, going, count = precision > 0.0, precision > 0.0, 0
    while going & regular & (count < 20):
        multiply(g, x, x, x, x, blocks, 0.0, 0.0, 0.0, True, False, B)
        error = combination(h, g, g, blocks, -1.0, 1.0, 0.0, False, B)
        if error < 0.5:
            combination(h, g, g, blocks, 1.5, -0.5, 0.0, False, B)
            multiply(y, x, h, x, x, blocks, 0.0, 0.0, 0.0, False, False, B)
        else:
            # beyond its rows X is a multiple of the identity, not the identity
            triangle(g, m, blocks, blocks * B, PAIRS, B)
            multiply(h, x, m, x, x, blocks, 0.0, 0.0, 0.0, False, True, B)
            multiply(inverse, h, m, x, x, blocks, 0.0, 0.0, 0.0, False, False, B)
            length = combination(y, x, x, blocks, 0.0, 1.0, 0.0, False, B)
            other = combination(inverse, inverse, x, blocks, 0.0, 1.0, 0.0, False, B)
            if count == 0:
                # size / (|X| |X^-1|), in Frobenius norms, is between 1 and that times the ratio of
                # singular values
                regular = regular & (tl.maximum(length, 1.0) * other * 4.0 * precision < size)
            factor = square_root(other * reciprocal(length))
            combination(y, x, inverse, blocks, 0.0, 0.5 * factor, 0.5 * reciprocal(factor), False, B)
        x, y = y, x
        going = error > 1e-7  # whose square is rounding
        count += 1
    combination(y, x, x, blocks, -1.0, 1.0, 0.0, False, B)
    return y, regular & (count < 20)
