"""A Newton-Schulz step against drift, if the step counter says that one is due.

`projunn_kernels.polish.eager` has the formula in PyTorch.

    residual   E = I - W W^H (or W^H W), and the sum of |E|^2      one tile of E a program
    correct    V = W + E W / 2 (or W E / 2)                        one tile of V a program
    settle     W = V, or part of the way there where the sum is large

Every program first reads the counters, and returns if its matrix is not due.
"""

import triton
import triton.language as tl

from projunn_kernels.language.tiles import load_tile, store_tile


@triton.jit
def _due(step, missed, taken_mask, period):
    """Whether a matrix has taken this step, and a multiple of the period in all."""
    slot = tl.program_id(2)
    count = tl.load(step).to(tl.int64) - tl.load(missed + slot)
    return (count % period == 0) & (tl.load(taken_mask + slot) != 0)


@triton.jit
def _multiply(ar, ai, br, bi, cr, ci, PAIRS: tl.constexpr):
    """C + A B."""
    cr = tl.dot(ar, br, cr, input_precision="ieee")
    if PAIRS:
        cr = tl.dot(-ai, bi, cr, input_precision="ieee")
        ci = tl.dot(ar, bi, ci, input_precision="ieee")
        ci = tl.dot(ai, br, ci, input_precision="ieee")
    return cr, ci


@triton.jit
def residual_kernel(
    weight,
    error,
    sums,
    step,
    missed,
    taken_mask,
    period,
    m,
    n,
    WIDE: tl.constexpr,
    PAIRS: tl.constexpr,
    B: tl.constexpr,
):
    """Grid (tiles of rows, tiles of columns, matrices)."""
    if not _due(step, missed, taken_mask, period):
        return
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    slot = tl.program_id(2).to(tl.int64)
    w = weight + slot * m * n * WIDTH
    size = m if WIDE else n
    i, j = tl.program_id(0) * B, tl.program_id(1) * B
    lane = tl.arange(0, B)
    cr = tl.zeros((B, B), tl.float32)
    ci = tl.zeros((B, B), tl.float32)
    for inner in range(0, n if WIDE else m, B):
        if WIDE:
            ar, ai = load_tile(w, i + lane, inner, m, n, B, PAIRS)
            br, bi = load_tile(w, j + lane, inner, m, n, B, PAIRS)
            br, bi = tl.trans(br), -tl.trans(bi)
        else:
            ar, ai = load_tile(w, inner + lane, i, m, n, B, PAIRS)
            ar, ai = tl.trans(ar), -tl.trans(ai)
            br, bi = load_tile(w, inner + lane, j, m, n, B, PAIRS)
        cr, ci = _multiply(ar, ai, br, bi, cr, ci, PAIRS)
    diagonal = (i + lane)[:, None] == (j + lane)[None, :]
    inside = ((i + lane) < size)[:, None] & ((j + lane) < size)[None, :]
    er = tl.where(diagonal & inside, 1.0 - cr, -cr)
    squares = er * er
    if PAIRS:
        squares += ci * ci
    tl.atomic_add(sums + slot, tl.sum(tl.where(inside, squares, 0.0)))
    store_tile(error + slot * size * size * WIDTH, i + lane, j, size, size, er, -ci, B, PAIRS)


@triton.jit
def correct_kernel(
    weight,
    error,
    moved,
    step,
    missed,
    taken_mask,
    period,
    m,
    n,
    WIDE: tl.constexpr,
    PAIRS: tl.constexpr,
    B: tl.constexpr,
):
    """Grid (tiles of rows, tiles of columns, matrices)."""
    if not _due(step, missed, taken_mask, period):
        return
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    slot = tl.program_id(2).to(tl.int64)
    w = weight + slot * m * n * WIDTH
    size = m if WIDE else n
    e = error + slot * size * size * WIDTH
    i, j = tl.program_id(0) * B, tl.program_id(1) * B
    lane = tl.arange(0, B)
    cr = tl.zeros((B, B), tl.float32)
    ci = tl.zeros((B, B), tl.float32)
    for inner in range(0, size, B):
        if WIDE:
            ar, ai = load_tile(e, i + lane, inner, size, size, B, PAIRS)
            br, bi = load_tile(w, inner + lane, j, m, n, B, PAIRS)
        else:
            ar, ai = load_tile(w, i + lane, inner, m, n, B, PAIRS)
            br, bi = load_tile(e, inner + lane, j, size, size, B, PAIRS)
        cr, ci = _multiply(ar, ai, br, bi, cr, ci, PAIRS)
    wr, wi = load_tile(w, i + lane, j, m, n, B, PAIRS)
    v = moved + slot * m * n * WIDTH
    store_tile(v, i + lane, j, m, n, wr + 0.5 * cr, wi + 0.5 * ci, B, PAIRS)


@triton.jit
def settle_kernel(
    weight,
    moved,
    sums,
    step,
    missed,
    taken_mask,
    period,
    near,
    m,
    n,
    PAIRS: tl.constexpr,
    B: tl.constexpr,
):
    """Grid (tiles of rows, tiles of columns, matrices)."""
    if not _due(step, missed, taken_mask, period):
        return
    slot = tl.program_id(2).to(tl.int64)
    size = tl.sqrt(tl.load(sums + slot))
    if not size < float("inf"):
        return
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    at = slot * m * n * WIDTH
    rows, j = tl.program_id(0) * B + tl.arange(0, B), tl.program_id(1) * B
    re, im = load_tile(moved + at, rows, j, m, n, B, PAIRS)
    if size >= near:
        wr, wi = load_tile(weight + at, rows, j, m, n, B, PAIRS)
        share = 2.0 / (1.0 + size)
        re, im = wr + share * (re - wr), wi + share * (im - wi)
    store_tile(weight + at, rows, j, m, n, re, im, B, PAIRS)
