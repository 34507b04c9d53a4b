"""Algebra of one N x N float64 matrix that is too large for registers: k > 8.  N = ``blocks`` x B.

A matrix lies in memory, where it stays in the caches of the multiprocessor that works on it, and is
worked on by one program in blocks of B x B, B = 32.  Products of blocks go to tensor cores where a GPU
has them for float64.  A function that writes a matrix ends with a barrier, so that the next may read it.

A complex S x S matrix is the real one of 2S x 2S with a + ib as [[a, -b], [b, a]].  Sums, products,
adjoints and inverses of such matrices are such matrices, and so are lower Cholesky factors, since those
are unique: the code for real matrices is that for complex ones.

These kernels must not be pipelined (``num_stages=1``): a load that is moved ahead of the store of what
it loads reads what was there before.
"""

import triton
import triton.language as tl

from projunn_kernels.language.float64 import reciprocal, square_root
from projunn_kernels.language.plane import TINY
from projunn_kernels.language.small import dot, eye

SHIFT = tl.constexpr(1e-15)
# Pivots that differ by less: a product with the inverse of their block is as good as elimination.
SPREAD = tl.constexpr(1e-2)


@triton.jit
def load_block(base, i, j, blocks, B: tl.constexpr):
    """Block (i, j) of a matrix."""
    lane = tl.arange(0, B)
    return tl.load(base + (i * B + lane)[:, None] * (blocks * B) + (j * B + lane)[None, :])


@triton.jit
def store_block(base, i, j, blocks, value, B: tl.constexpr):
    lane = tl.arange(0, B)
    tl.store(base + (i * B + lane)[:, None] * (blocks * B) + (j * B + lane)[None, :], value)


@triton.jit
def load_part(base, first, column, side, R: tl.constexpr, C: tl.constexpr):
    """R rows from ``first`` and C columns from ``column`` of a matrix."""
    rows, columns = first + tl.arange(0, R), column + tl.arange(0, C)
    return tl.load(base + rows[:, None] * side + columns[None, :])


@triton.jit
def block_of_product(
    a, b, i, j, first, last, blocks, TA: tl.constexpr, TB: tl.constexpr, B: tl.constexpr
):
    """Block (i, j) of op(A) op(B), summed over their blocks from ``first`` to before ``last``.

    By 16 columns at a time: where no tensor core does it, a thread has all that it sums over.
    """
    side = blocks * B
    total = tl.zeros((B, B), tl.float64)
    for l in range(first * B, last * B, 16):
        if TA:
            left = tl.trans(load_part(a, l, i * B, side, 16, B))
        else:
            left = load_part(a, i * B, l, side, B, 16)
        if TB:
            right = tl.trans(load_part(b, j * B, l, side, B, 16))
        else:
            right = load_part(b, l, j * B, side, 16, B)
        total += dot(left, right)
    return total


@triton.jit
def load_numbers(base, first_row, i, rows, j, size, PAIRS: tl.constexpr, B: tl.constexpr):
    """Block (i, j) of the real form of rows from ``first_row`` of a matrix with ``size`` columns.

    Of those ``rows`` there are; beyond, and beyond the columns, are zeros.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    r, c = (i * B + tl.arange(0, B))[:, None], (j * B + tl.arange(0, B))[None, :]
    inside = (r < rows * WIDTH) & (c < size * WIDTH)
    if PAIRS:
        at = ((first_row + r // 2) * size + c // 2) * 2 + (r + c) % 2
        value = tl.load(base + at, mask=inside, other=0.0)
        value = tl.where(c % 2 > r % 2, -value, value)
    else:
        value = tl.load(base + (first_row + r) * size + c, mask=inside, other=0.0)
    return value


@triton.jit
def store_numbers(base, i, j, size, value, PAIRS: tl.constexpr, B: tl.constexpr):
    """The inverse of `load_numbers`, of a square matrix.

    From one of the two real rows of each row: where a complex matrix is nearly singular, rounding makes
    two different rows of them, and parts of both cancel what neither does.
    """
    r, c = (i * B + tl.arange(0, B))[:, None], (j * B + tl.arange(0, B))[None, :]
    if PAIRS:
        at = ((r // 2) * size + c // 2) * 2 + c % 2
        value = tl.where(c % 2 == 0, value, -value)
        tl.store(base + at, value, mask=(r % 2 == 0) & (r < 2 * size) & (c < 2 * size))
    else:
        tl.store(base + r * size + c, value, mask=(r < size) & (c < size))


@triton.jit
def multiply(
    out,
    a,
    b,
    p,
    q,
    blocks,
    X0: tl.constexpr,
    X1: tl.constexpr,
    X2: tl.constexpr,
    TA: tl.constexpr,
    TB: tl.constexpr,
    B: tl.constexpr,
):
    """``out = op(A) op(B) + x0 I + x1 P + x2 Q``, op: transposed or not; ``out`` is none of A and B."""
    for i in range(blocks):
        for j in range(blocks):
            total = block_of_product(a, b, i, j, 0, blocks, blocks, TA, TB, B)
            if X0 != 0.0:
                total += eye(B) * tl.where(i == j, 1.0, 0.0) * X0  # a choice of X0 is float32
            if X1 != 0.0:
                total += X1 * load_block(p, i, j, blocks, B)
            if X2 != 0.0:
                total += X2 * load_block(q, i, j, blocks, B)
            store_block(out, i, j, blocks, total, B)
    tl.debug_barrier()


@triton.jit
def combination(
    out,
    p,
    q,
    blocks,
    x0,
    x1,
    x2,
    TQ: tl.constexpr,
    B: tl.constexpr,
):
    """``out = x0 I + x1 P + x2 op(Q)``, and its Frobenius norm; ``out`` is no Q that is transposed."""
    squares = tl.zeros((), tl.float64)
    for i in range(blocks):
        for j in range(blocks):
            other = tl.trans(load_block(q, j, i, blocks, B)) if TQ else load_block(q, i, j, blocks, B)
            value = x1 * load_block(p, i, j, blocks, B) + x2 * other
            value += eye(B) * tl.where(i == j, 1.0, 0.0) * x0
            squares += tl.sum(value * value)
            store_block(out, i, j, blocks, value, B)
    tl.debug_barrier()
    return square_root(squares)


@triton.jit
def store_twice(base, i, j, blocks, value, PAIRS: tl.constexpr, B: tl.constexpr):
    """`store_block`; of a complex matrix, the first of the two real rows of each row makes both.

    Rounding makes two different rows of them.  Where a matrix is nearly singular, the inverse of one
    that is complex in all but rounding has nothing in common with that of a complex one.
    """
    side = blocks * B
    r, c = (i * B + tl.arange(0, B))[:, None], (j * B + tl.arange(0, B))[None, :]
    at = base + r * side + c
    if PAIRS:
        first = (r % 2 == 0) & (c < side)
        tl.store(at, value, mask=first)
        even = c % 2 == 0
        tl.store(at + tl.where(even, side + 1, side - 1), tl.where(even, value, -value), mask=first)
    else:
        tl.store(at, value)


@triton.jit
def block_triangle(a, rows, B: tl.constexpr):
    """L and L^-1 of a block A = L L^T, and its least pivot over the largest.

    Pivots below the shift are rounding: they are the shift, and nothing depends on them.  Rows from
    ``rows`` on, if there are any, are those of the identity.  A share of a row is read off the row that
    is eliminated: off the column it would be another by rounding, and L^-1 not that of L.  What
    `language.small` has as functions is written out, because the interpreter takes a millisecond for a
    call.
    """
    index = tl.arange(0, B)
    inverse_unit = eye(B)
    pivots = tl.full((B,), 1.0, tl.float64)
    count = tl.minimum(rows, B)
    for j in range(count):
        here = (index == j)[:, None]
        line = tl.sum(tl.where(here, a, 0.0), axis=0)
        value = tl.sum(tl.where(here, inverse_unit, 0.0), axis=0)
        pivot = tl.sum(tl.where(index == j, line, 0.0))
        scale = tl.where(pivot > SHIFT, reciprocal(tl.maximum(pivot, SHIFT)), 0.0)
        pivots = tl.where(index == j, tl.maximum(pivot, SHIFT), pivots)
        share = tl.where(index > j, line * scale, 0.0)[:, None]
        a -= share * line[None, :]
        inverse_unit -= share * value[None, :]
    root = reciprocal(square_root(pivots))
    upper = index[:, None] <= index[None, :]
    lower = tl.trans(tl.where(upper, a * root[:, None], 0.0))
    return lower, inverse_unit * root[:, None], _spread(pivots, index < count)


@triton.jit
def _spread(pivots, inside):
    """The least pivot over the largest."""
    least = tl.min(tl.where(inside, pivots, float("inf")))
    return least * reciprocal(tl.max(tl.where(inside, pivots, 0.0)))


@triton.jit
def diagonal_block(a, inverse, j, blocks, rows, PAIRS: tl.constexpr, B: tl.constexpr):
    """`block_triangle` of the block (j, j) of a matrix in memory, L in its place; in complex numbers."""
    if not PAIRS:
        value = load_block(a, j, j, blocks, B)
        value, unit, spread = block_triangle(value, rows, B)
        tl.debug_barrier()
        store_block(a, j, j, blocks, value, B)
        store_block(inverse, j, j, blocks, unit, B)
    else:
        H: tl.constexpr = B // 2
        side = blocks * B
        index = tl.arange(0, H)
        r, c = (j * B + 2 * index)[:, None], (j * B + 2 * index)[None, :]
        ar, ai = tl.load(a + r * side + c), -tl.load(a + r * side + c + 1)
        mr, mi = eye(H), tl.zeros((H, H), tl.float64)
        pivots = tl.full((H,), 1.0, tl.float64)
        count = tl.minimum(rows, B) // 2
        for l in range(count):
            here = (index == l)[:, None]
            line_r = tl.sum(tl.where(here, ar, 0.0), axis=0)
            line_i = tl.sum(tl.where(here, ai, 0.0), axis=0)
            value_r = tl.sum(tl.where(here, mr, 0.0), axis=0)[None, :]
            value_i = tl.sum(tl.where(here, mi, 0.0), axis=0)[None, :]
            pivot = tl.sum(tl.where(index == l, line_r, 0.0))
            scale = tl.where(pivot > SHIFT, reciprocal(tl.maximum(pivot, SHIFT)), 0.0)
            pivots = tl.where(index == l, tl.maximum(pivot, SHIFT), pivots)
            share_r = tl.where(index > l, line_r * scale, 0.0)[:, None]
            share_i = tl.where(index > l, -line_i * scale, 0.0)[:, None]
            line_r, line_i = line_r[None, :], line_i[None, :]
            ar -= share_r * line_r - share_i * line_i
            ai -= share_r * line_i + share_i * line_r
            mr -= share_r * value_r - share_i * value_i
            mi -= share_r * value_i + share_i * value_r
        root = reciprocal(square_root(pivots))[:, None]
        ar = tl.trans(tl.where(index[:, None] <= index[None, :], ar * root, 0.0))
        ai = -tl.trans(tl.where(index[:, None] < index[None, :], ai * root, 0.0))
        spread = _spread(pivots, index < count)
        tl.debug_barrier()
        _store_complex(a + r * side + c, side, ar, ai)
        _store_complex(inverse + r * side + c, side, mr * root, mi * root)
    tl.debug_barrier()
    return spread


@triton.jit
def _store_complex(at, side, re, im):
    """The real form of a complex block."""
    tl.store(at, re)
    tl.store(at + 1, -im)
    tl.store(at + side, im)
    tl.store(at + side + 1, re)


@triton.jit
def triangle(a, inverse, blocks, rows, PAIRS: tl.constexpr, B: tl.constexpr):
    """A = L L^T becomes L, lower blocks only, and ``inverse`` L^-1, zero above; Cholesky by blocks.

    From row ``rows`` on A is the identity.  With the inverse K of a block of L in place of elimination,
    X L^T = Y has the solution Y K^T but for a rest of the size of |L| |K| in roundings, where a Cholesky
    factor may have no more than one rounding.  So where pivots differ much, Y K^T is corrected by what
    is left of Y.  Unused blocks of ``inverse``, above the diagonal, hold that meanwhile.
    """
    exact = tl.full((), 1.0, tl.float64)  # the least of the pivots over the largest in their block
    for j in range(blocks):
        for i in range(j, blocks):
            value = load_block(a, i, j, blocks, B)
            value -= block_of_product(a, a, i, j, 0, j, blocks, False, True, B)
            store_block(a, i, j, blocks, value, B)
            tl.debug_barrier()
            if i == j:
                spread = diagonal_block(a, inverse, j, blocks, rows - j * B, PAIRS, B)
                exact = tl.minimum(exact, spread)
            else:
                found = block_of_product(a, inverse, i, j, j, j + 1, blocks, False, True, B)
                tl.debug_barrier()
                store_twice(a, i, j, blocks, found, PAIRS, B)
                if exact < SPREAD:
                    tl.debug_barrier()
                    value -= block_of_product(a, a, i, j, j, j + 1, blocks, False, True, B)
                    store_block(inverse, i, j, blocks, value, B)
                    tl.debug_barrier()
                    found += block_of_product(inverse, inverse, i, j, j, j + 1, blocks, False, True, B)
                    store_twice(a, i, j, blocks, found, PAIRS, B)
                store_block(inverse, j, i, blocks, tl.zeros((B, B), tl.float64), B)
                tl.debug_barrier()
    for j in range(blocks):
        for i in range(j + 1, blocks):
            total = block_of_product(a, inverse, i, j, j, i, blocks, False, False, B)
            store_block(inverse, i, j, blocks, total, B)
            tl.debug_barrier()
            found = -block_of_product(inverse, inverse, i, j, i, i + 1, blocks, False, False, B)
            tl.debug_barrier()
            store_twice(inverse, i, j, blocks, found, PAIRS, B)
            tl.debug_barrier()
            if exact < SPREAD:
                total += block_of_product(a, inverse, i, j, i, i + 1, blocks, False, False, B)
                tl.debug_barrier()
                store_block(inverse, i, j, blocks, total, B)
                tl.debug_barrier()
                found -= block_of_product(inverse, inverse, i, j, i, i + 1, blocks, False, False, B)
                tl.debug_barrier()
                store_twice(inverse, i, j, blocks, found, PAIRS, B)
                tl.debug_barrier()


@triton.jit
def lengths(gram, split, splits, i, size, dropped, PAIRS: tl.constexpr, B: tl.constexpr):
    """Of rows of block i: their norms from the diagonal of their Gram matrix, 0 below ``dropped``^2.

    And 1 / norm, or 0.  ``gram`` is a sum of ``splits``.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    r = i * B + tl.arange(0, B)
    squares = tl.zeros((B,), tl.float64)
    for part in range(splits):
        at = gram + part * split + (r // WIDTH) * (size + 1) * WIDTH
        squares += tl.load(at, mask=r < size * WIDTH, other=0.0)
    norms = square_root(tl.maximum(squares, 0.0))
    # a comparison that is False for NaN, which so stays
    norms = tl.where((squares < dropped) | (norms <= TINY), 0.0, norms)
    return norms, tl.where(norms == 0.0, 0.0, reciprocal(tl.maximum(norms, TINY)))
