"""Products of large matrices with a few columns, one pass over the matrix each.

    adjoint_product, adjoint_many   partial sums of M^H X, k up to 8 and above        one read of M
    product, product_many           M Y                                              one read of M

Sums over rows are split among programs, and the next launch adds their partial sums up in a fixed order,
so that results do not change from run to run.  Factors and partial sums are stored column by column, as
(k, n) for each matrix, so that a column is one contiguous load.

Above 8 columns the products are those of tiles, on tensor cores.  A row of a complex matrix is a row of
twice as many real numbers, and a complex column y is two real ones, [re, -im] and [im, re], in turn.
"""

import triton
import triton.language as tl

from projunn_kernels.language.tiles import (
    add_adjoint,
    load_floats,
    load_real_columns,
    load_rows_as_columns,
    load_tile,
    matrix_place,
    store_tile,
)


@triton.jit
def adjoint_product_kernel(
    matrix,
    factor,
    partial,
    listed,
    matrices,
    m,
    n,
    k,
    rows_each,
    splits,
    PAIRS: tl.constexpr,
    LISTED: tl.constexpr,
    TYPE: tl.constexpr,
    BASES: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    K: tl.constexpr,
):
    """``partial[b, split, j] = M[rows of the split]^H X[:, j]``, X (k, m), partial (splits, k, n).

    Grid (column tiles, splits, matrices).  K is k rounded up to a power of two.  BASES: ``factor`` is a
    table of addresses as ``listed`` is, of X as (m, k) each.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    base, present = matrix_place(matrix, listed, matrices, m * n * WIDTH, 2, LISTED, TYPE)
    if not present:
        return
    split = tl.program_id(1)
    first = tl.program_id(0) * BN
    slot = tl.program_id(2).to(tl.int64)
    if BASES:
        x = matrix_place(factor, factor, matrices, m * k * WIDTH, 2, "table", tl.float32)[0]
    else:
        x = factor + slot * k * m * WIDTH
    out = partial + (slot * splits + split) * k * n * WIDTH
    kr = tl.arange(0, K)
    sr = tl.zeros((K, BM, BN), tl.float32)
    si = tl.zeros((K, BM, BN), tl.float32)
    for start in range(split * rows_each, tl.minimum((split + 1) * rows_each, m), BM):
        rows = start + tl.arange(0, BM)
        re, im = load_tile(base, rows, first, m, n, BN, PAIRS)
        if BASES:
            xr, xi = load_rows_as_columns(x, rows, kr, m, k, PAIRS)
        else:
            xr, xi = load_tile(x, kr, start, k, m, BM, PAIRS)
        sr, si = add_adjoint(sr, si, re, im, xr, xi, PAIRS)
    zr, zi = tl.sum(sr, axis=1), tl.sum(si, axis=1)
    store_tile(out, kr, first, k, n, zr, zi, BN, PAIRS)


@triton.jit
def product_kernel(
    matrix,
    factor,
    result,
    listed,
    matrices,
    m,
    n,
    k,
    PAIRS: tl.constexpr,
    LISTED: tl.constexpr,
    TYPE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    K: tl.constexpr,
):
    """``X[j] = M Y[j]``, Y (k, n), X (k, m).  Grid (row tiles, matrices)."""
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    base, present = matrix_place(matrix, listed, matrices, m * n * WIDTH, 1, LISTED, TYPE)
    if not present:
        return
    slot = tl.program_id(1).to(tl.int64)
    y = factor + slot * k * n * WIDTH
    out = result + slot * k * m * WIDTH
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    kr = tl.arange(0, K)
    sr = tl.zeros((K, BM, BN), tl.float32)
    si = tl.zeros((K, BM, BN), tl.float32)
    for first in range(0, n, BN):
        re, im = load_tile(base, rows, first, m, n, BN, PAIRS)
        yr, yi = load_tile(y, kr, first, k, n, BN, PAIRS)
        re, im, yr, yi = re[None, :, :], im[None, :, :], yr[:, None, :], yi[:, None, :]
        if PAIRS:
            sr += re * yr - im * yi
            si += re * yi + im * yr
        else:
            sr += re * yr
    xr, xi = tl.sum(sr, axis=2), tl.sum(si, axis=2)
    store_tile(out, kr, tl.program_id(0) * BM, k, m, xr, xi, BM, PAIRS)


@triton.jit
def adjoint_many_kernel(
    matrix,
    factor,
    partial,
    listed,
    matrices,
    m,
    n,
    k,
    rows_each,
    splits,
    PAIRS: tl.constexpr,
    LISTED: tl.constexpr,
    TYPE: tl.constexpr,
    BASES: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    K: tl.constexpr,
):
    """`adjoint_product_kernel` for k > 8, by products of tiles; K is k rounded up, at least 16."""
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    base, present = matrix_place(matrix, listed, matrices, m * n * WIDTH, 2, LISTED, TYPE)
    if not present:
        return
    split = tl.program_id(1)
    first = tl.program_id(0) * BN
    slot = tl.program_id(2).to(tl.int64)
    if BASES:
        x = matrix_place(factor, factor, matrices, m * k * WIDTH, 2, "table", tl.float32)[0]
    else:
        x = factor + slot * k * m * WIDTH
    out = partial + (slot * splits + split) * k * n * WIDTH
    parts = tl.arange(0, K * WIDTH)
    column, part = parts // WIDTH, parts % WIDTH
    total = tl.zeros((K * WIDTH, BN * WIDTH), tl.float32)
    for start in range(split * rows_each, tl.minimum((split + 1) * rows_each, m), BM):
        rows = start + tl.arange(0, BM)
        tile = load_floats(base, rows, first * WIDTH, m, n * WIDTH, BN * WIDTH)
        if BASES:
            at = rows.to(tl.int64)[None, :] * k + column[:, None]
        else:
            at = column.to(tl.int64)[:, None] * m + rows[None, :]
        inside = (column < k)[:, None] & (rows < m)[None, :]
        xs = tl.load(x + at * WIDTH + part[:, None], mask=inside, other=0.0)
        total = tl.dot(xs, tile, total, input_precision=PRECISION)
    if PAIRS:  # sums of re x and im x, for x = re and x = im
        by_re, by_im = tl.split(tl.reshape(total, (K * 2, BN, 2)))
        re_re, re_im = tl.split(tl.permute(tl.reshape(by_re, (K, 2, BN)), (0, 2, 1)))
        im_re, im_im = tl.split(tl.permute(tl.reshape(by_im, (K, 2, BN)), (0, 2, 1)))
        zr, zi = re_re + im_im, re_im - im_re
    else:
        zr = total
        zi = total
    store_tile(out, tl.arange(0, K), first, k, n, zr, zi, BN, PAIRS)


@triton.jit
def product_many_kernel(
    matrix,
    factor,
    result,
    listed,
    matrices,
    m,
    n,
    k,
    PAIRS: tl.constexpr,
    LISTED: tl.constexpr,
    TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    K: tl.constexpr,
):
    """`product_kernel` for k > 8, by products of tiles; K is k rounded up, at least 16."""
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    base, present = matrix_place(matrix, listed, matrices, m * n * WIDTH, 1, LISTED, TYPE)
    if not present:
        return
    slot = tl.program_id(1).to(tl.int64)
    y = factor + slot * k * n * WIDTH
    out = result + slot * k * m * WIDTH
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    parts = tl.arange(0, K * WIDTH)
    total = tl.zeros((BM, K * WIDTH), tl.float32)
    for first in range(0, n * WIDTH, BN * WIDTH):
        tile = load_floats(base, rows, first, m, n * WIDTH, BN * WIDTH)
        ys = load_real_columns(y, parts, first, k, n, BN * WIDTH, PAIRS)
        total = tl.dot(tile, tl.trans(ys), total, input_precision=PRECISION)
    column, part = parts // WIDTH, parts % WIDTH
    at = (column.to(tl.int64)[None, :] * m + rows[:, None]) * WIDTH + part[None, :]
    tl.store(out + at, total, mask=(rows < m)[:, None] & (column < k)[None, :])
