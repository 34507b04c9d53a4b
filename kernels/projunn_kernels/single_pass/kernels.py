"""The two passes of a step that reads its direction once.

R and V lie behind each other, (m + n) numbers for each matrix, as ``bases``.
"""

import triton
import triton.language as tl

from projunn_kernels.language.counters import count_missed, count_skipped
from projunn_kernels.language.plane import PROBE
from projunn_kernels.language.tiles import (
    add_outer,
    adjoint_times,
    load_column,
    load_range,
    load_tile,
    matrix_place,
    store_column,
    store_range,
    store_tile,
    times,
)
from projunn_kernels.rules.kernels import (
    are_finite,
    constants_of,
    follow_tile,
    places_of_averages,
)

_CHECKED = tl.constexpr(512)  # rows of a column that are loaded at once
_TILES = tl.constexpr(512)  # no matrix has more of them
_SAME = tl.constexpr(1e-4)  # of products of unit vectors; rounding is a hundredth of it


@triton.jit
def _is_product(w, r, column, m, n, zr, zi, PAIRS: tl.constexpr):
    """Whether an entry of W^H R is what the column of W makes of R; not if it is NaN."""
    cr, ci = tl.zeros((), tl.float32), tl.zeros((), tl.float32)
    for start in range(0, m, _CHECKED):
        rows = start + tl.arange(0, _CHECKED)
        wr, wi = load_column(w, rows.to(tl.int64) * n + column, rows < m, PAIRS)
        xr, xi = load_column(r, rows, rows < m, PAIRS)
        if PAIRS:
            cr += tl.sum(wr * xr + wi * xi)
            ci += tl.sum(wr * xi - wi * xr)
        else:
            cr += tl.sum(wr * xr)
    off = tl.abs(cr - zr)
    if PAIRS:
        off += tl.abs(ci - zi)
    return (off < _SAME).to(tl.int8)


@triton.jit
def both_products_kernel(
    directions,
    weights,
    bases,
    pulled,
    pushed,
    ahead,
    moved,
    sound,
    means,
    squares,
    others,
    missed,
    finite,
    shares,
    numbers,
    matrices,
    m,
    n,
    rows_each,
    splits,
    groups,
    parts,
    RULE: tl.constexpr,
    MEAN: tl.constexpr,
    OTHER: tl.constexpr,
    NESTEROV: tl.constexpr,
    PAIRS: tl.constexpr,
    TYPE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """``pulled[b, split] = D[rows]^H R`` and ``pushed[b, tile] = D[:, columns] V``.

    With a RULE other than ``"none"`` D is what it makes of the gradients, which ``directions`` has then,
    and is never stored; the averages of the rule move.  Where a gradient is not ``finite`` nothing of it
    is read, and ``pulled`` is NaN, so that the step is not taken.

    Grid (column tiles, splits + 1, matrices).  The programs beyond the splits add up what the step
    before has left of W^H R, ``ahead`` (groups, n), in ``moved`` (n).  They compare the first column of
    their tile with the product of W as it is now, and note in ``sound`` (tiles) whether it is the same.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    tile, split, tiles = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    slot = tl.program_id(2).to(tl.int64)
    first = tile * BN
    r, _ = matrix_place(bases, bases, matrices, (m + n) * WIDTH, 2, "table", tl.float32)
    sr = tl.zeros((BM, BN), tl.float32)
    si = tl.zeros((BM, BN), tl.float32)
    if split < splits:
        d, _ = matrix_place(directions, directions, matrices, m * n * WIDTH, 2, "table", TYPE)
        out = pushed + (slot * tiles + tile) * m * WIDTH
        vr, vi = load_range(r + m * WIDTH, first, n, BN, PAIRS)
        if RULE != "none":
            follows = are_finite(finite, slot, parts)
            if not follows:
                sr += float("nan")
                if (tile == 0) & (split == 0):
                    count_missed(missed, slot // matrices, slot % matrices)
            height = tl.where(follows, m, 0)
            mean, square, other = places_of_averages(
                means, squares, others, matrices, m * n, 2, RULE, PAIRS
            )
            constants = constants_of(numbers, shares, slot)
        for start in range(split * rows_each, tl.minimum((split + 1) * rows_each, m), BM):
            rows = start + tl.arange(0, BM)
            if RULE == "none":
                re, im = load_tile(d, rows, first, m, n, BN, PAIRS)
            else:
                re, im = follow_tile(
                    d,
                    mean,
                    square,
                    other,
                    constants,
                    rows,
                    first,
                    height,
                    n,
                    RULE,
                    MEAN,
                    OTHER,
                    NESTEROV,
                    BN,
                    PAIRS,
                )
            xr, xi = load_range(r, start, m, BM, PAIRS)
            if PAIRS:
                sr += re * xr[:, None] + im * xi[:, None]
                si += re * xi[:, None] - im * xr[:, None]
            else:
                sr += re * xr[:, None]
            br, bi = times(re, im, vr, vi, PAIRS)
            store_column(out, rows, rows < m, br, bi, PAIRS)
        zr, zi = tl.sum(sr, axis=0), tl.sum(si, axis=0)
        store_range(pulled + (slot * splits + split) * n * WIDTH, first, n, zr, zi, BN, PAIRS)
    else:
        sums = ahead + slot * groups * n * WIDTH
        for start in range(0, groups, BM):
            re, im = load_tile(sums, start + tl.arange(0, BM), first, groups, n, BN, PAIRS)
            sr += re
            si += im
        zr, zi = tl.sum(sr, axis=0), tl.sum(si, axis=0)
        store_range(moved + slot * n * WIDTH, first, n, zr, zi, BN, PAIRS)
        w, _ = matrix_place(weights, weights, matrices, m * n * WIDTH, 2, "table", tl.float32)
        here = tl.arange(0, BN) == 0
        re_first, im_first = tl.sum(tl.where(here, zr, 0.0)), tl.sum(tl.where(here, zi, 0.0))
        same = _is_product(w, r, first, m, n, re_first, im_first, PAIRS)
        tl.store(sound + slot * tiles + tile, same)


@triton.jit
def ahead_is_sound_kernel(
    weights,
    bases,
    ahead,
    sound,
    matrices,
    m,
    n,
    groups,
    columns,
    PAIRS: tl.constexpr,
):
    """What `both_products_kernel` notes in ``sound``.  Grid (tiles of ``columns`` columns, matrices)."""
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    tile, tiles = tl.program_id(0), tl.num_programs(0)
    slot = tl.program_id(1).to(tl.int64)
    first = tile * columns
    w, _ = matrix_place(weights, weights, matrices, m * n * WIDTH, 1, "table", tl.float32)
    r, _ = matrix_place(bases, bases, matrices, (m + n) * WIDTH, 1, "table", tl.float32)
    parts = ahead + slot * groups * n * WIDTH
    zr, zi = tl.zeros((), tl.float32), tl.zeros((), tl.float32)
    for start in range(0, groups, _CHECKED):
        group = start + tl.arange(0, _CHECKED)
        re, im = load_column(parts, group.to(tl.int64) * n + first, group < groups, PAIRS)
        zr += tl.sum(re)
        zi += tl.sum(im)
    tl.store(sound + slot * tiles + tile, _is_product(w, r, first, m, n, zr, zi, PAIRS))


@triton.jit
def rotate_ahead_kernel(
    weights,
    bases,
    probes,
    basis,
    rotated_basis,
    fresh,
    taken_mask,
    sound,
    mask,
    ahead,
    skipped,
    missed,
    matrices,
    m,
    n,
    panels,
    tiles,
    STEP: tl.constexpr,
    PAIRS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """``W += (W Q) T^H``, Q and T (2, n); R above V become ``[fresh; q_1] + 0.01 probe``; then W^H R.

    Grid (groups of rows, matrices): a group has ``panels`` panels of BM rows, whose partial sum goes to
    ``ahead``.  A step that is not taken changes nothing, and is counted; nor is one taken whose W^H R
    was not ``sound``: W^H R is made anew then.  A step along zero, whose q_1 is zero, changes nothing.

    Without STEP W^H R is made anew where it is not sound, and all else stays.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    group, groups = tl.program_id(0), tl.num_programs(0)
    slot = tl.program_id(1).to(tl.int64)
    r, _ = matrix_place(bases, bases, matrices, (m + n) * WIDTH, 1, "table", tl.float32)
    at = tl.arange(0, _TILES)
    known = tl.load(sound + slot * tiles + at, mask=at < tiles, other=1).to(tl.int32)
    is_sound = tl.min(known, axis=0) != 0
    turns, works = False, is_sound == 0
    if STEP:
        taken = (tl.load(taken_mask + slot) != 0) & is_sound
        q1r, q1i = load_range(basis + slot * 2 * n * WIDTH, 0, n, BN, PAIRS)
        turns = taken & (tl.sum(tl.abs(q1r) + tl.abs(q1i)) > 0.0)
        works = turns | works
        if group == 0:
            tl.store(mask + slot, taken.to(tl.int8))
            if not taken:
                count_skipped(skipped, slot // matrices)
                count_missed(missed, slot // matrices, slot % matrices)
    if not works:
        return
    w, _ = matrix_place(weights, weights, matrices, m * n * WIDTH, 1, "table", tl.float32)
    g, _ = matrix_place(probes, probes, matrices, (m + n) * WIDTH, 1, "table", tl.float32)
    q = basis + slot * 2 * n * WIDTH
    t = rotated_basis + slot * 2 * n * WIDTH
    x = fresh + slot * m * WIDTH
    cr = tl.zeros((BN,), tl.float32)
    ci = tl.zeros((BN,), tl.float32)
    for panel in range(panels):
        rows = (group * panels + panel) * BM + tl.arange(0, BM)
        wr, wi = load_tile(w, rows, 0, m, n, BN, PAIRS)
        if turns:
            q1r, q1i = load_range(q, 0, n, BN, PAIRS)
            l1r, l1i = times(wr, wi, q1r, q1i, PAIRS)
            q2r, q2i = load_range(q + n * WIDTH, 0, n, BN, PAIRS)
            l2r, l2i = times(wr, wi, q2r, q2i, PAIRS)
            tr, ti = load_range(t, 0, n, BN, PAIRS)
            wr, wi = add_outer(wr, wi, l1r, l1i, tr, ti, PAIRS)
            tr, ti = load_range(t + n * WIDTH, 0, n, BN, PAIRS)
            wr, wi = add_outer(wr, wi, l2r, l2i, tr, ti, PAIRS)
            store_tile(w, rows, 0, m, n, wr, wi, BN, PAIRS)
            xr, xi = load_column(x, rows, rows < m, PAIRS)
            gr, gi = load_column(g, rows, rows < m, PAIRS)
            # what is infinite in B is NaN here
            xr = tl.where(xr == xr, xr, 0.0) + PROBE * gr
            xi = tl.where(xi == xi, xi, 0.0) + PROBE * gi
            store_column(r, rows, rows < m, xr, xi, PAIRS)
        else:
            xr, xi = load_column(r, rows, rows < m, PAIRS)
        zr, zi = adjoint_times(wr, wi, xr, xi, PAIRS)
        cr += zr
        ci += zi
    store_range(ahead + (slot * groups + group) * n * WIDTH, 0, n, cr, ci, BN, PAIRS)
    if turns & (group == 0):
        q1r, q1i = load_range(q, 0, n, BN, PAIRS)
        gr, gi = load_range(g + m * WIDTH, 0, n, BN, PAIRS)
        q1r, q1i = q1r + PROBE * gr, q1i + PROBE * gi
        store_range(r + m * WIDTH, 0, n, q1r, q1i, BN, PAIRS)
