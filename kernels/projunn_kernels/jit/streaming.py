"""One large matrix, a launch for each pass over it.

    adjoint_product   partial sums of M^H X        one read of M
    product           M Y                          one read of M
    turn_rows         W += (W Q) T^H               one read and one write of W

Between them `step_basis` makes the factors, without a matrix.

A program of `turn_rows` keeps whole rows of W in registers where they fit (HOLD), and where they do
not, reads them twice, the second time from cache: after factorization a step moves 3 n^2 numbers of
memory, in three launches.  Sums over rows are split among programs and added up by the next launch, in
a fixed order: results do not change from run to run.  Factors and partial sums are column-major, (k, n)
a matrix, so that a column is one contiguous load.
"""

import triton
import triton.language as tl

from projunn_kernels.jit.tiles import add_outer, load_range, load_tile, store_tile, times


@triton.jit
def matrix_index(active, axis: tl.constexpr, ACTIVE: tl.constexpr):
    """The matrix of a program, and whether there is one: negative entries of ``active`` are none."""
    index = tl.program_id(axis).to(tl.int64)
    if ACTIVE:
        index = tl.load(active + index).to(tl.int64)
    return tl.maximum(index, 0), index >= 0


@triton.jit
def adjoint_product_kernel(
    matrix,
    factor,
    partial,
    active,
    m,
    n,
    k,
    rows_each,
    splits,
    PAIRS: tl.constexpr,
    ACTIVE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    K: tl.constexpr,
):
    """``partial[b, split, j] = M[rows of the split]^H X[:, j]``, X (k, m), partial (splits, k, n).

    Grid (column tiles, splits, matrices).  K is k rounded up to a power of two.
    """
    index, present = matrix_index(active, 2, ACTIVE)
    if not present:
        return
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    split = tl.program_id(1)
    first = tl.program_id(0) * BN
    slot = tl.program_id(2).to(tl.int64)
    base = matrix + index * m * n * WIDTH
    x = factor + slot * k * m * WIDTH
    out = partial + (slot * splits + split) * k * n * WIDTH
    kr = tl.arange(0, K)
    sr = tl.zeros((K, BM, BN), tl.float32)
    si = tl.zeros((K, BM, BN), tl.float32)
    for start in range(split * rows_each, tl.minimum((split + 1) * rows_each, m), BM):
        rows = start + tl.arange(0, BM)
        re, im = load_tile(base, rows, first, m, n, BN, PAIRS)
        xr, xi = load_tile(x, kr, start, k, m, BM, PAIRS)
        re, im, xr, xi = re[None, :, :], im[None, :, :], xr[:, :, None], xi[:, :, None]
        if PAIRS:
            sr += re * xr + im * xi
            si += re * xi - im * xr
        else:
            sr += re * xr
    zr, zi = tl.sum(sr, axis=1), tl.sum(si, axis=1)
    store_tile(out, kr, first, k, n, zr, zi, BN, PAIRS)


@triton.jit
def product_kernel(
    matrix,
    factor,
    result,
    active,
    m,
    n,
    k,
    PAIRS: tl.constexpr,
    ACTIVE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    K: tl.constexpr,
):
    """``X[j] = M Y[j]``, Y (k, n), X (k, m).  Grid (row tiles, matrices)."""
    index, present = matrix_index(active, 1, ACTIVE)
    if not present:
        return
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    slot = tl.program_id(1).to(tl.int64)
    base = matrix + index * m * n * WIDTH
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
def turn_rows_kernel(
    weight,
    basis,
    turned_basis,
    taken_mask,
    active,
    m,
    n,
    PAIRS: tl.constexpr,
    ACTIVE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    S: tl.constexpr,
    HOLD: tl.constexpr,
):
    """``W += (W Q) T^H``, Q and T (S, n).  Grid (row tiles, matrices).

    HOLD: BN is at least n and the rows stay in registers.  A step that is not taken writes nothing.
    """
    index, present = matrix_index(active, 1, ACTIVE)
    slot = tl.program_id(1).to(tl.int64)
    if not present:
        return
    if tl.load(taken_mask + slot) == 0:
        return
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    w = weight + index * m * n * WIDTH
    q = basis + slot * S * n * WIDTH
    t = turned_basis + slot * S * n * WIDTH
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
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
