"""The kernel of steps of more than 8 columns."""

import triton
import triton.language as tl

from projunn_kernels.language.blocks import (
    SHIFT,
    combination,
    load_block,
    multiply,
    store_block,
    triangle,
)
from projunn_kernels.language.float64 import doublings, square_root
from projunn_kernels.language.small import eye
from projunn_kernels.retraction.kernels.series import (
    INVERSE,
    PLACES,
    E,
    F,
    G,
    J,
    begin,
    defect,
    polynomial,
    store_change,
    weighed,
)

_GF, _LOWER, _OTHER = tl.constexpr(2), tl.constexpr(5), tl.constexpr(6)


@triton.jit
def _of_any_size(
    base, blocks, size, precision, ROTATE: tl.constexpr, PAIRS: tl.constexpr, B: tl.constexpr
):
    """F of a step of any size, in its place, and whether that is taken.

    With G = L L^H, the rows L^-1 Q are orthonormal, and L^H E L is E in their coordinates: F is
    L^-H f L^-1 with f of that.
    """
    matrix = (blocks * B) * (blocks * B)
    f, a, e, g = base + F * matrix, base + J * matrix, base + E * matrix, base + G * matrix
    lower, other, inverse = base + _LOWER * matrix, base + _OTHER * matrix, base + INVERSE * matrix
    for i in range(blocks):
        r = i * B + tl.arange(0, B)
        shift = tl.where(r < size, tl.zeros((B,), tl.float64) + SHIFT * size, 1.0)
        for j in range(i + 1):
            value = load_block(g, i, j, blocks, B)
            value += eye(B) * tl.where(i == j, 1.0, 0.0) * shift[None, :]
            store_block(lower, i, j, blocks, value, B)
    tl.debug_barrier()
    triangle(lower, inverse, blocks, size, PAIRS, B)
    for i in range(blocks):
        for j in range(i + 1, blocks):
            store_block(lower, i, j, blocks, tl.zeros((B, B), tl.float64), B)
    tl.debug_barrier()
    multiply(other, e, lower, e, e, blocks, 0.0, 0.0, 0.0, False, False, B)
    multiply(f, lower, other, e, e, blocks, 0.0, 0.0, 0.0, True, False, B)
    norm = combination(a, f, f, blocks, 0.0, 0.5, -0.5, True, B)
    found, taken = ROTATE(f, norm, blocks, size, precision, PAIRS, B)
    multiply(a, found, inverse, e, e, blocks, 0.0, 0.0, 0.0, False, False, B)
    multiply(f, inverse, a, e, e, blocks, 0.0, 0.0, 0.0, True, False, B)
    multiply(base + _GF * matrix, g, f, e, e, blocks, 0.0, 0.0, 0.0, False, False, B)
    _squares, error = defect(base, F, J, blocks, B)
    return taken & (error < 1e-18)


@triton.jit
def _by_squaring(base, squares, blocks, size, precision, TERMS: tl.constexpr, B: tl.constexpr):
    """The exponential of a step of any size, in its place, and whether that is taken.

    It is that of J / 2^p, of a size below 1/8, squared p times: F <- 2 F + F G F.  ``squares`` are those
    of J, which is at least as large as the step.
    """
    matrix = (blocks * B) * (blocks * B)
    f, j, g, gf = base + F * matrix, base + J * matrix, base + G * matrix, base + _GF * matrix
    other = base + _OTHER * matrix
    taken = weighed(base, J, blocks, B) * precision < size
    times, scale = doublings(tl.where(taken, 2.0 * square_root(squares), 0.0))
    combination(j, j, j, blocks, 0.0, scale * tl.where(taken, 1.0, 0.0), 0.0, False, B)
    polynomial(base, blocks, TERMS, B)
    for _ in range(times):
        multiply(gf, g, f, f, f, blocks, 0.0, 0.0, 0.0, False, False, B)
        multiply(other, f, gf, f, f, blocks, 0.0, 2.0, 0.0, False, False, B)
        combination(f, other, other, blocks, 0.0, 1.0, 0.0, False, B)
    multiply(gf, g, f, f, f, blocks, 0.0, 0.0, 0.0, False, False, B)
    _squares, error = defect(base, F, J, blocks, B)
    return taken & (error < 1e-18)


@triton.jit
def turn_kernel(
    coordinates,
    gram,
    change,
    finite_mask,
    taken_mask,
    scratch,
    sums,
    limit,
    precision,
    count,
    k,
    size,
    rows,
    blocks,
    splits,
    PARTS: tl.constexpr,
    ROTATE: tl.constexpr,
    SQUARED: tl.constexpr,
    PAIRS: tl.constexpr,
    B: tl.constexpr,
):
    """Whether a step is taken; and conj F, if what the polynomial was of is above ``limit``.

    The arguments are those of the kernels before, whose numbers have PARTS parts.  ROTATE: the
    function ``many`` of a retraction or, SQUARED, its ``terms``.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    program, programs = tl.program_id(0), tl.num_programs(0)
    matrix = (blocks * B) * (blocks * B)
    base = scratch + program.to(tl.int64) * PLACES * matrix
    for index in range(program, count, programs):
        slot = program.to(tl.int64) * 0 + index  # the interpreter counts in Python's numbers
        numbers = sums + slot * (3 * PARTS + 1)
        all_of_e = tl.zeros((), tl.float64)
        squares = tl.zeros((), tl.float64)
        error = tl.zeros((), tl.float64)
        parts = blocks * blocks if PARTS > 1 else 1
        for part in range(parts):  # unrolled, as up to a constant, or as tiles they spill
            all_of_e += tl.load(numbers + part)
            squares += tl.load(numbers + PARTS + part)
            error += tl.load(numbers + 2 * PARTS + part)
        # comparisons that are False for NaN
        finite = (all_of_e < 1e300) & (tl.load(finite_mask + slot) != 0)
        taken = finite & (squares <= limit * limit) & (error < 1e-18)
        if finite & ~taken:
            kept = coordinates + slot * rows * (blocks * B)
            grams = gram + slot * splits * size * size * WIDTH
            step = tl.load(numbers + 3 * PARTS)
            _of_e, all_of_j = begin(base, kept, grams, step, k, size, blocks, splits, PAIRS, B)
            if SQUARED:
                taken = _by_squaring(base, all_of_j, blocks, size * WIDTH, precision, ROTATE, B)
            else:
                taken = _of_any_size(base, blocks, size * WIDTH, precision, ROTATE, PAIRS, B)
            store_change(base, change + slot * size * size * WIDTH, size, blocks, PAIRS, B)
        tl.store(taken_mask + slot, taken.to(tl.int8))
        tl.debug_barrier()
