"""Factors of a few columns, stored as (k, n) rows: loads, stores, and sums of their partial sums.

Tiles are float64, (K, BN), with K the rank rounded up to a power of two; rows from k on are zero.
"""

import triton
import triton.language as tl

from projunn_kernels.language.tiles import load_tile, store_tile


@triton.jit
def load_columns(base, first, n, k, BN: tl.constexpr, K: tl.constexpr, PAIRS: tl.constexpr):
    """Loads columns [first, first + BN) of a (k, n) factor, as a float64 tile (K, BN)."""
    re, im = load_tile(base, tl.arange(0, K), first, k, n, BN, PAIRS)
    return re.to(tl.float64), im.to(tl.float64)


@triton.jit
def sum_partials(base, first, n, k, splits, BN: tl.constexpr, K: tl.constexpr, PAIRS: tl.constexpr):
    """Adds up columns [first, first + BN) of partial sums (splits, k, n), as a float64 tile (K, BN).

    A few are loaded at a time, since each load waits for memory: as many as a thread has registers for.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    SIZE: tl.constexpr = K * BN * WIDTH
    AHEAD: tl.constexpr = 16 if SIZE <= 1024 else 8 if SIZE <= 4096 else 4
    zr = tl.zeros((K, BN), tl.float64)
    zi = tl.zeros((K, BN), tl.float64)
    for start in range(0, splits, AHEAD):
        for ahead in tl.static_range(AHEAD):
            inside = tl.where(start + ahead < splits, k, 0)
            pr, pi = load_columns(base, first, n, inside, BN, K, PAIRS)
            zr += pr
            zi += pi
            base += k * n * WIDTH
    return zr, zi


@triton.jit
def sum_column(base, n, splits, BN: tl.constexpr, PAIRS: tl.constexpr):
    """Adds up a whole column of partial sums (splits, n), n <= BN, as float64 numbers (BN,)."""
    re, im = sum_partials(base, 0, n, 1, splits, BN, 1, PAIRS)
    return tl.reshape(re, (BN,)), tl.reshape(im, (BN,))


@triton.jit
def store_columns(base, first, n, k, re, im, BN: tl.constexpr, K: tl.constexpr, PAIRS: tl.constexpr):
    re, im = re.to(tl.float32), im.to(tl.float32)
    store_tile(base, tl.arange(0, K), first, k, n, re, im, BN, PAIRS)
