"""Functions of one S x S matrix held in registers, S <= 16, in float64: what 1 < k <= 8 needs.

S is 2k or, of k columns alone, k, rounded up to a power of two.

Nothing is decomposed by a library: elimination, powers and Newton's iteration only, so that a program
needs no other and the host never waits.

    orthonormalizer   G = P^H P  ->  T, R with P T orthonormal and P = (P T) R (Cholesky, shifted)
    rotation          E -> F, by the function of a retraction

Columns of rounding size (zero, dependent) are no special case: they come out with norm at most 1, or,
where it is asked for, as zeros.
"""

import triton
import triton.language as tl

from projunn_kernels.language.float64 import reciprocal, square_root
from projunn_kernels.language.plane import TINY

_SHIFT = tl.constexpr(1e-15)
# A Cholesky factor of unit columns that span a larger volume, squared, makes them orthonormal to 3e-9,
# and another would change nothing in float32: no eigenvalue of their Gram matrix is below a third.
SOUND = tl.constexpr(1e-6)
# A step from this size on has rounding in directions that its basis lacks.
LARGE = tl.constexpr(1e4)
# What a unit column has of its own, squared, below which it is float32's rounding of the others.  That
# is a hundred times the rounding of a Gram matrix, which so does not pass for a direction.
DEPENDENT = tl.constexpr(1e-14)
SMALL = tl.constexpr(4)  # Triton unrolls loops of so many iterations


@triton.jit
def column(x, j, S: tl.constexpr):
    """Column j of a matrix with S columns."""
    return tl.sum(tl.where((tl.arange(0, S) == j)[None, :], x, 0.0), axis=1)


@triton.jit
def row(x, j, S: tl.constexpr):
    """Row j of a matrix with S rows."""
    return tl.sum(tl.where((tl.arange(0, S) == j)[:, None], x, 0.0), axis=0)


@triton.jit
def dot(a, b):
    """A B in float64: on tensor cores where a GPU has them for it.  A has 16 columns or more."""
    return tl.dot(a, b, input_precision="ieee", out_dtype=tl.float64)


@triton.jit
def _beside(a, b):
    """The matrices side by side, their columns in turn."""
    return tl.reshape(tl.join(a, b), (a.shape[0], 2 * a.shape[1]))


@triton.jit
def _below(a, b):
    """The matrices one below the other, their rows in turn."""
    return tl.reshape(tl.permute(tl.join(a, b), (0, 2, 1)), (2 * a.shape[0], a.shape[1]))


@triton.jit
def matmul(ar, ai, br, bi, PAIRS: tl.constexpr):
    """A B, real or complex: products of tiles, or a sum where A has too few columns for those.

    Complex tiles are two real ones, [re A, -im A] and [im A, re A].  Those of 16 columns do not fit the
    registers, and are sums of outer products.
    """
    S: tl.constexpr = ar.shape[1]
    if S <= SMALL:
        xr, xi, yr, yi = ar[:, :, None], ai[:, :, None], br[None, :, :], bi[None, :, :]
        if PAIRS:
            cr, ci = tl.sum(xr * yr - xi * yi, axis=1), tl.sum(xr * yi + xi * yr, axis=1)
        else:
            cr = tl.sum(xr * yr, axis=1)
            ci = cr
    elif PAIRS and S < 16:
        b = _below(br, bi)
        cr, ci = dot(_beside(ar, -ai), b), dot(_beside(ai, ar), b)
    elif PAIRS:
        cr = tl.zeros((ar.shape[0], br.shape[1]), tl.float64)
        ci = tl.zeros((ar.shape[0], br.shape[1]), tl.float64)
        for j in range(S):
            xr, xi = column(ar, j, S)[:, None], column(ai, j, S)[:, None]
            yr, yi = row(br, j, S)[None, :], row(bi, j, S)[None, :]
            cr += xr * yr - xi * yi
            ci += xr * yi + xi * yr
    elif S < 16:
        cr = dot(_beside(ar, tl.zeros_like(ar)), _below(br, tl.zeros_like(br)))
        ci = cr
    else:
        cr = dot(ar, br)
        ci = cr
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
def orthonormalizer(gr, gi, S: tl.constexpr, PAIRS: tl.constexpr, REVEAL: tl.constexpr = False):
    """T and R of a Gram matrix: G + shift = L D L^H, T = L^-H D^-1/2, R = D^1/2 L^H; and det D.

    D is that of unit columns, so that det D is the square of the volume that they span: see `SOUND`.

    REVEAL: the columns come in an order in which each has as much of its own, beside those before it, as
    any that is left.  What `DEPENDENT` columns have of their own is left out: they get a column of T and
    a row of R that are zero, and have in their column of R what the others have of them.
    """
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
    volume = tl.full((), 1.0, tl.float64)
    order = tl.full((S,), 2 * S, tl.int32) if REVEAL else index  # 2 S: none yet; from S on: left out
    for j in range(S):
        at, below = j, index > j
        if REVEAL:
            own = tl.where(order == 2 * S, tl.sum(ur * identity, axis=0), 0.0)
            most = tl.max(own)
            at = tl.min(tl.where((order == 2 * S) & (own >= most), index, S - 1))
            order = tl.where(index == at, tl.where(most > DEPENDENT, j, S + j), order)
            below = order == tl.where(most > DEPENDENT, 2 * S, -1)
        pivot_r, pivot_i, value_r, value_i = row(ur, at, S), ui, row(mr, at, S), mi
        pivot = tl.maximum(tl.sum(tl.where(index == at, pivot_r, 0.0)), _SHIFT)
        if REVEAL:
            pivot = tl.where(most > DEPENDENT, pivot, 1.0)
        inverse = reciprocal(pivot)
        pivots = tl.where(index == at, pivot, pivots)
        volume *= pivot
        # Off the row, not the column: that is another by rounding, and T would not be the inverse of R.
        fr = tl.where(below, pivot_r * inverse, 0.0)[:, None]
        if PAIRS:
            pivot_i, value_i = row(ui, at, S), row(mi, at, S)
            fi = tl.where(below, -pivot_i * inverse, 0.0)[:, None]
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
    root = tl.where(order < S, reciprocal(square_root(pivots)), 0.0)
    upper = order[:, None] <= order[None, :]
    rr = tl.where(upper, ur * root[:, None] * norms[None, :], 0.0)
    ri = tl.where(upper, ui * root[:, None] * norms[None, :], 0.0)
    tr = tl.trans(mr) * root[None, :] * scale[:, None]
    ti = -tl.trans(mi) * root[None, :] * scale[:, None]
    return tr, ti, rr, ri, volume


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
def rotation(er, ei, precision, S: tl.constexpr, ROTATE: tl.constexpr, PAIRS: tl.constexpr):
    """F, zero where the step cannot be taken, and whether it is taken.

    ROTATE: the function ``small`` of a retraction, which gets E and A = (E - E^H)/2.
    """
    finite = frobenius(er, ei, PAIRS) < 1e300
    er, ei = tl.where(finite, er, 0.0), tl.where(finite, ei, 0.0)
    ar, ai = 0.5 * (er - tl.trans(er)), 0.5 * (ei + tl.trans(ei))
    fr, fi, taken = ROTATE(er, ei, ar, ai, precision, S, PAIRS)
    # I + F is unitary: F + F^H + F^H F = 0
    gr, gi = matmul(tl.trans(fr), -tl.trans(fi), fr, fi, PAIRS)
    error = frobenius(gr + fr + tl.trans(fr), gi + fi - tl.trans(fi), PAIRS)
    taken = taken & finite & (error < 1e-9)
    return tl.where(taken, fr, 0.0), tl.where(taken, fi, 0.0), taken


@triton.jit
def turns_only(fr, fi, gr, gi, S: tl.constexpr, PAIRS: tl.constexpr):
    """Whether I + Q F Q^H is unitary to 1e-9, from F and G = Q^H Q, also of columns not orthonormal.

    It misses that by Q X Q^H with X = F + F^H + F^H G F, whose square has the trace of (G X)^2.
    """
    xr, xi = matmul(gr, gi, fr, fi, PAIRS)
    xr, xi = matmul(tl.trans(fr), -tl.trans(fi), xr, xi, PAIRS)
    xr, xi = matmul(gr, gi, xr + fr + tl.trans(fr), xi + fi - tl.trans(fi), PAIRS)
    squares = xr * tl.trans(xr)
    if PAIRS:
        squares -= xi * tl.trans(xi)
    return tl.abs(tl.sum(squares)) < 1e-18
