"""Functions of one S x S matrix held in registers, S = 2k <= 16, in float64: what k > 1 needs.

Nothing is decomposed by a library: elimination, powers and Newton's iteration only, so that a program
needs no other and the host never waits.

    orthonormalizer   G = P^H P  ->  T, R with P T orthonormal and P = (P T) R (Cholesky, shifted)
    rotation          E -> F: `projunn_kernels.rotation`

Columns of rounding size (zero, dependent) are no special case: they come out with norm at most 1.
"""

import triton
import triton.language as tl

from projunn_kernels.jit.float64 import doublings, reciprocal, square_root
from projunn_kernels.jit.plane import CAYLEY, POLAR, TINY

_SHIFT = tl.constexpr(1e-15)
SMALL = tl.constexpr(4)  # Triton unrolls loops of so many turns


@triton.jit
def column(x, j, S: tl.constexpr):
    """Column j of a matrix with S columns."""
    return tl.sum(tl.where((tl.arange(0, S) == j)[None, :], x, 0.0), axis=1)


@triton.jit
def row(x, j, S: tl.constexpr):
    """Row j of a matrix with S rows."""
    return tl.sum(tl.where((tl.arange(0, S) == j)[:, None], x, 0.0), axis=0)


@triton.jit
def matmul(ar, ai, br, bi, S: tl.constexpr, PAIRS: tl.constexpr):
    """A B: S outer products; a small one is one sum, since loops that unroll fill the registers."""
    cr = tl.zeros((S, S), tl.float64)
    ci = tl.zeros((S, S), tl.float64)
    if S <= SMALL:
        xr, yr = ar[:, :, None], br[None, :, :]
        if PAIRS:
            xi, yi = ai[:, :, None], bi[None, :, :]
            cr, ci = tl.sum(xr * yr - xi * yi, axis=1), tl.sum(xr * yi + xi * yr, axis=1)
        else:
            cr = tl.sum(xr * yr, axis=1)
    else:
        for j in range(S):
            xr, yr = column(ar, j, S)[:, None], row(br, j, S)[None, :]
            if PAIRS:
                xi, yi = column(ai, j, S)[:, None], row(bi, j, S)[None, :]
                cr += xr * yr - xi * yi
                ci += xr * yi + xi * yr
            else:
                cr += xr * yr
    return cr, ci


@triton.jit
def eye(S: tl.constexpr):
    index = tl.arange(0, S)
    return tl.where(index[:, None] == index[None, :], 1.0, 0.0).to(tl.float64)


@triton.jit
def frobenius(re, im, PAIRS: tl.constexpr):
    squares = re * re
    if PAIRS:
        squares += im * im
    return square_root(tl.sum(squares))


@triton.jit
def orthonormalizer(gr, gi, S: tl.constexpr, PAIRS: tl.constexpr):
    """T and R of a Gram matrix: G + shift = L D L^H, T = L^-H D^-1/2, R = D^1/2 L^H."""
    identity = eye(S)
    index = tl.arange(0, S)
    norms = square_root(tl.maximum(tl.sum(gr * identity, axis=0), 0.0))
    scale = tl.where(norms > TINY, reciprocal(tl.maximum(norms, TINY)), 0.0)
    both = scale[:, None] * scale[None, :]
    ur, ui = gr * both, gi * both
    # a zero column is a column of its own: T ignores it, and nothing is divided by 0
    ur += identity * (_SHIFT + tl.where(norms > TINY, 0.0, 1.0))
    mr, mi = identity, tl.zeros((S, S), tl.float64)
    pivots = tl.full((S,), 1.0, tl.float64)
    for j in range(S):
        pivot_r, pivot_i, value_r, value_i = row(ur, j, S), ui, row(mr, j, S), mi
        pivot = tl.maximum(tl.sum(tl.where(index == j, pivot_r, 0.0)), _SHIFT)
        inverse = reciprocal(pivot)
        pivots = tl.where(index == j, pivot, pivots)
        below = (index > j)[:, None]
        fr = tl.where(below, column(ur, j, S)[:, None] * inverse, 0.0)
        if PAIRS:
            pivot_i, value_i = row(ui, j, S), row(mi, j, S)
            fi = tl.where(below, column(ui, j, S)[:, None] * inverse, 0.0)
            ur, ui = (
                ur - fr * pivot_r[None, :] + fi * pivot_i[None, :],
                ui - fr * pivot_i[None, :] - fi * pivot_r[None, :],
            )
            mr, mi = (
                mr - fr * value_r[None, :] + fi * value_i[None, :],
                mi - fr * value_i[None, :] - fi * value_r[None, :],
            )
        else:
            ur -= fr * pivot_r[None, :]
            mr -= fr * value_r[None, :]
    root = reciprocal(square_root(pivots))
    upper = index[:, None] <= index[None, :]
    rr = tl.where(upper, ur * root[:, None] * norms[None, :], 0.0)
    ri = tl.where(upper, ui * root[:, None] * norms[None, :], 0.0)
    tr = tl.trans(mr) * root[None, :] * scale[:, None]
    ti = -tl.trans(mi) * root[None, :] * scale[:, None]
    return tr, ti, rr, ri


@triton.jit
def solve(ar, ai, br, bi, S: tl.constexpr, PAIRS: tl.constexpr):
    """A^-1 B by Gauss-Jordan, for A whose Hermitian part is positive: such pivots need no search."""
    index = tl.arange(0, S)
    for j in range(S):
        here = (index == j)[:, None]
        pr, qr = row(ar, j, S), row(br, j, S)
        fr = column(ar, j, S)[:, None]
        dr = tl.sum(tl.where(index == j, pr, 0.0))
        if PAIRS:
            pi, qi = row(ai, j, S), row(bi, j, S)
            fi = column(ai, j, S)[:, None]
            di = tl.sum(tl.where(index == j, pi, 0.0))
            size = reciprocal(tl.maximum(dr * dr + di * di, TINY))
            dr, di = dr * size, -di * size
            pr, pi = (pr * dr - pi * di)[None, :], (pr * di + pi * dr)[None, :]
            qr, qi = (qr * dr - qi * di)[None, :], (qr * di + qi * dr)[None, :]
            ar, ai = (
                tl.where(here, pr, ar - fr * pr + fi * pi),
                tl.where(here, pi, ai - fr * pi - fi * pr),
            )
            br, bi = (
                tl.where(here, qr, br - fr * qr + fi * qi),
                tl.where(here, qi, bi - fr * qi - fi * qr),
            )
        else:
            dr = tl.where(dr < 0.0, -1.0, 1.0) * reciprocal(tl.maximum(tl.abs(dr), TINY))
            pr, qr = (pr * dr)[None, :], (qr * dr)[None, :]
            ar = tl.where(here, pr, ar - fr * pr)
            br = tl.where(here, qr, br - fr * qr)
    return br, bi


@triton.jit
def _exponential(ar, ai, norm, S: tl.constexpr, PAIRS: tl.constexpr):
    """e^A - I: Taylor to degree 12 of A / 2^p, of norm 1/4 at most, squared p times."""
    times, scale = doublings(norm)
    ar, ai = ar * scale, ai * scale
    br, bi = matmul(ar, ai, ar, ai, S, PAIRS)
    cr, ci = matmul(br, bi, ar, ai, S, PAIRS)
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
    fr, fi = matmul(cr, ci, fr, fi, S, PAIRS)
    fr, fi = matmul(
        cr,
        ci,
        fr + identity * (1.0 / 720.0) + ar * (1.0 / 5040.0) + br * (1.0 / 40320.0),
        fi + ai * (1.0 / 5040.0) + bi * (1.0 / 40320.0),
        S,
        PAIRS,
    )
    fr, fi = matmul(
        cr,
        ci,
        fr + identity * (1.0 / 6.0) + ar * (1.0 / 24.0) + br * (1.0 / 120.0),
        fi + ai * (1.0 / 24.0) + bi * (1.0 / 120.0),
        S,
        PAIRS,
    )
    fr, fi = fr + ar + br * 0.5, fi + ai + bi * 0.5
    for _ in range(times):
        sr, si = matmul(fr, fi, fr, fi, S, PAIRS)
        fr, fi = 2.0 * fr + sr, 2.0 * fi + si
    return fr, fi


@triton.jit
def _inverse_adjoint(xr, xi, S: tl.constexpr, PAIRS: tl.constexpr):
    """X^-H = X (X^H X)^-1."""
    gr, gi = matmul(tl.trans(xr), -tl.trans(xi), xr, xi, S, PAIRS)
    hr, hi = solve(gr, gi, eye(S), tl.zeros((S, S), tl.float64), S, PAIRS)
    return matmul(xr, xi, hr, hi, S, PAIRS)


@triton.jit
def _polar(er, ei, precision, S: tl.constexpr, PAIRS: tl.constexpr):
    """polar(I + E) - I by Newton's iteration X <- (g X + X^-H / g) / 2, g = sqrt(|X^-1| / |X|)."""
    identity = eye(S)
    xr, xi = identity + er, ei
    ir, ii = _inverse_adjoint(xr, xi, S, PAIRS)
    size, inverse = frobenius(xr, xi, PAIRS), frobenius(ir, ii, PAIRS)
    # S / (|X| |X^-1|), in Frobenius norms, is between 1 and S times the ratio of singular values
    regular = size * inverse * 4.0 * precision < S
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
def rotation(er, ei, precision, S: tl.constexpr, RETRACTION: tl.constexpr, PAIRS: tl.constexpr):
    """F, zero where the step cannot be taken, and whether it is taken."""
    size = frobenius(er, ei, PAIRS)
    finite = size < 1e300
    er, ei = tl.where(finite, er, 0.0), tl.where(finite, ei, 0.0)
    ar, ai = 0.5 * (er - tl.trans(er)), 0.5 * (ei + tl.trans(ei))
    if RETRACTION == POLAR:
        fr, fi, taken = _polar(er, ei, precision, S, PAIRS)
    elif RETRACTION == CAYLEY:
        fr, fi = solve(eye(S) - 0.5 * ar, -0.5 * ai, ar, ai, S, PAIRS)
        taken = finite
    else:
        norm = frobenius(ar, ai, PAIRS)
        taken = norm * norm * precision < S
        used = tl.where(taken, 1.0, 0.0)
        fr, fi = _exponential(ar * used, ai * used, norm * used, S, PAIRS)
    # I + F is unitary: F + F^H + F^H F = 0
    gr, gi = matmul(tl.trans(fr), -tl.trans(fi), fr, fi, S, PAIRS)
    error = frobenius(gr + fr + tl.trans(fr), gi + fi - tl.trans(fi), PAIRS)
    taken = taken & finite & (error < 1e-9)
    return tl.where(taken, fr, 0.0), tl.where(taken, fi, 0.0), taken
