"""Steps of more than 8 columns that are not large: F as a polynomial.

With rows for columns all is conjugated: conj A = Q^H J Q of the rows Q of the step's span, whose Gram
matrix is G = Q Q^H.  Matrices I + Q^H F Q are closed under products, whatever G is, and one is unitary
where F + F^H + F^H G F = 0.  So the rows need not be orthonormal: those that one Cholesky factor makes
will do, and rows that depend on each other, which are short, are no special case.  With M = J G

    F = c0 J + c1 M J + c2 M^2 J + ... + c9 M^9 J        exp, Cayley
    V = c0 X + c1 M X + ...,  F = E + V + E G V          polar: J = X = E^H G E + E + E^H

A matrix has ten places, which are named below.  One program makes all products of a matrix, or there is
a launch for each product, with a program for each of its blocks.
"""

import triton
import triton.language as tl

from projunn_kernels.language.blocks import (
    block_of_product,
    load_block,
    load_numbers,
    store_block,
    store_numbers,
)
from projunn_kernels.language.small import dot as block_product
from projunn_kernels.language.small import eye

PLACES = tl.constexpr(10)
F, J, G, E, INVERSE = (tl.constexpr(place) for place in (0, 1, 7, 8, 9))
M, SQUARE, CUBE, SUM, OTHER = (tl.constexpr(place) for place in (2, 3, 4, 5, 6))
# What is added to a product: nothing, or E + F; else three terms of the polynomial, from this one on.
NOTHING, BOTH = tl.constexpr(-1), tl.constexpr(-2)


@triton.jit
def _step_block(kept, i, j, k, blocks, PAIRS: tl.constexpr, B: tl.constexpr):
    """Block (i, j) of K_z^H K_y, from the coordinates K = [K_y; K_z] of Y and Z, k rows each."""
    rows = 2 * k if PAIRS else k
    size = blocks * B
    lane = tl.arange(0, B)
    value = tl.zeros((B, B), tl.float64)
    for first in range(0, rows, 16):
        r = (first + tl.arange(0, 16))[:, None]
        y = tl.load(kept + r * size + (j * B + lane)[None, :], mask=r < rows, other=0.0)
        z = tl.load(kept + (rows + r) * size + (i * B + lane)[None, :], mask=r < rows, other=0.0)
        value += block_product(tl.trans(z), y)
    return value


@triton.jit
def begin_block(
    base, kept, gram, step, i, j, k, size, blocks, splits, PAIRS: tl.constexpr, B: tl.constexpr
):
    """Blocks (i, j) of G, of E = ``step`` K_z^H K_y and of J = (E - E^H) / 2; squares of E and J."""
    matrix = (blocks * B) * (blocks * B)
    total = tl.zeros((B, B), tl.float64)
    split = size * size * (2 if PAIRS else 1)
    for part in range(splits):
        total += load_numbers(gram + part * split, 0, i, size, j, size, PAIRS, B)
    store_block(base + G * matrix, i, j, blocks, total, B)
    here = _step_block(kept, i, j, k, blocks, PAIRS, B) * step
    store_block(base + E * matrix, i, j, blocks, here, B)
    skew = 0.5 * (here - tl.trans(_step_block(kept, j, i, k, blocks, PAIRS, B) * step))
    store_block(base + J * matrix, i, j, blocks, skew, B)
    return tl.sum(here * here), tl.sum(skew * skew)


@triton.jit
def _product_block(
    base, a, b, out, i, j, blocks, TERMS: tl.constexpr, ADDED: tl.constexpr, B: tl.constexpr
):
    """Block (i, j) of the product of two places, with what is ADDED to it.

    TERMS: the function of a retraction that adds terms of its polynomial, of M and M^2.
    """
    matrix = (blocks * B) * (blocks * B)
    value = block_of_product(
        base + a * matrix, base + b * matrix, i, j, 0, blocks, blocks, False, False, B
    )
    if ADDED == BOTH:
        value += load_block(base + E * matrix, i, j, blocks, B)
        value += load_block(base + F * matrix, i, j, blocks, B)
    elif ADDED != NOTHING:
        if ADDED == 6:
            store_block(base + CUBE * matrix, i, j, blocks, value, B)
        m = load_block(base + M * matrix, i, j, blocks, B)
        square = load_block(base + SQUARE * matrix, i, j, blocks, B)
        value = TERMS(value, eye(B) * tl.where(i == j, 1.0, 0.0), m, square, ADDED)
    store_block(base + out * matrix, i, j, blocks, value, B)


@triton.jit
def defect_block(base, a, out, i, j, blocks, B: tl.constexpr):
    """Block (i, j) of X = A^H G A + A + A^H, what I + Q^H A Q lacks to be unitary; G A is in M's place.

    Its squares, and those times the squares of the lengths of two rows of Q, whose sum is what counts.
    """
    side = blocks * B
    at = base + a * (side * side)
    value = block_of_product(at, base + M * (side * side), i, j, 0, blocks, blocks, True, False, B)
    value += load_block(at, i, j, blocks, B) + tl.trans(load_block(at, j, i, blocks, B))
    store_block(base + out * (side * side), i, j, blocks, value, B)
    squares = value * value
    return tl.sum(squares), tl.sum(squares * _lengths(base, i, j, blocks, B))


@triton.jit
def _lengths(base, i, j, blocks, B: tl.constexpr):
    """Squares of the lengths of two rows of Q, times each other: block (i, j)."""
    side, lane = blocks * B, tl.arange(0, B)
    diagonal = base + G * (side * side)
    rows = tl.load(diagonal + (i * B + lane) * (side + 1))
    columns = tl.load(diagonal + (j * B + lane) * (side + 1))
    return rows[:, None] * columns[None, :]


@triton.jit
def weighed(base, a, blocks, B: tl.constexpr):
    """The squares of Q^H A Q, for rows of Q that are orthogonal, and about those of others."""
    at = base + a * ((blocks * B) * (blocks * B))
    total = tl.zeros((), tl.float64)
    for i in range(blocks):
        for j in range(blocks):
            value = load_block(at, i, j, blocks, B)
            total += tl.sum(value * value * _lengths(base, i, j, blocks, B))
    return total


@triton.jit
def _product(base, a, b, out, blocks, TERMS: tl.constexpr, ADDED: tl.constexpr, B: tl.constexpr):
    for i in range(blocks):
        for j in range(blocks):
            _product_block(base, a, b, out, i, j, blocks, TERMS, ADDED, B)
    tl.debug_barrier()


@triton.jit
def defect(base, a, out, blocks, B: tl.constexpr):
    """`defect_block` of all blocks."""
    squares = tl.zeros((), tl.float64)
    weighed = tl.zeros((), tl.float64)
    for i in range(blocks):
        for j in range(blocks):
            plain, times_lengths = defect_block(base, a, out, i, j, blocks, B)
            squares += plain
            weighed += times_lengths
    tl.debug_barrier()
    return squares, weighed


@triton.jit
def begin(base, kept, gram, step, k, size, blocks, splits, PAIRS: tl.constexpr, B: tl.constexpr):
    """`begin_block` of all blocks."""
    all_of_e = tl.zeros((), tl.float64)
    all_of_j = tl.zeros((), tl.float64)
    for i in range(blocks):
        for j in range(blocks):
            of_e, of_j = begin_block(base, kept, gram, step, i, j, k, size, blocks, splits, PAIRS, B)
            all_of_e += of_e
            all_of_j += of_j
    tl.debug_barrier()
    return all_of_e, all_of_j


@triton.jit
def polynomial(base, blocks, TERMS: tl.constexpr, B: tl.constexpr):
    """F of J and G."""
    _product(base, J, G, M, blocks, TERMS, NOTHING, B)
    _product(base, M, M, SQUARE, blocks, TERMS, NOTHING, B)
    _product(base, SQUARE, M, SUM, blocks, TERMS, 6, B)
    _product(base, CUBE, SUM, OTHER, blocks, TERMS, 3, B)
    _product(base, CUBE, OTHER, SUM, blocks, TERMS, 0, B)
    _product(base, SUM, J, F, blocks, TERMS, NOTHING, B)


@triton.jit
def follow_kernel(
    coordinates,
    gram,
    scratch,
    sums,
    change,
    rate_tensor,
    rate,
    count,
    k,
    size,
    rows,
    blocks,
    splits,
    TERMS: tl.constexpr,
    OF_DEFECT: tl.constexpr,
    PAIRS: tl.constexpr,
    HAS_RATE: tl.constexpr,
    B: tl.constexpr,
):
    """All that makes conj F of a matrix, into ``change`` (size, size), and numbers that tell what it is.

    From the coordinates of [Y, Z] in the rows Q, of which there are ``rows``, and matrices
    (splits, size, size) that add up to G.  The numbers are the squares of E, of what the polynomial is
    of, and of what F lacks to be unitary, and the negative rate.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    if HAS_RATE:
        rate *= tl.load(rate_tensor).to(tl.float32)
    program, programs = tl.program_id(0), tl.num_programs(0)
    matrix = (blocks * B) * (blocks * B)
    base = scratch + program.to(tl.int64) * PLACES * matrix
    step = tl.zeros((), tl.float64) - rate
    for index in range(program, count, programs):
        slot = program.to(tl.int64) * 0 + index  # the interpreter counts in Python's numbers
        kept = coordinates + slot * rows * (blocks * B)
        grams = gram + slot * splits * size * size * WIDTH
        all_of_e, squares = begin(base, kept, grams, step, k, size, blocks, splits, PAIRS, B)
        if OF_DEFECT:
            _product(base, G, E, M, blocks, TERMS, NOTHING, B)
            squares, _weighed = defect(base, E, J, blocks, B)
        tl.store(sums + slot * 4, all_of_e)
        tl.store(sums + slot * 4 + 1, squares)
        tl.store(sums + slot * 4 + 3, step)
        # the products of `projunn_kernels.retraction.many`, in their order
        polynomial(base, blocks, TERMS, B)
        if OF_DEFECT:
            _product(base, G, F, M, blocks, TERMS, NOTHING, B)
            _product(base, E, M, F, blocks, TERMS, BOTH, B)
        _product(base, G, F, M, blocks, TERMS, NOTHING, B)
        _squares, error = defect(base, F, SQUARE, blocks, B)
        tl.store(sums + slot * 4 + 2, error)
        store_change(base, change + slot * size * size * WIDTH, size, blocks, PAIRS, B)
        tl.debug_barrier()


@triton.jit
def store_change(base, change, size, blocks, PAIRS: tl.constexpr, B: tl.constexpr):
    """F, from its place."""
    matrix = (blocks * B) * (blocks * B)
    for i in range(blocks):
        for j in range(blocks):
            value = load_block(base + F * matrix, i, j, blocks, B)
            store_numbers(change, i, j, size, value, PAIRS, B)


@triton.jit
def begin_kernel(
    coordinates,
    gram,
    scratch,
    sums,
    rate_tensor,
    rate,
    k,
    size,
    rows,
    blocks,
    splits,
    PAIRS: tl.constexpr,
    HAS_RATE: tl.constexpr,
    B: tl.constexpr,
):
    """What the products begin with.  Grid (blocks of a matrix, matrices), as of the two others.

    Each program has a part of the numbers that `follow_kernel` leaves, but of the rate.
    """
    at, slot = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if HAS_RATE:
        rate *= tl.load(rate_tensor).to(tl.float32)
    step = tl.zeros((), tl.float64) - rate
    each, matrix = blocks * blocks, (blocks * B) * (blocks * B)
    all_of_e, all_of_j = begin_block(
        scratch + slot * PLACES * matrix,
        coordinates + slot * rows * (blocks * B),
        gram + slot * splits * size * size * (2 if PAIRS else 1),
        step, at // blocks, at % blocks, k, size, blocks, splits, PAIRS, B,
    )  # fmt: skip
    numbers = sums + slot * (3 * each + 1)
    tl.store(numbers + at, all_of_e)
    tl.store(numbers + each + at, all_of_j)
    if at == 0:
        tl.store(numbers + 3 * each, step)


@triton.jit
def small_product_kernel(
    scratch,
    blocks,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    OUT: tl.constexpr,
    ADDED: tl.constexpr,
    TERMS: tl.constexpr,
    B: tl.constexpr,
):
    """One of the products."""
    at, slot = tl.program_id(0), tl.program_id(1).to(tl.int64)
    base = scratch + slot * PLACES * ((blocks * B) * (blocks * B))
    _product_block(base, LEFT, RIGHT, OUT, at // blocks, at % blocks, blocks, TERMS, ADDED, B)


@triton.jit
def defect_kernel(
    scratch,
    change,
    sums,
    size,
    blocks,
    PAIRS: tl.constexpr,
    LAST: tl.constexpr,
    B: tl.constexpr,
):
    """X of E, what the polynomial of the polar factor is of, or LAST, of F, which goes to ``change``."""
    at, slot = tl.program_id(0), tl.program_id(1).to(tl.int64)
    each, matrix = blocks * blocks, (blocks * B) * (blocks * B)
    base, i, j = scratch + slot * PLACES * matrix, at // blocks, at % blocks
    numbers = sums + slot * (3 * each + 1)
    if LAST:
        _squares, error = defect_block(base, F, SQUARE, i, j, blocks, B)
        tl.store(numbers + 2 * each + at, error)
        out = change + slot * size * size * (2 if PAIRS else 1)
        store_numbers(out, i, j, size, load_block(base + F * matrix, i, j, blocks, B), PAIRS, B)
    else:
        squares, _weighed = defect_block(base, E, J, i, j, blocks, B)
        tl.store(numbers + each + at, squares)
