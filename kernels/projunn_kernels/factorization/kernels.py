"""An orthonormal basis of a few columns.

The columns come as partial sums, (splits, k, n) for each matrix, and go through registers in chunks of
BN.  For 1 < k <= 8 the parts of long columns have a program each: one launch adds up the partial sums
and makes the Gram matrices of the parts, and in the next every program adds these up and finds what all
of a few numbers is.  For k > 8 a program has the Gram matrix alone: see
`projunn_kernels.factorization.rows`.
"""

import triton
import triton.language as tl

from projunn_kernels.language.blocks import (
    SHIFT,
    lengths,
    load_block,
    load_numbers,
    store_block,
    store_numbers,
    triangle,
)
from projunn_kernels.language.columns import gram_of_part, store_gram
from projunn_kernels.language.factors import load_columns, store_columns, sum_partials
from projunn_kernels.language.float64 import reciprocal, square_root
from projunn_kernels.language.orthonormal import DEPENDENT, orthonormal_part
from projunn_kernels.language.plane import TINY, dot
from projunn_kernels.language.small import dot as block_product
from projunn_kernels.language.small import eye


@triton.jit
def _inverse(squares):
    """One over a norm, from its square; zero for the norm of zeros."""
    norm = square_root(squares)
    return tl.where(norm > TINY, reciprocal(tl.maximum(norm, TINY)), 0.0)


@triton.jit
def unit_kernel(
    partial,
    factor,
    n,
    splits,
    PAIRS: tl.constexpr,
    HOLD: tl.constexpr,
    BN: tl.constexpr,
):
    """k = 1: the column whose partial sums are given, (splits, 1, n), divided by its norm.

    HOLD: BN is at least n, and the column stays in registers.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    slot = tl.program_id(0).to(tl.int64)
    source = partial + slot * splits * n * WIDTH
    out = factor + slot * n * WIDTH
    if HOLD:
        yr, yi = sum_partials(source, 0, n, 1, splits, BN, 1, PAIRS)
        scale = _inverse(dot(yr, yi, yr, yi, PAIRS)[0])
        yr, yi = yr.to(tl.float32).to(tl.float64), yi.to(tl.float32).to(tl.float64)
        store_columns(out, 0, n, 1, yr * scale, yi * scale, BN, 1, PAIRS)
    else:
        squares = tl.zeros((), tl.float64)
        for first in range(0, n, BN):
            yr, yi = sum_partials(source, first, n, 1, splits, BN, 1, PAIRS)
            store_columns(out, first, n, 1, yr, yi, BN, 1, PAIRS)
            squares += dot(yr, yi, yr, yi, PAIRS)[0]
        scale = _inverse(squares)
        tl.debug_barrier()
        for first in range(0, n, BN):
            yr, yi = load_columns(out, first, n, 1, BN, 1, PAIRS)
            store_columns(out, first, n, 1, yr * scale, yi * scale, BN, 1, PAIRS)


@triton.jit
def _store_gram(
    right, partial, columns, grams, place, part, each, n, k, splits, scale,
    BOTH: tl.constexpr, PAIRS: tl.constexpr, BN: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """`gram_of_part` into the place of an entry of ``grams``."""
    gr, gi = gram_of_part(right, partial, columns, part, each, n, k, splits, scale, BOTH, PAIRS, BN, S)
    store_gram(grams + place * (S * S * (2 if PAIRS else 1)), gr, gi, S, PAIRS)


@triton.jit
def gram_kernel(
    right,
    partial,
    columns,
    gram,
    left,
    left_columns,
    left_gram,
    rate_tensor,
    rate,
    m,
    n,
    k,
    splits,
    each,
    left_each,
    parts,
    BOTH: tl.constexpr,
    PAIRS: tl.constexpr,
    HAS_RATE: tl.constexpr,
    BN: tl.constexpr,
    S: tl.constexpr,
):
    """P of partial sums, or [Y, -rate Z], into ``columns`` (S, n), and parts of P^H P into ``gram``.

    Grid (parts, matrices): a part has ``each`` numbers of a column.  Programs beyond ``parts``, if there
    are any, do the same for ``left``, X (k, m), S / 2 columns whose parts have ``left_each`` numbers.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    part, slot = tl.program_id(0), tl.program_id(1).to(tl.int64)
    source = partial + slot * n * splits * k * WIDTH
    own, place = columns + slot * n * S * WIDTH, slot * parts + part
    if not BOTH:
        _store_gram(source, source, own, gram, place, part, each, n, k, splits, 1.0, False, PAIRS, BN, S)
    elif part < parts:
        y = right + slot * n * k * WIDTH
        if HAS_RATE:
            rate *= tl.load(rate_tensor).to(tl.float32)
        _store_gram(y, source, own, gram, place, part, each, n, k, splits, -rate, True, PAIRS, BN, S)
    else:
        x, part = left + slot * m * k * WIDTH, part - parts
        own = left_columns + slot * m * (S // 2) * WIDTH
        place = slot * (tl.num_programs(0) - parts) + part
        _store_gram(x, x, own, left_gram, place, part, left_each, m, k, 1, 1.0, False, PAIRS, BN, S // 2)


@triton.jit
def orthonormal_kernel(
    partial,
    columns,
    gram,
    factor,
    n,
    k,
    splits,
    each,
    PAIRS: tl.constexpr,
    ALONE: tl.constexpr,
    BN: tl.constexpr,
    K: tl.constexpr,
):
    """1 < k <= K: ``orth`` of the columns P, (K, n), whose Gram matrix comes in parts: Cholesky.

    Grid (parts, matrices); ALONE, and how, as in `orthonormal_part`.
    """
    orthonormal_part(
        partial, columns, gram, factor, tl.program_id(0), tl.num_programs(0), each, n, k, splits,
        PAIRS, ALONE, BN, K,
    )  # fmt: skip


@triton.jit
def triangle_kernel(
    gram,
    change,
    coordinates,
    finite_mask,
    scratch,
    count,
    size,
    blocks,
    splits,
    KEEP: tl.constexpr,
    DROP: tl.constexpr,
    PAIRS: tl.constexpr,
    B: tl.constexpr,
):
    """C = (N L)^-1 from H = P P^H = (N L) (N L)^H, so that C P has orthonormal rows, P = (N L) (C P).

    H (size, size) is the sum of ``splits`` matrices, N has the norms of the rows of P, C goes to
    ``change``.  KEEP: N L goes to ``coordinates``, and whether P is finite to ``finite_mask``.
    DROP: rows that depend on those before them, which the shift of the last time has left short, become
    zero.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    program, programs = tl.program_id(0), tl.num_programs(0)
    matrix = (blocks * B) * (blocks * B)
    a = scratch + program.to(tl.int64) * 2 * matrix
    inverse = a + matrix
    dropped = DEPENDENT if DROP else 0.0
    split = size * size * WIDTH
    shift = tl.zeros((), tl.float64) + SHIFT * (size * WIDTH)
    for index in range(program, count, programs):
        slot = program.to(tl.int64) * 0 + index  # the interpreter counts in Python's numbers
        source = gram + slot * splits * split
        total = tl.zeros((), tl.float64)
        for i in range(blocks):
            here, scale = lengths(source, split, splits, i, size, dropped, PAIRS, B)
            for j in range(i + 1):
                _norms, other = lengths(source, split, splits, j, size, dropped, PAIRS, B)
                value = tl.zeros((B, B), tl.float64)
                for part in range(splits):
                    value += load_numbers(source + part * split, 0, i, size, j, size, PAIRS, B)
                total += tl.sum(tl.abs(value))
                # a zero row is a row of its own: C ignores it, and nothing is divided by 0
                own = eye(B) * (tl.where(here == 0.0, 1.0, 0.0) + shift)[None, :]
                value = value * scale[:, None] * other[None, :] + tl.where(i == j, own, 0.0)
                store_block(a, i, j, blocks, value, B)
        if KEEP:
            tl.store(finite_mask + slot, (total < 1e300).to(tl.int8))
        tl.debug_barrier()
        triangle(a, inverse, blocks, size * WIDTH, PAIRS, B)
        out = change + slot * split
        for j in range(blocks):
            _norms, scale = lengths(source, split, splits, j, size, dropped, PAIRS, B)
            for i in range(blocks):
                value = load_block(inverse, i, j, blocks, B) * scale[None, :]
                store_numbers(out, i, j, size, value, PAIRS, B)
        if KEEP:
            kept = coordinates + slot * matrix
            for i in range(blocks):
                norms, _scale = lengths(source, split, splits, i, size, dropped, PAIRS, B)
                for j in range(blocks):
                    value = tl.zeros((B, B), tl.float64)
                    if j <= i:
                        value = load_block(a, i, j, blocks, B) * norms[:, None]
                    store_block(kept, i, j, blocks, value, B)
        tl.debug_barrier()


@triton.jit
def gather_kernel(factor, partial, columns, n, k, splits, rows, BOTH: tl.constexpr, BN: tl.constexpr):
    """The rows of P in float64: the sums of ``partial`` (splits, k, n) or, BOTH, Y and after it those.

    Grid (chunks of a row, rows, matrices); n counts floats.
    """
    row, slot = tl.program_id(1), tl.program_id(2).to(tl.int64)
    at = tl.program_id(0) * BN + tl.arange(0, BN)
    each = tl.cast(n, tl.int64) * k
    value = tl.zeros((BN,), tl.float64)
    if BOTH & (row < k):
        value += tl.load(factor + (slot * k + row) * n + at, mask=at < n, other=0.0)
    else:
        source = partial + (slot * splits * k + (row - k if BOTH else row)) * n
        for first in range(0, splits, 4):
            for ahead in tl.static_range(4):  # four loads at a time, since each waits for memory
                inside = (at < n) & (first + ahead < splits)
                value += tl.load(source + at, mask=inside, other=0.0)
                source += each
    tl.store(columns + (slot * rows + row) * n + at, value, mask=at < n)


@triton.jit
def combine_kernel(
    change,
    source,
    rows,
    precise_rows,
    size,
    n,
    LOWER: tl.constexpr,
    KEEP: tl.constexpr,
    ROUND: tl.constexpr,
    PAIRS: tl.constexpr,
    B: tl.constexpr,
):
    """C P of rows P (size, n) in float64: in float32 (ROUND), in float64 (KEEP), or in both.

    Grid (chunks of B numbers of a row, blocks of B real rows, matrices).  LOWER: C is a lower triangle.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    slot = tl.program_id(2).to(tl.int64)
    c = (tl.program_id(0) * B + tl.arange(0, B))[None, :]
    r = (tl.program_id(1) * B + tl.arange(0, B))[:, None]
    change += slot * size * size * WIDTH
    shift = slot * size * n * WIDTH
    length = size * WIDTH
    last = tl.minimum((tl.program_id(1) + 1) * B, length) if LOWER else length
    total = tl.zeros((B, B), tl.float64)
    for first in range(0, last, 16):
        here, there = (first + tl.arange(0, 16))[None, :], (first + tl.arange(0, 16))[:, None]
        inside = (r < length) & (here < length)
        if PAIRS:
            at = ((r // 2) * size + here // 2) * 2 + (r + here) % 2
            left = tl.load(change + at, mask=inside, other=0.0)
            left = tl.where(here % 2 > r % 2, -left, left)
            at = ((there // 2).to(tl.int64) * n + c) * 2 + there % 2
        else:
            left = tl.load(change + r * size + here, mask=inside, other=0.0)
            at = there.to(tl.int64) * n + c
        right = tl.load(source + shift + at, mask=(there < length) & (c < n), other=0.0)
        total += block_product(left, right)
    r = r.to(tl.int64)
    at = ((r // 2) * n + c) * 2 + r % 2 if PAIRS else r * n + c
    inside = (r < length) & (c < n)
    if ROUND:
        tl.store(rows + shift + at, total.to(tl.float32), mask=inside)
    if KEEP:
        tl.store(precise_rows + shift + at, total, mask=inside)
