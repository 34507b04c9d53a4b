"""Passes of a step of rank 1 whose programs hold whole rows, and make the columns that they need.

    unit_product    y = p / |p|,  x = M y                                one read of M
    plane_rows      Q and T of the step, W += (W Q) T^H, R <- x / |x| + 0.01 probe
                                                                         one read and one write of W

p and Z come as partial sums, which every program adds up while its rows are on their way.  So two
launches of one program for each matrix fall away, which take longer to begin than to work where columns
are short.  All programs of a matrix make the same columns, bit for bit.
"""

import triton
import triton.language as tl

from projunn_kernels.language.counters import count_missed, count_skipped
from projunn_kernels.language.factors import sum_column
from projunn_kernels.language.float64 import reciprocal, square_root
from projunn_kernels.language.plane import TINY, dot, plane_rotation
from projunn_kernels.language.tiles import (
    add_outer,
    load_column,
    load_range,
    matrix_place,
    store_column,
    store_range,
    times,
)
from projunn_kernels.step.kernels.plane import load_rows, refresh, store_rows


@triton.jit
def _inverse_norm(re, im, PAIRS: tl.constexpr):
    """One over the norm of a float64 column, and the square of the norm; zero is divided by nothing."""
    squares = dot(re, im, re, im, PAIRS)[0]
    return reciprocal(tl.maximum(square_root(squares), TINY)), squares


@triton.jit
def unit_product_kernel(
    matrix,
    partial,
    factor,
    result,
    listed,
    matrices,
    m,
    n,
    splits,
    PAIRS: tl.constexpr,
    LISTED: tl.constexpr,
    TYPE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """y (n) of the sum of ``partial`` (splits, n) into ``factor``, and x = M y (m) into ``result``.

    Grid (row tiles, matrices), n <= BN.  The first program of a matrix stores y.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    base, _present = matrix_place(matrix, listed, matrices, m * n * WIDTH, 1, LISTED, TYPE)
    slot = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    re, im = load_rows(base, rows, m, n, BN, PAIRS)
    pr, pi = sum_column(partial + slot * splits * n * WIDTH, n, splits, BN, PAIRS)
    inverse, _squares = _inverse_norm(pr, pi, PAIRS)
    yr, yi = (pr * inverse).to(tl.float32), (pi * inverse).to(tl.float32)
    if tl.program_id(0) == 0:
        store_range(factor + slot * n * WIDTH, 0, n, yr, yi, BN, PAIRS)
    xr, xi = times(re, im, yr, yi, PAIRS)
    store_column(result + slot * m * WIDTH, rows, rows < m, xr, xi, PAIRS)


@triton.jit
def plane_rows_kernel(
    weights,
    right,
    partial,
    columns,
    bases,
    probes,
    skipped,
    missed,
    taken_mask,
    rate_tensor,
    rate,
    precision,
    matrices,
    m,
    n,
    splits,
    ROTATE: tl.constexpr,
    PAIRS: tl.constexpr,
    HAS_RATE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """The step ``-rate Z Y^H`` of W, and R of the next one, from the columns x.

    Y is ``right`` (n), Z the sum of ``partial`` (splits, n), x ``columns`` (m); weights, bases, probes
    and counters are tables of addresses.  Grid (row tiles, matrices), m <= n <= BN.  A step that is not
    taken writes nothing, and its first program counts it.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    w, _present = matrix_place(weights, weights, matrices, m * n * WIDTH, 1, "table", tl.float32)
    r, _present = matrix_place(bases, bases, matrices, m * WIDTH, 1, "table", tl.float32)
    g, _present = matrix_place(probes, probes, matrices, m * WIDTH, 1, "table", tl.float32)
    slot = tl.program_id(1).to(tl.int64)
    if HAS_RATE:
        rate *= tl.load(rate_tensor).to(tl.float32)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    wr, wi = load_rows(w, rows, m, n, BN, PAIRS)
    x = columns + slot * m * WIDTH
    sr, si = load_range(x, 0, m, BN, PAIRS)
    yr, yi = load_range(right + slot * n * WIDTH, 0, n, BN, PAIRS)
    zr, zi = sum_column(partial + slot * splits * n * WIDTH, n, splits, BN, PAIRS)
    inverse, squares = _inverse_norm(sr.to(tl.float64), si.to(tl.float64), PAIRS)
    q1r, q1i, q2r, q2i, t1r, t1i, t2r, t2i, taken = plane_rotation(
        yr.to(tl.float64), yi.to(tl.float64), -rate * zr, -rate * zi, precision, ROTATE, PAIRS
    )
    taken = taken & (squares < 1e300)
    if tl.program_id(0) == 0:
        tl.store(taken_mask + slot, taken.to(tl.int8))
        if not taken:
            count_skipped(skipped, slot // matrices)
            count_missed(missed, slot // matrices, slot % matrices)
    # The rows of a step that is not taken are sent beyond the last one (as in `plane_step_kernel`).
    kept = tl.where(taken, m, 0)
    l1r, l1i = times(wr, wi, q1r, q1i, PAIRS)
    l2r, l2i = times(wr, wi, q2r, q2i, PAIRS)
    wr, wi = add_outer(wr, wi, l1r, l1i, t1r, t1i, PAIRS)
    wr, wi = add_outer(wr, wi, l2r, l2i, t2r, t2i, PAIRS)
    store_rows(w, m - kept + rows, m, n, wr, wi, BN, PAIRS)
    xr, xi = load_column(x, rows, rows < m, PAIRS)
    refresh(r, g, rows, kept, xr, xi, inverse, PAIRS)
