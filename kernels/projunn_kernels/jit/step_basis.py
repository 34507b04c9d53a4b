"""Between the passes over a large matrix: its factors, one program a matrix, no matrix read.

    orthonormal         orth(Y) of a few columns, from their partial sums
    plane_basis, basis  Q and T = Q F^H of a step, k = 1 and k > 1
    warm_basis          R <- X / |X| + 0.01 probe, k = 1

Factors are column-major, (k, n) a matrix, and go through registers in chunks of BN; a column is one
contiguous load.  Sums are float64.
"""

import triton
import triton.language as tl

from projunn_kernels.jit.columns import combine, gram, step_matrix
from projunn_kernels.jit.float64 import reciprocal, square_root
from projunn_kernels.jit.plane import PROBE, TINY, dot, plane_rotation, turned
from projunn_kernels.jit.plane import product as scaled
from projunn_kernels.jit.small import eye, matmul, orthonormalizer, rotation
from projunn_kernels.jit.tiles import load_tile, store_tile


@triton.jit
def _columns(base, first, n, k, BN: tl.constexpr, K: tl.constexpr, PAIRS: tl.constexpr):
    """Columns [first, first + BN) of a (k, n) factor: float64 (K, BN)."""
    re, im = load_tile(base, tl.arange(0, K), first, k, n, BN, PAIRS)
    return re.to(tl.float64), im.to(tl.float64)


@triton.jit
def _sum_partials(base, first, n, k, splits, BN: tl.constexpr, K: tl.constexpr, PAIRS: tl.constexpr):
    """Columns [first, first + BN) of the (splits, k, n) partial sums, added up: float64 (K, BN)."""
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    zr = tl.zeros((K, BN), tl.float64)
    zi = tl.zeros((K, BN), tl.float64)
    for _ in range(splits):
        pr, pi = _columns(base, first, n, k, BN, K, PAIRS)
        zr += pr
        zi += pi
        base += k * n * WIDTH
    return zr, zi


@triton.jit
def _store_columns(base, first, n, k, re, im, BN: tl.constexpr, K: tl.constexpr, PAIRS: tl.constexpr):
    re, im = re.to(tl.float32), im.to(tl.float32)
    store_tile(base, tl.arange(0, K), first, k, n, re, im, BN, PAIRS)


@triton.jit
def orthonormal_kernel(
    partial,
    factor,
    n,
    k,
    splits,
    PAIRS: tl.constexpr,
    BN: tl.constexpr,
    K: tl.constexpr,
):
    """``orth`` of the columns whose partial sums are given, (k, n): Cholesky of the Gram matrix, twice.

    One program a matrix.  k = 1 is a division by the norm.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    slot = tl.program_id(0).to(tl.int64)
    source = partial + slot * splits * k * n * WIDTH
    out = factor + slot * k * n * WIDTH
    gr = tl.zeros((K, K), tl.float64)
    gi = tl.zeros((K, K), tl.float64)
    for first in range(0, n, BN):
        yr, yi = _sum_partials(source, first, n, k, splits, BN, K, PAIRS)
        _store_columns(out, first, n, k, yr, yi, BN, K, PAIRS)
        ar, ai = gram(yr, yi, K, PAIRS)
        gr += ar
        gi += ai
    tr, ti, _r, _i = orthonormalizer(gr, gi, K, PAIRS)
    tl.debug_barrier()
    if K == 1:
        for first in range(0, n, BN):
            yr, yi = _columns(out, first, n, k, BN, K, PAIRS)
            _store_columns(out, first, n, k, yr * tr, yi * tr, BN, K, PAIRS)
        return
    hr = tl.zeros((K, K), tl.float64)
    hi = tl.zeros((K, K), tl.float64)
    for first in range(0, n, BN):
        yr, yi = _columns(out, first, n, k, BN, K, PAIRS)
        yr, yi = combine(tr, ti, yr, yi, K, PAIRS)
        ar, ai = gram(yr, yi, K, PAIRS)
        hr += ar
        hi += ai
    ur, ui, _r, _i = orthonormalizer(hr, hi, K, PAIRS)
    tr, ti = matmul(tr, ti, ur, ui, K, PAIRS)
    for first in range(0, n, BN):
        yr, yi = _columns(out, first, n, k, BN, K, PAIRS)
        yr, yi = combine(tr, ti, yr, yi, K, PAIRS)
        tl.debug_barrier()
        _store_columns(out, first, n, k, yr, yi, BN, K, PAIRS)


@triton.jit
def _places(right, partial, basis, turned_basis, n, k, splits, S: tl.constexpr, PAIRS: tl.constexpr):
    """Where a matrix' Y (k, n), partial sums of Z (splits, k, n), Q and Q F^H (S, n) begin."""
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    at = tl.program_id(0).to(tl.int64) * n * WIDTH
    return right + at * k, partial + at * splits * k, basis + at * S, turned_basis + at * S


@triton.jit
def _report(taken_mask, skipped, taken, COUNT: tl.constexpr):
    """Note whether the step of a matrix is taken, and count it where it is not."""
    tl.store(taken_mask + tl.program_id(0), taken.to(tl.int8))
    if COUNT:
        tl.atomic_add(skipped, tl.where(taken, 0.0, 1.0))


@triton.jit
def plane_basis_kernel(
    right,
    partial,
    basis,
    turned_basis,
    taken_mask,
    skipped,
    n,
    splits,
    scale,
    precision,
    RETRACTION: tl.constexpr,
    PAIRS: tl.constexpr,
    COUNT: tl.constexpr,
    BN: tl.constexpr,
):
    """k = 1: q1, q2 into ``basis`` (2, n) and the columns of Q F^H into ``turned_basis``.

    One program a matrix; Y is ``right`` (1, n), Z is ``scale`` times the sum of the partial sums.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    y, source, q, t = _places(right, partial, basis, turned_basis, n, 1, splits, 2, PAIRS)
    yy, br, bi = tl.zeros((), tl.float64), tl.zeros((), tl.float64), tl.zeros((), tl.float64)
    for first in range(0, n, BN):
        yr, yi = _columns(y, first, n, 1, BN, 1, PAIRS)
        zr, zi = _sum_partials(source, first, n, 1, splits, BN, 1, PAIRS)
        zr, zi = (scale * zr).to(tl.float32), (scale * zi).to(tl.float32)
        _store_columns(q + n * WIDTH, first, n, 1, zr, zi, BN, 1, PAIRS)
        yy += dot(yr, yi, yr, yi, PAIRS)[0]
        pr, pi = dot(yr, yi, zr.to(tl.float64), zi.to(tl.float64), PAIRS)
        br += pr
        bi += pi
    a = square_root(yy)
    inverse = reciprocal(tl.maximum(a, TINY))
    br, bi = br * inverse, bi * inverse
    tl.debug_barrier()
    gr, gi = tl.zeros((), tl.float64), tl.zeros((), tl.float64)
    for first in range(0, n, BN):
        yr, yi = _columns(y, first, n, 1, BN, 1, PAIRS)
        zr, zi = _columns(q + n * WIDTH, first, n, 1, BN, 1, PAIRS)
        yr, yi = yr * inverse, yi * inverse
        sr, si = scaled(yr, yi, br, bi, PAIRS)
        pr, pi = dot(yr, yi, zr - sr, zi - si, PAIRS)
        gr += pr
        gi += pi
    br, bi = br + gr, bi + gi
    cc = tl.zeros((), tl.float64)
    for first in range(0, n, BN):
        yr, yi = _columns(y, first, n, 1, BN, 1, PAIRS)
        zr, zi = _columns(q + n * WIDTH, first, n, 1, BN, 1, PAIRS)
        sr, si = scaled(yr * inverse, yi * inverse, br, bi, PAIRS)
        cc += dot(zr - sr, zi - si, zr - sr, zi - si, PAIRS)[0]
    c = square_root(cc)
    f11r, f11i, f12r, f12i, f21r, f21i, f22r, f22i, taken = plane_rotation(
        br * a, bi * a, c * a, precision, RETRACTION, PAIRS
    )
    taken = taken & ((tl.abs(br) + tl.abs(bi) + c) * a < 1e300)
    _report(taken_mask, skipped, taken, COUNT)
    shrink = reciprocal(tl.maximum(c, TINY))
    used = tl.where(taken, 1.0, 0.0)
    for first in range(0, n, BN):
        yr, yi = _columns(y, first, n, 1, BN, 1, PAIRS)
        zr, zi = _columns(q + n * WIDTH, first, n, 1, BN, 1, PAIRS)
        yr, yi = tl.where(taken, yr * inverse, 0.0), tl.where(taken, yi * inverse, 0.0)
        sr, si = scaled(yr, yi, br, bi, PAIRS)
        zr = tl.where(taken, (zr - sr) * shrink, 0.0)
        zi = tl.where(taken, (zi - si) * shrink, 0.0)
        t1r, t1i = turned(yr, yi, zr, zi, f11r * used, f11i * used, f12r * used, f12i * used, PAIRS)
        t2r, t2i = turned(yr, yi, zr, zi, f21r * used, f21i * used, f22r * used, f22i * used, PAIRS)
        tl.debug_barrier()
        _store_columns(q, first, n, 1, yr, yi, BN, 1, PAIRS)
        _store_columns(q + n * WIDTH, first, n, 1, zr, zi, BN, 1, PAIRS)
        _store_columns(t, first, n, 1, t1r, t1i, BN, 1, PAIRS)
        _store_columns(t + n * WIDTH, first, n, 1, t2r, t2i, BN, 1, PAIRS)


@triton.jit
def basis_kernel(
    right,
    partial,
    basis,
    turned_basis,
    taken_mask,
    skipped,
    n,
    k,
    splits,
    scale,
    precision,
    RETRACTION: tl.constexpr,
    PAIRS: tl.constexpr,
    COUNT: tl.constexpr,
    BN: tl.constexpr,
    K: tl.constexpr,
):
    """1 < k <= K: Q and Q F^H, (2K, n) each, those columns that the step does not have zero."""
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    S: tl.constexpr = 2 * K
    y, source, q, t = _places(right, partial, basis, turned_basis, n, k, splits, S, PAIRS)
    for first in range(0, n, BN):  # [Y, Z], padded with zero columns, where Q will be
        yr, yi = _columns(y, first, n, k, BN, K, PAIRS)
        zr, zi = _sum_partials(source, first, n, k, splits, BN, K, PAIRS)
        _store_columns(q, first, n, K, yr, yi, BN, K, PAIRS)
        _store_columns(q + K * n * WIDTH, first, n, K, scale * zr, scale * zi, BN, K, PAIRS)
    tl.debug_barrier()
    ur, ui = eye(S), tl.zeros((S, S), tl.float64)
    rr, ri = eye(S), tl.zeros((S, S), tl.float64)
    finite = tl.sum(rr) < 0.0
    for repeat in range(3):
        gr = tl.zeros((S, S), tl.float64)
        gi = tl.zeros((S, S), tl.float64)
        for first in range(0, n, BN):
            pr, pi = _columns(q, first, n, S, BN, S, PAIRS)
            pr, pi = combine(ur, ui, pr, pi, S, PAIRS)
            ar, ai = gram(pr, pi, S, PAIRS)
            gr += ar
            gi += ai
        if repeat == 0:
            finite = tl.sum(tl.abs(gr)) < 1e300
        tr, ti, sr, si = orthonormalizer(gr, gi, S, PAIRS)
        ur, ui = matmul(ur, ui, tr, ti, S, PAIRS)
        rr, ri = matmul(sr, si, rr, ri, S, PAIRS)
    er, ei = step_matrix(rr, ri, K, PAIRS)
    fr, fi, taken = rotation(er, ei, precision, S, RETRACTION, PAIRS)
    taken = taken & finite
    _report(taken_mask, skipped, taken, COUNT)
    for first in range(0, n, BN):
        pr, pi = _columns(q, first, n, S, BN, S, PAIRS)
        pr, pi = combine(ur, ui, pr, pi, S, PAIRS)
        pr, pi = tl.where(taken, pr, 0.0), tl.where(taken, pi, 0.0)
        vr, vi = combine(tl.trans(fr), -tl.trans(fi), pr, pi, S, PAIRS)
        tl.debug_barrier()
        _store_columns(q, first, n, S, pr, pi, BN, S, PAIRS)
        _store_columns(t, first, n, S, vr, vi, BN, S, PAIRS)


@triton.jit
def warm_basis_kernel(
    left,
    basis,
    probe,
    taken_mask,
    m,
    PAIRS: tl.constexpr,
    BN: tl.constexpr,
):
    """k = 1: ``R <- X / |X| + 0.01 probe`` where the step was taken.  One program a matrix."""
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    slot = tl.program_id(0).to(tl.int64)
    if tl.load(taken_mask + slot) == 0:
        return
    at = slot * m * WIDTH
    squares = tl.zeros((), tl.float64)
    for first in range(0, m, BN):
        xr, xi = _columns(left + at, first, m, 1, BN, 1, PAIRS)
        squares += dot(xr, xi, xr, xi, PAIRS)[0]
    inverse = reciprocal(tl.maximum(square_root(squares), TINY))
    for first in range(0, m, BN):
        xr, xi = _columns(left + at, first, m, 1, BN, 1, PAIRS)
        pr, pi = _columns(probe + at, first, m, 1, BN, 1, PAIRS)
        xr, xi = xr * inverse + PROBE * pr, xi * inverse + PROBE * pi
        _store_columns(basis + at, first, m, 1, xr, xi, BN, 1, PAIRS)
