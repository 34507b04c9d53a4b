"""The block-sparse low-rank update ``W[i] += L[i] R[i]^H`` of the active matrices, in place.

A tile whose rows of L or columns of R are all zero is neither read nor written.  The grid is (row tiles,
column tiles, active matrices), so that matrices that are not listed cost nothing.
"""

import triton
import triton.language as tl

from projunn_kernels.language.tiles import (
    add_outer,
    load_column,
    load_floats,
    load_range,
    load_real_columns,
    load_tile,
    matrix_place,
    store_tile,
)


@triton.jit
def rank_update_kernel(
    weight,
    left,
    right,
    listed,
    matrices,
    m,
    n,
    k,
    PAIRS: tl.constexpr,
    LISTED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    K: tl.constexpr,
):
    """L is (k, m) and R (k, n) for each active matrix; K is k rounded up to a power of two."""
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    w, present = matrix_place(weight, listed, matrices, m * n * WIDTH, 2, LISTED, tl.float32)
    if not present:
        return
    slot = tl.program_id(2).to(tl.int64)
    l = left + slot * k * m * WIDTH
    r = right + slot * k * n * WIDTH
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    first = tl.program_id(1) * BN
    kr = tl.arange(0, K)
    inside = (kr < k)[:, None] & (rows < m)[None, :]
    lr, li = load_column(l, kr[:, None].to(tl.int64) * m + rows[None, :], inside, PAIRS)
    rr, ri = load_tile(r, kr, first, k, n, BN, PAIRS)
    size_l, size_r = (lr != 0.0), (rr != 0.0)
    if PAIRS:
        size_l, size_r = size_l | (li != 0.0), size_r | (ri != 0.0)
    if tl.sum(size_l.to(tl.int32)) * tl.sum(size_r.to(tl.int32)) == 0:
        return
    re, im = load_tile(w, rows, first, m, n, BN, PAIRS)
    for j in range(k):
        ar, ai = load_column(l + j * m * WIDTH, rows, rows < m, PAIRS)
        br, bi = load_range(r + j * n * WIDTH, first, n, BN, PAIRS)
        re, im = add_outer(re, im, ar, ai, br, bi, PAIRS)
    store_tile(w, rows, first, m, n, re, im, BN, PAIRS)


@triton.jit
def update_many_kernel(
    weight,
    left,
    right,
    taken_mask,
    listed,
    matrices,
    m,
    n,
    k,
    PAIRS: tl.constexpr,
    LISTED: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    K: tl.constexpr,
):
    """The same for many columns, K at a time, by products of tiles on tensor cores.

    MASKED: only matrices whose entry of ``taken_mask`` is set.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    w, present = matrix_place(weight, listed, matrices, m * n * WIDTH, 2, LISTED, tl.float32)
    slot = tl.program_id(2).to(tl.int64)
    if not present:
        return
    if MASKED:  # noqa: SIM102 (Triton evaluates both sides of an "and")
        if tl.load(taken_mask + slot) == 0:
            return
    l = left + slot * k * m * WIDTH
    r = right + slot * k * n * WIDTH
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    first = tl.program_id(1) * (BN * WIDTH)
    total = tl.zeros((BM, BN * WIDTH), tl.float32)
    for start in range(0, k * WIDTH, K):
        parts = start + tl.arange(0, K)
        column, part = parts // WIDTH, parts % WIDTH
        inside = (rows < m)[:, None] & (column < k)[None, :]
        at = (column.to(tl.int64)[None, :] * m + rows[:, None]) * WIDTH + part[None, :]
        ls = tl.load(l + at, mask=inside, other=0.0)
        rs = load_real_columns(r, parts, first, k, n, BN * WIDTH, PAIRS)
        total = tl.dot(ls, rs, total, input_precision=PRECISION)
    total += load_floats(w, rows, first, m, n * WIDTH, BN * WIDTH)
    at = first + tl.arange(0, BN * WIDTH)
    inside = (rows < m)[:, None] & (at < n * WIDTH)[None, :]
    tl.store(w + rows.to(tl.int64)[:, None] * (n * WIDTH) + at[None, :], total, mask=inside)
