"""The kernels of steps of up to 8 columns."""

import triton
import triton.language as tl

from projunn_kernels.language.columns import (
    combine,
    gram_of_combined,
    gram_of_part,
    load_combined,
    load_gram,
    step_matrix,
)
from projunn_kernels.language.counters import count_missed, count_skipped
from projunn_kernels.language.factors import load_columns, store_columns, sum_partials
from projunn_kernels.language.float64 import reciprocal, square_root
from projunn_kernels.language.orthonormal import orthonormal_part
from projunn_kernels.language.plane import PROBE, ROUNDING, TINY, dot, rotated
from projunn_kernels.language.plane import product as scaled
from projunn_kernels.language.small import (
    LARGE,
    SOUND,
    matmul,
    orthonormalizer,
    rotation,
    turns_only,
)
from projunn_kernels.language.tiles import (
    add_outer,
    load_column,
    load_range,
    load_rows_as_columns,
    load_tile,
    matrix_place,
    store_columns_as_rows,
    store_tile,
    times,
)


@triton.jit
def _places(right, partial, basis, rotated_basis, n, right_splits, splits, PAIRS: tl.constexpr):
    """Where a matrix' partial sums of Y and Z, and its Q and Q F^H (2, n), begin."""
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    at = tl.program_id(0).to(tl.int64) * n * WIDTH
    return right + at * right_splits, partial + at * splits, basis + at * 2, rotated_basis + at * 2


@triton.jit
def _report(taken_mask, taken):
    """Note whether the step of a matrix is taken."""
    tl.store(taken_mask + tl.program_id(0), taken.to(tl.int8))


@triton.jit
def _y_and_z(
    right, partial, first, n, right_splits, splits, rate, BN: tl.constexpr, PAIRS: tl.constexpr
):
    """BN numbers of Y and of -rate Z, in float32, from their partial sums."""
    yr, yi = sum_partials(right, first, n, 1, right_splits, BN, 1, PAIRS)
    zr, zi = sum_partials(partial, first, n, 1, splits, BN, 1, PAIRS)
    zr, zi = (-rate * zr).to(tl.float32), (-rate * zi).to(tl.float32)
    return yr.to(tl.float32), yi.to(tl.float32), zr, zi


@triton.jit
def _held_or_stored(held, q, first, n, HOLD: tl.constexpr, BN: tl.constexpr, PAIRS: tl.constexpr):
    """What `_y_and_z` returned, in float64."""
    if HOLD:
        yr, yi = held[0].to(tl.float64), held[1].to(tl.float64)
        zr, zi = held[2].to(tl.float64), held[3].to(tl.float64)
    else:
        WIDTH: tl.constexpr = 2 if PAIRS else 1
        yr, yi = load_columns(q, first, n, 1, BN, 1, PAIRS)
        zr, zi = load_columns(q + n * WIDTH, first, n, 1, BN, 1, PAIRS)
    return yr, yi, zr, zi


@triton.jit
def plane_basis_kernel(
    right,
    partial,
    basis,
    rotated_basis,
    taken_mask,
    rate_tensor,
    left,
    inverses,
    rate,
    m,
    n,
    right_splits,
    splits,
    precision,
    ROTATE: tl.constexpr,
    PAIRS: tl.constexpr,
    HAS_RATE: tl.constexpr,
    WARM: tl.constexpr,
    HOLD: tl.constexpr,
    BN: tl.constexpr,
):
    """k = 1: q1, q2 into ``basis`` (2, n) and the columns of Q F^H into ``rotated_basis``.

    One program a matrix; Y is the sum of the partial sums ``right`` (right_splits, n), and Z that of
    ``partial`` (splits, n) times -rate.  HOLD: BN is at least n, and Y and Z stay in registers.
    WARM: ``inverses`` become 1 / |x| of the columns ``left`` (m), for `rotate_rows_kernel`.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    if HAS_RATE:
        rate *= tl.load(rate_tensor).to(tl.float32)
    if WARM:
        x, squares = left + tl.program_id(0).to(tl.int64) * m * WIDTH, tl.zeros((), tl.float64)
        for first in range(0, m, BN):
            xr, xi = load_columns(x, first, m, 1, BN, 1, PAIRS)
            squares += dot(xr, xi, xr, xi, PAIRS)[0]
        tl.store(inverses + tl.program_id(0), reciprocal(tl.maximum(square_root(squares), TINY)))
    addends, source, q, t = _places(right, partial, basis, rotated_basis, n, right_splits, splits, PAIRS)
    yy, br, bi = tl.zeros((), tl.float64), tl.zeros((), tl.float64), tl.zeros((), tl.float64)
    held = ()
    if HOLD:
        held = _y_and_z(addends, source, 0, n, right_splits, splits, rate, BN, PAIRS)
        yr, yi, zr, zi = _held_or_stored(held, q, 0, n, HOLD, BN, PAIRS)
        yy = dot(yr, yi, yr, yi, PAIRS)[0]
        br, bi = dot(yr, yi, zr, zi, PAIRS)
    else:
        for first in range(0, n, BN):
            yr, yi, zr, zi = _y_and_z(addends, source, first, n, right_splits, splits, rate, BN, PAIRS)
            store_columns(q, first, n, 1, yr, yi, BN, 1, PAIRS)
            store_columns(q + n * WIDTH, first, n, 1, zr, zi, BN, 1, PAIRS)
            yr, yi = yr.to(tl.float64), yi.to(tl.float64)
            yy += dot(yr, yi, yr, yi, PAIRS)[0]
            pr, pi = dot(yr, yi, zr.to(tl.float64), zi.to(tl.float64), PAIRS)
            br += pr
            bi += pi
        tl.debug_barrier()
    end = BN if HOLD else n
    a = square_root(yy)
    inverse = reciprocal(tl.maximum(a, TINY))
    br, bi = br * inverse, bi * inverse
    gr, gi = tl.zeros((), tl.float64), tl.zeros((), tl.float64)
    for first in range(0, end, BN):
        yr, yi, zr, zi = _held_or_stored(held, q, first, n, HOLD, BN, PAIRS)
        yr, yi = yr * inverse, yi * inverse
        sr, si = scaled(yr, yi, br, bi, PAIRS)
        pr, pi = dot(yr, yi, zr - sr, zi - si, PAIRS)
        gr += pr
        gi += pi
    br, bi = br + gr, bi + gi
    cc = tl.zeros((), tl.float64)
    for first in range(0, end, BN):
        yr, yi, zr, zi = _held_or_stored(held, q, first, n, HOLD, BN, PAIRS)
        sr, si = scaled(yr * inverse, yi * inverse, br, bi, PAIRS)
        cc += dot(zr - sr, zi - si, zr - sr, zi - si, PAIRS)[0]
    c = square_root(cc)
    c = tl.where(c <= (tl.abs(br) + tl.abs(bi)) * ROUNDING, 0.0, c)
    f11r, f11i, f12r, f12i, f21r, f21i, f22r, f22i, taken = ROTATE(
        br * a, bi * a, c * a, precision, PAIRS
    )
    taken = taken & ((tl.abs(br) + tl.abs(bi) + c) * a < 1e300)
    _report(taken_mask, taken)
    shrink = tl.where(c == 0.0, 0.0, reciprocal(tl.maximum(c, TINY)))
    used = tl.where(taken, 1.0, 0.0)
    for first in range(0, end, BN):
        yr, yi, zr, zi = _held_or_stored(held, q, first, n, HOLD, BN, PAIRS)
        yr, yi = tl.where(taken, yr * inverse, 0.0), tl.where(taken, yi * inverse, 0.0)
        sr, si = scaled(yr, yi, br, bi, PAIRS)
        zr = tl.where(taken, (zr - sr) * shrink, 0.0)
        zi = tl.where(taken, (zi - si) * shrink, 0.0)
        t1r, t1i = rotated(yr, yi, zr, zi, f11r * used, f11i * used, f12r * used, f12i * used, PAIRS)
        t2r, t2i = rotated(yr, yi, zr, zi, f21r * used, f21i * used, f22r * used, f22i * used, PAIRS)
        if not HOLD:
            tl.debug_barrier()
        store_columns(q, first, n, 1, yr, yi, BN, 1, PAIRS)
        store_columns(q + n * WIDTH, first, n, 1, zr, zi, BN, 1, PAIRS)
        store_columns(t, first, n, 1, t1r, t1i, BN, 1, PAIRS)
        store_columns(t + n * WIDTH, first, n, 1, t2r, t2i, BN, 1, PAIRS)


@triton.jit
def _basis_part(
    right, partial, columns, gram, basis, rotated_basis, taken_mask, rate_tensor, rate,
    part, parts, each, n, k, splits, precision,
    ROTATE: tl.constexpr, PAIRS: tl.constexpr, HAS_RATE: tl.constexpr, ALONE: tl.constexpr,
    BN: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """A part of Q and Q F^H, (2K, n) each, those columns that the step does not have zero.

    P is [Y, -rate Z]; parts and ALONE as in `orthonormal_part`.  Where columns are close to dependent
    another factor takes the place of the first, without those that are, and up to two more follow; two
    also follow where columns are large.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    S: tl.constexpr = 2 * K
    slot = tl.program_id(1).to(tl.int64)
    at = slot * n * WIDTH
    columns += at * S
    if ALONE:
        if HAS_RATE:
            rate *= tl.load(rate_tensor).to(tl.float32)
        gr, gi = gram_of_part(
            right + at * k, partial + at * splits * k, columns, part, each, n, k, splits,
            -rate, True, PAIRS, BN, S,
        )  # fmt: skip
        tl.debug_barrier()
    else:
        gr, gi = load_gram(gram + slot * parts * (S * S * WIDTH), parts, S, PAIRS)
    finite, large = tl.sum(tl.abs(gr)) < 1e300, tl.sum(tl.abs(gr)) > LARGE * LARGE
    ur, ui, rr, ri, volume = orthonormalizer(gr, gi, S, PAIRS)
    count, most = 0, 2
    while ((volume < SOUND) | large) & (count < most):
        # What T makes of a dependent column is rounding, another with each T.  The columns after it
        # would have coordinates in that direction: so it is left out, before anything else.
        anew = (count == 0) & (volume < SOUND)
        if anew:
            hr, hi, most = gr, gi, 3
        else:
            hr, hi = gram_of_combined(columns, n, ur, ui, BN, S, PAIRS)
        tr, ti, sr, si, volume = orthonormalizer(hr, hi, S, PAIRS, True)
        if anew:
            ur, ui, rr, ri = tr, ti, sr, si
        else:
            ur, ui = matmul(ur, ui, tr, ti, PAIRS)
            rr, ri = matmul(sr, si, rr, ri, PAIRS)
        count += 1
    er, ei = step_matrix(rr, ri, K, PAIRS)
    fr, fi, taken = rotation(er, ei, precision, S, ROTATE, PAIRS)
    taken = taken & finite
    if large & taken:
        hr, hi = gram_of_combined(columns, n, ur, ui, BN, S, PAIRS)
        taken = turns_only(fr, fi, hr, hi, S, PAIRS)
    tl.store(taken_mask + slot, taken.to(tl.int8))
    for first in range(part * each, tl.minimum((part + 1) * each, n), BN):
        pr, pi = load_combined(columns, first, n, ur, ui, BN, S, PAIRS)
        pr, pi = tl.where(taken, pr, 0.0), tl.where(taken, pi, 0.0)
        vr, vi = combine(tl.trans(fr), -tl.trans(fi), pr, pi, PAIRS)
        store_columns(basis + at * S, first, n, S, pr, pi, BN, S, PAIRS)
        store_columns(rotated_basis + at * S, first, n, S, vr, vi, BN, S, PAIRS)


@triton.jit
def basis_kernel(
    right,
    partial,
    columns,
    gram,
    basis,
    rotated_basis,
    taken_mask,
    left,
    left_columns,
    left_gram,
    left_factor,
    rate_tensor,
    rate,
    m,
    n,
    k,
    splits,
    each,
    left_each,
    parts,
    precision,
    ROTATE: tl.constexpr,
    PAIRS: tl.constexpr,
    HAS_RATE: tl.constexpr,
    ALONE: tl.constexpr,
    BN: tl.constexpr,
    K: tl.constexpr,
):
    """1 < k <= K: Q and Q F^H of the step ``-rate Z Y^H``.

    Grid (parts, matrices).  Programs beyond ``parts``, if there are any, make ``orth`` of the columns
    ``left``, X (k, m), into ``left_factor``: the next step needs it, and it would take a launch.
    """
    part = tl.program_id(0)
    if part >= parts:
        orthonormal_part(
            left, left_columns, left_gram, left_factor, part - parts, tl.num_programs(0) - parts,
            left_each, m, k, 1, PAIRS, ALONE, BN, K,
        )  # fmt: skip
    else:
        _basis_part(
            right, partial, columns, gram, basis, rotated_basis, taken_mask, rate_tensor, rate,
            part, parts, each, n, k, splits, precision,
            ROTATE, PAIRS, HAS_RATE, ALONE, BN, K,
        )  # fmt: skip


@triton.jit
def _refresh(
    columns,
    inverses,
    bases,
    probes,
    matrices,
    rows,
    m,
    k,
    PAIRS: tl.constexpr,
    K: tl.constexpr,
):
    """``R <- S + 0.01 probe`` in some rows; for k = 1 S is still to be divided by its norm."""
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    r, _ = matrix_place(bases, bases, matrices, m * k * WIDTH, 1, "table", tl.float32)
    g, _ = matrix_place(probes, probes, matrices, m * k * WIDTH, 1, "table", tl.float32)
    slot, kr = tl.program_id(1).to(tl.int64), tl.arange(0, K)
    inside = (kr < k)[:, None] & (rows < m)[None, :]
    at = kr.to(tl.int64)[:, None] * m + rows[None, :]
    sr, si = load_column(columns + slot * k * m * WIDTH, at, inside, PAIRS)
    sr, si = sr.to(tl.float64), si.to(tl.float64)
    if K == 1:
        inverse = tl.load(inverses + slot)
        sr, si = sr * inverse, si * inverse
    pr, pi = load_rows_as_columns(g, rows, kr, m, k, PAIRS)
    sr, si = (sr + PROBE * pr).to(tl.float32), (si + PROBE * pi).to(tl.float32)
    store_columns_as_rows(r, rows, kr, m, k, sr, si, PAIRS)


@triton.jit
def rotate_rows_kernel(
    weight,
    basis,
    rotated_basis,
    taken_mask,
    listed,
    columns,
    inverses,
    bases,
    probes,
    skipped,
    missed,
    matrices,
    m,
    n,
    k,
    PAIRS: tl.constexpr,
    LISTED: tl.constexpr,
    WARM: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    S: tl.constexpr,
    HOLD: tl.constexpr,
):
    """``W += (W Q) T^H``, Q and T (S, n).  Grid (row tiles, matrices).

    HOLD: BN is at least n and the rows stay in registers.  A step that is not taken writes nothing.
    WARM: the bases of the next step are made too (`_refresh`), from ``columns`` (k, m), and steps that
    are not taken are counted; ``bases``, ``probes`` and the counters are tables of addresses.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    w, present = matrix_place(weight, listed, matrices, m * n * WIDTH, 1, LISTED, tl.float32)
    slot = tl.program_id(1).to(tl.int64)
    if not present:
        return
    if tl.load(taken_mask + slot) == 0:
        if WARM:  # noqa: SIM102 (Triton evaluates both sides of an "and")
            if tl.program_id(0) == 0:
                count_skipped(skipped, slot // matrices)
                count_missed(missed, slot // matrices, slot % matrices)
        return
    q = basis + slot * S * n * WIDTH
    t = rotated_basis + slot * S * n * WIDTH
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    if WARM:
        _refresh(columns, inverses, bases, probes, matrices, rows, m, k, PAIRS, S // 2)
    if HOLD:
        wr, wi = load_tile(w, rows, 0, m, n, BN, PAIRS)
        ls = ()  # all of W Q before W changes: the rows are in registers once, not twice
        for j in tl.static_range(S):
            qr, qi = load_range(q + j * n * WIDTH, 0, n, BN, PAIRS)
            ls = ls + (times(wr, wi, qr, qi, PAIRS),)  # noqa: RUF005 (Triton has no starred tuples)
        for j in tl.static_range(S):
            tr, ti = load_range(t + j * n * WIDTH, 0, n, BN, PAIRS)
            wr, wi = add_outer(wr, wi, ls[j][0], ls[j][1], tr, ti, PAIRS)
        store_tile(w, rows, 0, m, n, wr, wi, BN, PAIRS)
    else:
        js = tl.arange(0, S)
        sr = tl.zeros((S, BM, BN), tl.float32)
        si = tl.zeros((S, BM, BN), tl.float32)
        for first in range(0, n, BN):
            re, im = load_tile(w, rows, first, m, n, BN, PAIRS)
            qr, qi = load_tile(q, js, first, S, n, BN, PAIRS)
            re, im, qr, qi = re[None, :, :], im[None, :, :], qr[:, None, :], qi[:, None, :]
            if PAIRS:
                sr += re * qr - im * qi
                si += re * qi + im * qr
            else:
                sr += re * qr
        lr, li = tl.sum(sr, axis=2)[:, :, None], tl.sum(si, axis=2)[:, :, None]
        for first in range(0, n, BN):
            re, im = load_tile(w, rows, first, m, n, BN, PAIRS)
            tr, ti = load_tile(t, js, first, S, n, BN, PAIRS)
            tr, ti = tr[:, None, :], ti[:, None, :]
            if PAIRS:
                re += tl.sum(lr * tr + li * ti, axis=0)
                im += tl.sum(li * tr - lr * ti, axis=0)
            else:
                re += tl.sum(lr * tr, axis=0)
                im = re
            store_tile(w, rows, first, m, n, re, im, BN, PAIRS)
