"""A Newton-Schulz step against drift, if the step counter says that one is due.

`projunn_kernels.polish.eager` has the formula in PyTorch.

    residual   E = I - W W^H (or W^H W), the sum of |E|^2, and a copy V of W
    correct    W = V + c E V (or c V E), where the sum says what c is

There are a few programs for each multiprocessor, however many tiles there are, and each takes one tile
after the other of the matrices that are due: where none is, they read the counters once and are done.
"""

import triton
import triton.language as tl

from projunn_kernels.language.tiles import load_tile, pointer, store_tile


@triton.jit
def _due(steps, missed, taken_mask, period, matrices, slot):
    """Whether a matrix has taken this step, and a multiple of the period in all."""
    counter = pointer(missed, slot // matrices, tl.int64) + slot % matrices
    count = tl.load(pointer(steps, slot // matrices, tl.int64)) - tl.load(counter)
    return (count % period == 0) & (tl.load(taken_mask + slot) != 0)


@triton.jit
def _any_due(steps, missed, taken_mask, period, matrices, slots):
    """Whether any of the ``slots`` matrices is due: a few loads where none is."""
    BLOCK: tl.constexpr = 1024
    found = 0
    for first in range(0, slots, BLOCK):
        slot = first + tl.arange(0, BLOCK)
        there = slot < slots
        slot = tl.where(there, slot, 0)
        owner = slot // matrices
        count = tl.load(tl.load(steps + owner).to(tl.pointer_type(tl.int64)))
        count -= tl.load(tl.load(missed + owner).to(tl.pointer_type(tl.int64)) + slot % matrices)
        taken = tl.load(taken_mask + slot) != 0
        found += tl.sum(tl.where(there & taken & (count % period == 0), 1, 0))
    return found > 0


@triton.jit
def _matrix(weights, slot, matrices, size):
    """Where a matrix of ``size`` floats begins."""
    return pointer(weights, slot // matrices, tl.float32) + (slot % matrices).to(tl.int64) * size


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
def _residual(w, e, part, i, j, m, n, WIDE: tl.constexpr, PAIRS: tl.constexpr, B: tl.constexpr):
    """The tile (i, j) of E = I - W W^H or I - W^H W, and its ``part`` of the sum of |E|^2."""
    size = m if WIDE else n
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
    tl.store(part, tl.sum(tl.where(inside, squares, 0.0)))
    store_tile(e, i + lane, j, size, size, er, -ci, B, PAIRS)


@triton.jit
def _correct(w, v, e, c, i, j, m, n, WIDE: tl.constexpr, PAIRS: tl.constexpr, B: tl.constexpr):
    """The tile (i, j) of W = V + c E V or V + c V E."""
    size = m if WIDE else n
    lane = tl.arange(0, B)
    cr = tl.zeros((B, B), tl.float32)
    ci = tl.zeros((B, B), tl.float32)
    for inner in range(0, size, B):
        if WIDE:
            ar, ai = load_tile(e, i + lane, inner, size, size, B, PAIRS)
            br, bi = load_tile(v, inner + lane, j, m, n, B, PAIRS)
        else:
            ar, ai = load_tile(v, i + lane, inner, m, n, B, PAIRS)
            br, bi = load_tile(e, inner + lane, j, size, size, B, PAIRS)
        cr, ci = _multiply(ar, ai, br, bi, cr, ci, PAIRS)
    vr, vi = load_tile(v, i + lane, j, m, n, B, PAIRS)
    store_tile(w, i + lane, j, m, n, vr + c * cr, vi + c * ci, B, PAIRS)


@triton.jit
def _sum(parts, count):
    """The sum of ``count`` numbers."""
    BLOCK: tl.constexpr = 1024
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, count, BLOCK):
        place = first + tl.arange(0, BLOCK)
        total += tl.load(parts + place, mask=place < count, other=0.0)
    return tl.sum(total)


@triton.jit
def residual_kernel(
    weights,
    error,
    moved,
    parts,
    steps,
    missed,
    taken_mask,
    period,
    matrices,
    slots,
    tiles,
    of_weights,
    m,
    n,
    WIDE: tl.constexpr,
    PAIRS: tl.constexpr,
    B: tl.constexpr,
):
    """``tiles`` tiles of all E, of which program p takes the p-th, (p + programs)-th, ..

    It copies the same of ``of_weights`` tiles of all W.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    size = m if WIDE else n
    across = tl.cdiv(size, B)
    if not _any_due(steps, missed, taken_mask, period, matrices, slots):
        return
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        slot, place = tile // (across * across), tile % (across * across)
        if _due(steps, missed, taken_mask, period, matrices, slot):
            w = _matrix(weights, slot, matrices, m * n * WIDTH)
            e = error + slot.to(tl.int64) * size * size * WIDTH
            i, j = place // across * B, place % across * B
            _residual(w, e, parts + tile, i, j, m, n, WIDE, PAIRS, B)
    across = tl.cdiv(n, B)
    each = tl.cdiv(m, B) * across
    for tile in range(tl.program_id(0), of_weights, tl.num_programs(0)):
        slot, place = tile // each, tile % each
        if _due(steps, missed, taken_mask, period, matrices, slot):
            w = _matrix(weights, slot, matrices, m * n * WIDTH)
            v = moved + slot.to(tl.int64) * m * n * WIDTH
            rows, j = place // across * B + tl.arange(0, B), place % across * B
            re, im = load_tile(w, rows, j, m, n, B, PAIRS)
            store_tile(v, rows, j, m, n, re, im, B, PAIRS)


@triton.jit
def correct_kernel(
    weights,
    error,
    moved,
    parts,
    steps,
    missed,
    taken_mask,
    period,
    near,
    matrices,
    slots,
    tiles,
    m,
    n,
    WIDE: tl.constexpr,
    PAIRS: tl.constexpr,
    B: tl.constexpr,
):
    """``tiles`` tiles of all W, shared as in `residual_kernel`."""
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    size = m if WIDE else n
    across = tl.cdiv(n, B)
    each = tl.cdiv(m, B) * across
    squared = tl.cdiv(size, B) * tl.cdiv(size, B)
    if not _any_due(steps, missed, taken_mask, period, matrices, slots):
        return
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        slot, place = tile // each, tile % each
        if _due(steps, missed, taken_mask, period, matrices, slot):
            norm = tl.sqrt(_sum(parts + slot.to(tl.int64) * squared, squared))
            if norm < float("inf"):
                w = _matrix(weights, slot, matrices, m * n * WIDTH)
                e = error + slot.to(tl.int64) * size * size * WIDTH
                v = moved + slot.to(tl.int64) * m * n * WIDTH
                c = tl.where(norm < near, 0.5, 1.0 / (1.0 + norm))
                _correct(w, v, e, c, place // across * B, place % across * B, m, n, WIDE, PAIRS, B)
