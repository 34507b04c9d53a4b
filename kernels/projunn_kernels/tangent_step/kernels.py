"""The whole step of a matrix along the tangent part of its direction, in one program.

    A = (W^H D - D^H W)/2      Y = orth(A R)      Z = -rate (2 A Y - Y (Y^H A Y))      Q E Q^H = Z Y^H
    F = f(E) - I               W += (W Q) (Q F^H)^H                R <- orth(Z) + 0.01 probe

As `projunn_kernels.step.kernels`, with R on the right: (n, k).  With a single panel D and W are read
once and W written once; with more panels both are read twice, and W a third time for the update,
the later times from cache.  `projunn_kernels.factorization` has the formulas.
"""

import triton
import triton.language as tl

from projunn_kernels.language.columns import combine, gram, inner, stack, step_matrix
from projunn_kernels.language.float64 import reciprocal, square_root
from projunn_kernels.language.plane import PROBE, TINY, dot, plane_basis, rotated
from projunn_kernels.language.small import eye, matmul, orthonormalizer, rotation, row
from projunn_kernels.language.tiles import (
    add_outer,
    adjoint_times,
    load_column,
    load_tile,
    pointer,
    square_sum,
    store_column,
    store_tile,
    times,
)
from projunn_kernels.step.kernels import matrix_of


@triton.jit
def _tangent_places(
    weights,
    directions,
    bases,
    probes,
    entry,
    matrix,
    m,
    n,
    k,
    D_TYPE: tl.constexpr,
    PAIRS: tl.constexpr,
    ACTIVE: tl.constexpr,
):
    """Where W and D (m, n), R and its probe (n, k) of a matrix begin; D is in the list's order."""
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    slot = tl.program_id(0).to(tl.int64)
    w = pointer(weights, entry, tl.float32) + matrix * m * n * WIDTH
    d = pointer(directions, entry, D_TYPE) + (slot if ACTIVE else matrix) * m * n * WIDTH
    r = pointer(bases, entry, tl.float32) + matrix * n * k * WIDTH
    g = pointer(probes, entry, tl.float32) + matrix * n * k * WIDTH
    return w, d, r, g


@triton.jit
def _twice(wr, wi, dr, di, xr, xi, PAIRS: tl.constexpr):
    """What a panel adds to ``2 A x``: W^H (D x) - D^H (W x)."""
    br, bi = times(dr, di, xr, xi, PAIRS)
    pr, pi = adjoint_times(wr, wi, br, bi, PAIRS)
    vr, vi = times(wr, wi, xr, xi, PAIRS)
    qr, qi = adjoint_times(dr, di, vr, vi, PAIRS)
    return pr - qr, pi - qi


@triton.jit
def plane_tangent_kernel(
    weights,
    directions,
    bases,
    probes,
    skipped,
    active,
    rate_tensor,
    rate,
    precision,
    matrices,
    m,
    n,
    D_TYPE: tl.constexpr,
    ROTATE: tl.constexpr,
    PAIRS: tl.constexpr,
    ACTIVE: tl.constexpr,
    HAS_RATE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PANELS: tl.constexpr,
):
    """k = 1."""
    entry, matrix, present = matrix_of(active, matrices, ACTIVE)
    if not present:
        return
    w, d, r, g = _tangent_places(
        weights, directions, bases, probes, entry, matrix, m, n, 1, D_TYPE, PAIRS, ACTIVE
    )
    if HAS_RATE:
        rate *= tl.load(rate_tensor).to(tl.float32)
    lane, columns = tl.arange(0, BM), tl.arange(0, BN)

    # Y = orth(A R)
    xr, xi = load_column(r, columns, columns < n, PAIRS)
    yr = tl.zeros((BN,), tl.float32)
    yi = tl.zeros((BN,), tl.float32)
    whole = m if PANELS == 1 else 0  # with several panels nothing is loaded ahead of the loops
    dr, di = load_tile(d, lane, 0, whole, n, BN, PAIRS)
    wr, wi = load_tile(w, lane, 0, whole, n, BN, PAIRS)
    for panel in range(PANELS):
        rows = panel * BM + lane
        if PANELS > 1:
            dr, di = load_tile(d, rows, 0, m, n, BN, PAIRS)
            wr, wi = load_tile(w, rows, 0, m, n, BN, PAIRS)
        pr, pi = _twice(wr, wi, dr, di, xr, xi, PAIRS)
        yr += pr
        yi += pi
    size = square_root(square_sum(yr, yi, PAIRS))
    inverse = reciprocal(
        tl.maximum(size, TINY)
    )  # in float64: the inverse of a zero norm is finite there
    yr, yi = (yr * inverse).to(tl.float32), (yi * inverse).to(tl.float32)
    moves = size != 0.0  # NaN moves, and is refused below

    # Z = 2 A Y - Y (Y^H A Y), and A Y is orthogonal to Y if it is real
    zr = tl.zeros((BN,), tl.float32)
    zi = tl.zeros((BN,), tl.float32)
    for panel in range(PANELS):
        rows = panel * BM + lane
        if PANELS > 1:
            dr, di = load_tile(d, rows, 0, tl.where(moves, m, 0), n, BN, PAIRS)
            wr, wi = load_tile(w, rows, 0, tl.where(moves, m, 0), n, BN, PAIRS)
        pr, pi = _twice(wr, wi, dr, di, yr, yi, PAIRS)
        zr += pr
        zi += pi
    yr, yi, zr, zi = yr.to(tl.float64), yi.to(tl.float64), zr.to(tl.float64), zi.to(tl.float64)
    if PAIRS:
        turned = 0.5 * dot(yr, yi, zr, zi, PAIRS)[1]
        zr, zi = zr + yi * turned, zi - yr * turned
    squares = dot(zr, zi, zr, zi, PAIRS)[0]

    q1r, q1i, q2r, q2i, e1r, e1i, e2 = plane_basis(yr, yi, -rate * zr, -rate * zi, PAIRS)
    f11r, f11i, f12r, f12i, f21r, f21i, f22r, f22i, taken = ROTATE(e1r, e1i, e2, precision, PAIRS)
    finite = (squares < 1e300) & (e2 < 1e300) & (tl.abs(e1r) + tl.abs(e1i) < 1e300)
    taken = taken & finite
    t1r, t1i = rotated(q1r, q1i, q2r, q2i, f11r, f11i, f12r, f12i, PAIRS)
    t2r, t2i = rotated(q1r, q1i, q2r, q2i, f21r, f21i, f22r, f22i, PAIRS)
    q1r, q1i, q2r, q2i = (
        q1r.to(tl.float32), q1i.to(tl.float32), q2r.to(tl.float32), q2i.to(tl.float32)
    )  # fmt: skip
    t1r, t1i, t2r, t2i = (
        t1r.to(tl.float32), t1i.to(tl.float32), t2r.to(tl.float32), t2i.to(tl.float32)
    )  # fmt: skip
    if not taken:
        tl.atomic_add(pointer(skipped, entry, tl.float32), 1.0)

    # W += (W Q) (Q F^H)^H
    kept = tl.where(taken & moves, m, 0)
    for panel in range(PANELS):
        rows = panel * BM + lane
        if PANELS > 1:
            wr, wi = load_tile(w, rows, 0, kept, n, BN, PAIRS)
        l1r, l1i = times(wr, wi, q1r, q1i, PAIRS)
        l2r, l2i = times(wr, wi, q2r, q2i, PAIRS)
        ur, ui = add_outer(wr, wi, l1r, l1i, t1r, t1i, PAIRS)
        ur, ui = add_outer(ur, ui, l2r, l2i, t2r, t2i, PAIRS)
        store_tile(w, rows, 0, kept, n, ur, ui, BN, PAIRS)

    inverse = reciprocal(tl.maximum(square_root(squares), TINY))
    inside = columns < tl.where(taken, n, 0)
    gr, gi = load_column(g, columns, inside, PAIRS)
    zr, zi = (zr * inverse).to(tl.float32) + PROBE * gr, (zi * inverse).to(tl.float32) + PROBE * gi
    store_column(r, columns, inside, zr, zi, PAIRS)


@triton.jit
def wide_tangent_kernel(
    weights,
    directions,
    bases,
    probes,
    skipped,
    active,
    rate_tensor,
    rate,
    precision,
    matrices,
    m,
    n,
    k,
    D_TYPE: tl.constexpr,
    ROTATE: tl.constexpr,
    PAIRS: tl.constexpr,
    ACTIVE: tl.constexpr,
    HAS_RATE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PANELS: tl.constexpr,
    K: tl.constexpr,
):
    """1 < k <= K: the same in a basis of 2K columns, those beyond k zero."""
    entry, matrix, present = matrix_of(active, matrices, ACTIVE)
    if not present:
        return
    S: tl.constexpr = 2 * K
    w, d, r, g = _tangent_places(
        weights, directions, bases, probes, entry, matrix, m, n, k, D_TYPE, PAIRS, ACTIVE
    )
    if HAS_RATE:
        rate *= tl.load(rate_tensor).to(tl.float32)
    lane, columns, index = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, K)

    yr = tl.zeros((K, BN), tl.float32)
    yi = tl.zeros((K, BN), tl.float32)
    for panel in range(PANELS):
        rows = panel * BM + lane
        dr, di = load_tile(d, rows, 0, m, n, BN, PAIRS)
        wr, wi = load_tile(w, rows, 0, m, n, BN, PAIRS)
        for j in range(k):
            if k == m:  # of full rank: the rows of W, conjugated, have no corner
                xr, xi = load_column(w, j * n + columns, columns < n, PAIRS)
                pr, pi = xr, -xi
                scale = tl.where(panel == 0, 1.0, 0.0)
                pr, pi = pr * scale, pi * scale
            else:
                xr, xi = load_column(r, columns * k + j, columns < n, PAIRS)
                pr, pi = _twice(wr, wi, dr, di, xr, xi, PAIRS)
            here = (index == j)[:, None]
            yr += tl.where(here, pr[None, :], 0.0)
            yi += tl.where(here, pi[None, :], 0.0)
    size = square_sum(yr, yi, PAIRS)
    moves = size != 0.0
    pr, pi = yr.to(tl.float64), yi.to(tl.float64)
    for _ in range(2):
        gr, gi = gram(pr, pi, K, PAIRS)
        tr, ti, _r, _i = orthonormalizer(gr, gi, K, PAIRS)
        pr, pi = combine(tr, ti, pr, pi, K, PAIRS)
    yr, yi = pr.to(tl.float32), pi.to(tl.float32)

    zr = tl.zeros((K, BN), tl.float32)
    zi = tl.zeros((K, BN), tl.float32)
    kept = tl.where(moves, m, 0)
    for panel in range(PANELS):
        rows = panel * BM + lane
        dr, di = load_tile(d, rows, 0, kept, n, BN, PAIRS)
        wr, wi = load_tile(w, rows, 0, kept, n, BN, PAIRS)
        for j in range(k):
            ar, ai = _twice(wr, wi, dr, di, row(yr, j, K), row(yi, j, K), PAIRS)
            here = (index == j)[:, None]
            zr += tl.where(here, ar[None, :], 0.0)
            zi += tl.where(here, ai[None, :], 0.0)

    pr, pi = yr.to(tl.float64), yi.to(tl.float64)
    cr, ci = inner(pr, pi, zr.to(tl.float64), zi.to(tl.float64), K, PAIRS)
    kr, ki = combine(0.25 * (cr - tl.trans(cr)), 0.25 * (ci + tl.trans(ci)), pr, pi, K, PAIRS)
    zr, zi = zr - kr.to(tl.float32), zi - ki.to(tl.float32)

    pr, pi = stack(yr, -rate * zr, K).to(tl.float64), stack(yi, -rate * zi, K).to(tl.float64)
    ar, ai = gram(pr, pi, S, PAIRS)
    finite = tl.sum(tl.abs(ar)) < 1e300
    rr, ri = eye(S), tl.zeros((S, S), tl.float64)
    for _ in range(3):
        gr, gi = gram(pr, pi, S, PAIRS)
        tr, ti, sr, si = orthonormalizer(gr, gi, S, PAIRS)
        pr, pi = combine(tr, ti, pr, pi, S, PAIRS)
        rr, ri = matmul(sr, si, rr, ri, S, PAIRS)
    er, ei = step_matrix(rr, ri, K, PAIRS)
    fr, fi, taken = rotation(er, ei, precision, S, ROTATE, PAIRS)
    taken = taken & finite
    ur, ui = combine(tl.trans(fr), -tl.trans(fi), pr, pi, S, PAIRS)
    qr, qi, ur, ui = (
        pr.to(tl.float32), pi.to(tl.float32), ur.to(tl.float32), ui.to(tl.float32)
    )  # fmt: skip
    if not taken:
        tl.atomic_add(pointer(skipped, entry, tl.float32), 1.0)

    kept = tl.where(taken & moves, m, 0)
    for panel in range(PANELS):
        rows = panel * BM + lane
        wr, wi = load_tile(w, rows, 0, kept, n, BN, PAIRS)
        vr, vi = wr, wi
        for j in range(S):
            lr, li = times(wr, wi, row(qr, j, S), row(qi, j, S), PAIRS)
            vr, vi = add_outer(vr, vi, lr, li, row(ur, j, S), row(ui, j, S), PAIRS)
        store_tile(w, rows, 0, kept, n, vr, vi, BN, PAIRS)

    # R <- orth(Z) + 0.01 probe
    pr, pi = zr.to(tl.float64), zi.to(tl.float64)
    gr, gi = gram(pr, pi, K, PAIRS)
    tr, ti, _r, _i = orthonormalizer(gr, gi, K, PAIRS)
    pr, pi = combine(tr, ti, pr, pi, K, PAIRS)
    at = columns[None, :] * k + index[:, None]
    inside = (columns < tl.where(taken, n, 0))[None, :] & (index < k)[:, None]
    xr, xi = load_column(g, at, inside, PAIRS)
    xr, xi = pr.to(tl.float32) + PROBE * xr, pi.to(tl.float32) + PROBE * xi
    store_column(r, at, inside, xr, xi, PAIRS)
