"""The kernel of steps of more than 8 columns."""

import triton
import triton.language as tl

from projunn_kernels.language.blocks import (
    combination,
    load_block,
    load_numbers,
    multiply,
    store_block,
    store_numbers,
)
from projunn_kernels.language.small import (
    LARGE,
)
from projunn_kernels.language.small import dot as block_product


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
def _trace_of_square(a, blocks, B: tl.constexpr):
    """The trace of A^2."""
    total = tl.zeros((), tl.float64)
    for i in range(blocks):
        for j in range(blocks):
            total += tl.sum(load_block(a, i, j, blocks, B) * tl.trans(load_block(a, j, i, blocks, B)))
    return total


@triton.jit
def turn_kernel(
    coordinates,
    gram,
    change,
    finite_mask,
    taken_mask,
    scratch,
    rate_tensor,
    rate,
    precision,
    count,
    k,
    size,
    rows,
    blocks,
    splits,
    ROTATE: tl.constexpr,
    PAIRS: tl.constexpr,
    HAS_RATE: tl.constexpr,
    WHOLE: tl.constexpr,
    B: tl.constexpr,
):
    """conj F into ``change`` (size, size), from the coordinates of [Y, Z] in the rows conj Q^H.

    With rows for columns all is conjugated: conj E = -rate K_z^H K_y, and (conj F) Q^T are the rows of
    Q F^H.  A matrix of ``coordinates`` has ``rows`` rows.  ``gram`` is that of the rows of Q, which
    depend on each other where they are more than n; WHOLE: they are those of I.  A program has seven
    matrices of ``scratch``.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    if HAS_RATE:
        rate *= tl.load(rate_tensor).to(tl.float32)
    program, programs = tl.program_id(0), tl.num_programs(0)
    matrix = (blocks * B) * (blocks * B)
    e = scratch + program.to(tl.int64) * 7 * matrix
    a = e + matrix
    for index in range(program, count, programs):
        slot = program.to(tl.int64) * 0 + index  # the interpreter counts in Python's numbers
        kept = coordinates + slot * rows * (blocks * B)
        squares = tl.zeros((), tl.float64)
        sizes = tl.zeros((), tl.float64)
        step = tl.zeros((), tl.float64) - rate
        for i in range(blocks):
            for j in range(blocks):
                value = _step_block(kept, i, j, k, blocks, PAIRS, B) * step
                squares += tl.sum(value * value)
                store_block(e, i, j, blocks, value, B)
                if not WHOLE:
                    r = (i * B + tl.arange(0, B))[:, None]
                    value = load_block(kept, i, j, blocks, B)
                    value *= tl.where(r < k * WIDTH, 1.0, step)
                    sizes += tl.sum(value * value)
        # comparisons that are False for NaN
        finite = squares < 1e300
        if not WHOLE:
            finite = finite & (tl.load(finite_mask + slot) != 0)
        tl.debug_barrier()
        norm = combination(a, e, e, blocks, 0.0, 0.5, -0.5, True, B)
        norm = tl.where(finite, norm, 0.0)
        f, taken = ROTATE(e, norm, blocks, size * WIDTH, precision, finite, PAIRS, B)
        taken = taken & finite
        # I + F is unitary: X = F + F^T + F^T F = 0
        multiply(a, f, f, f, f, blocks, 0.0, 1.0, 0.0, True, False, B)
        error = combination(e, a, f, blocks, 0.0, 1.0, 1.0, True, B)
        taken = taken & (error < 1e-9)
        if (sizes > LARGE * LARGE * WIDTH) & taken:
            # whether I + Q F Q^H is, also where rows of Q are not orthonormal: see `turns_only`
            g = a
            for i in range(blocks):
                for j in range(blocks):
                    value = tl.zeros((B, B), tl.float64)
                    for part in range(splits):
                        at = gram + (slot * splits + part) * size * size * WIDTH
                        value += load_numbers(at, 0, i, size, j, size, PAIRS, B)
                    store_block(g, i, j, blocks, value, B)
            tl.debug_barrier()
            x = e + 6 * matrix
            multiply(e, g, f, f, f, blocks, 0.0, 0.0, 0.0, False, False, B)
            multiply(x, f, e, f, f, blocks, 0.0, 1.0, 0.0, True, False, B)
            combination(e, x, f, blocks, 0.0, 1.0, 1.0, True, B)
            multiply(x, g, e, f, f, blocks, 0.0, 0.0, 0.0, False, False, B)
            taken = tl.abs(_trace_of_square(x, blocks, B)) < 1e-18 * WIDTH
        tl.store(taken_mask + slot, taken.to(tl.int8))
        out = change + slot * size * size * WIDTH
        for i in range(blocks):
            for j in range(blocks):
                value = tl.where(taken, load_block(f, i, j, blocks, B), 0.0)
                store_numbers(out, i, j, size, value, PAIRS, B)
        tl.debug_barrier()
