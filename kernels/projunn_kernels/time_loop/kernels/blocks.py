"""The time loop of a few rows of the batch, transposed: W is the first operand of every product.

The state of a program is a tile (units, BB) of BB rows of the batch, so that W, which stays, is what
the tensor cores keep, and 8 or 16 rows fill them.  ``forward_block`` and ``backward_block`` hold W for
all of time, in registers or shared memory as the compiler has it: its rows and columns 0 to N - 1 and,
if ``REST``, the REST that follow, because a tile's sides are powers of two.
"""

import triton
import triton.language as tl

from projunn_kernels.language.tensor_cores import for_tensor_cores
from projunn_kernels.language.tiles import load_tile, store_range
from projunn_kernels.time_loop.kernels.activation import MODRELU, activate, activation_gradient
from projunn_kernels.time_loop.kernels.rows import load_bias, reset_to_zero


@triton.jit
def _columns(first, rows, n, BB: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr):
    """Where units first.. of the first BB of ``rows`` rows are, and which exist: (BB, WIDTH N).

    ``rows`` may be a number for each row, of which those that it counts exist.
    """
    row, at = tl.arange(0, BB), first * WIDTH + tl.arange(0, N * WIDTH)
    inside = (row < rows)[:, None] & (at < n * WIDTH)[None, :]
    return row[:, None] * (n * WIDTH) + at[None, :], inside


@triton.jit
def load_columns(base, first, rows, n, BB: tl.constexpr, N: tl.constexpr, PAIRS: tl.constexpr):
    """Units first.. of the first BB of ``rows`` rows, as a tile (N, BB) in float32."""
    at, inside = _columns(first, rows, n, BB, N, 2 if PAIRS else 1)
    re = tl.load(base + at, mask=inside, other=0.0).to(tl.float32)
    if PAIRS:
        re, im = tl.split(tl.reshape(re, (BB, N, 2)))
        re, im = tl.trans(re), tl.trans(im)
    else:
        re = tl.trans(re)
        im = re
    return re, im


@triton.jit
def store_columns(base, first, rows, n, re, im, BB: tl.constexpr, N: tl.constexpr, PAIRS: tl.constexpr):
    """The inverse of `load_columns`."""
    at, inside = _columns(first, rows, n, BB, N, 2 if PAIRS else 1)
    if PAIRS:
        tl.store(base + at, tl.reshape(tl.join(tl.trans(re), tl.trans(im)), (BB, 2 * N)), mask=inside)
    else:
        tl.store(base + at, tl.trans(re), mask=inside)


@triton.jit
def load_resets(resets, BB: tl.constexpr):
    """The resets of BB rows, whether or not all of them exist: a mask would take registers."""
    return tl.load(resets + tl.arange(0, BB)) != 0


@triton.jit
def known_rows(resets, rows, BB: tl.constexpr):
    """For each of BB rows, ``rows``, or 0 if its state is reset, so that nothing of it is loaded."""
    return tl.where(load_resets(resets, BB), 0, rows)


@triton.jit
def load_operand(
    m,
    first,
    k,
    n,
    CONJUGATE: tl.constexpr,
    PAIRS: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Rows first.. and columns k.. of M (n, n), conjugated if ``CONJUGATE``: (N, K)."""
    re, im = load_tile(m, first + tl.arange(0, N), k, n, n, K, PAIRS)
    if CONJUGATE:
        im = -im
    re, im = for_tensor_cores(re, PRECISION), for_tensor_cores(im, PRECISION)
    return re.to(OPERAND), im.to(OPERAND)


@triton.jit
def add_product(re, im, mr, mi, hr, hi, PAIRS: tl.constexpr, PRECISION: tl.constexpr):
    """``Z + M H``, accumulated in float32."""
    hr = for_tensor_cores(hr, PRECISION).to(mr.dtype)
    re = tl.dot(mr, hr, re, input_precision=PRECISION)
    if PAIRS:
        hi = for_tensor_cores(hi, PRECISION).to(mr.dtype)
        im = tl.dot(mr, hi, im, input_precision=PRECISION)
        re = tl.dot(mi, -hi, re, input_precision=PRECISION)
        im = tl.dot(mi, hr, im, input_precision=PRECISION)
    else:
        im = re
    return re, im


@triton.jit
def forward_block(
    inputs,
    initial,
    m,
    bias,
    resets,
    states,
    steps,
    batch,
    n,
    F: tl.constexpr,
    PAIRS: tl.constexpr,
    BB: tl.constexpr,
    N: tl.constexpr,
    REST: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``h_t = f(x_t + M h_{t-1})``, of columns h, with M = W; h_{t-1} is zero in it at a reset."""
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    rows = batch - tl.program_id(0) * BB
    start = tl.program_id(0).to(tl.int64) * BB * n * WIDTH
    stride = tl.cast(batch, tl.int64) * n * WIDTH
    inputs += start
    states += start
    ar, ai = load_operand(m, 0, 0, n, False, PAIRS, N, N, OPERAND, PRECISION)
    offset = load_bias(bias, tl.arange(0, N), n, F)[:, None]
    known = rows
    if resets is not None:
        every = tl.cdiv(batch, BB) * BB
        resets += tl.program_id(0) * BB
        known = known_rows(resets, rows, BB)
    hr, hi = load_columns(initial + start, 0, known, n, BB, N, PAIRS)
    zr, zi = load_columns(inputs, 0, rows, n, BB, N, PAIRS)
    if REST:
        br, bi = load_operand(m, 0, N, n, False, PAIRS, N, REST, OPERAND, PRECISION)
        cr, ci = load_operand(m, N, 0, n, False, PAIRS, REST, N, OPERAND, PRECISION)
        dr, di = load_operand(m, N, N, n, False, PAIRS, REST, REST, OPERAND, PRECISION)
        more_offset = load_bias(bias, N + tl.arange(0, REST), n, F)[:, None]
        gr, gi = load_columns(initial + start, N, known, n, BB, REST, PAIRS)
        yr, yi = load_columns(inputs, N, rows, n, BB, REST, PAIRS)
    for t in range(steps):
        # The inputs of the next step arrive while this one's product is made.
        inputs += stride
        there = tl.where(t + 1 < steps, rows, 0)
        next_zr, next_zi = load_columns(inputs, 0, there, n, BB, N, PAIRS)
        if resets is not None:
            resets += tl.where(t + 1 < steps, every, 0)
            reset = load_resets(resets, BB)[None, :]
        if REST:
            next_yr, next_yi = load_columns(inputs, N, there, n, BB, REST, PAIRS)
            yr, yi = add_product(yr, yi, cr, ci, hr, hi, PAIRS, PRECISION)
            yr, yi = add_product(yr, yi, dr, di, gr, gi, PAIRS, PRECISION)
            zr, zi = add_product(zr, zi, br, bi, gr, gi, PAIRS, PRECISION)
            gr, gi = activate(yr, yi, more_offset, F, PAIRS)
            store_columns(states, N, rows, n, gr, gi, BB, REST, PAIRS)
            if resets is not None:
                gr, gi = reset_to_zero(gr, gi, reset, PAIRS)
            yr, yi = next_yr, next_yi
        zr, zi = add_product(zr, zi, ar, ai, hr, hi, PAIRS, PRECISION)
        hr, hi = activate(zr, zi, offset, F, PAIRS)
        store_columns(states, 0, rows, n, hr, hi, BB, N, PAIRS)
        if resets is not None:
            hr, hi = reset_to_zero(hr, hi, reset, PAIRS)
        states += stride
        zr, zi = next_zr, next_zi


@triton.jit
def backward_block(
    grad,
    states,
    m,
    bias,
    resets,
    grad_inputs,
    grad_initial,
    partial,
    steps,
    batch,
    n,
    F: tl.constexpr,
    PAIRS: tl.constexpr,
    BB: tl.constexpr,
    N: tl.constexpr,
    REST: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``d_t = f'(h_t) (g_t + conj(M) d_{t+1})``, of columns d, and ``conj(M) d_1``, with M = W^T.

    At a reset before step t + 1 there is zero in the place of conj(M) d_{t+1}.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    rows = batch - tl.program_id(0) * BB
    start = tl.program_id(0).to(tl.int64) * BB * n * WIDTH
    stride = tl.cast(batch, tl.int64) * n * WIDTH
    last = start + (steps - 1) * stride
    grad += last
    states += last
    grad_inputs += last
    grad_initial += start
    partial += tl.program_id(0).to(tl.int64) * n
    ar, ai = load_operand(m, 0, 0, n, True, PAIRS, N, N, OPERAND, PRECISION)
    offset = load_bias(bias, tl.arange(0, N), n, F)[:, None]
    dr = tl.zeros((N, BB), tl.float32)
    di = tl.zeros((N, BB), tl.float32)
    total = tl.zeros((N, BB), tl.float32)
    zr, zi = load_columns(grad, 0, rows, n, BB, N, PAIRS)
    hr, hi = load_columns(states, 0, rows, n, BB, N, PAIRS)
    if REST:
        br, bi = load_operand(m, 0, N, n, True, PAIRS, N, REST, OPERAND, PRECISION)
        cr, ci = load_operand(m, N, 0, n, True, PAIRS, REST, N, OPERAND, PRECISION)
        er, ei = load_operand(m, N, N, n, True, PAIRS, REST, REST, OPERAND, PRECISION)
        more_offset = load_bias(bias, N + tl.arange(0, REST), n, F)[:, None]
        fr = tl.zeros((REST, BB), tl.float32)
        fi = tl.zeros((REST, BB), tl.float32)
        more_total = tl.zeros((REST, BB), tl.float32)
        yr, yi = load_columns(grad, N, rows, n, BB, REST, PAIRS)
        gr, gi = load_columns(states, N, rows, n, BB, REST, PAIRS)
    if resets is not None:
        every = tl.cdiv(batch, BB) * BB
        resets += (steps - 1) * tl.cast(every, tl.int64) + tl.program_id(0) * BB
    # The last turn, with g = 0 and h = 0, has the gradient of h_0.  With a product after the loop the
    # compiler kept W in registers, and spilled 2 KB.
    for t in range(steps + 1):
        grad -= stride
        states -= stride
        there = tl.where(t + 1 < steps, rows, 0)
        target = tl.where(t < steps, grad_inputs, grad_initial)
        next_zr, next_zi = load_columns(grad, 0, there, n, BB, N, PAIRS)
        next_hr, next_hi = load_columns(states, 0, there, n, BB, N, PAIRS)
        if resets is not None:
            reset = load_resets(resets, BB)[None, :]
            resets -= tl.where(t + 1 < steps, every, 0)
        if REST:
            next_yr, next_yi = load_columns(grad, N, there, n, BB, REST, PAIRS)
            next_gr, next_gi = load_columns(states, N, there, n, BB, REST, PAIRS)
            yr, yi = add_product(yr, yi, cr, ci, dr, di, PAIRS, PRECISION)
            yr, yi = add_product(yr, yi, er, ei, fr, fi, PAIRS, PRECISION)
            zr, zi = add_product(zr, zi, br, bi, fr, fi, PAIRS, PRECISION)
            fr, fi, along = activation_gradient(yr, yi, gr, gi, more_offset, F, PAIRS)
            fr, fi = tl.where(t < steps, fr, yr), tl.where(t < steps, fi, yi)
            more_total += along
            store_columns(target, N, rows, n, fr, fi, BB, REST, PAIRS)
            if resets is not None:
                fr, fi = reset_to_zero(fr, fi, reset, PAIRS)
            yr, yi = next_yr, next_yi
            gr, gi = next_gr, next_gi
        zr, zi = add_product(zr, zi, ar, ai, dr, di, PAIRS, PRECISION)
        dr, di, along = activation_gradient(zr, zi, hr, hi, offset, F, PAIRS)
        dr, di = tl.where(t < steps, dr, zr), tl.where(t < steps, di, zi)
        total += along
        store_columns(target, 0, rows, n, dr, di, BB, N, PAIRS)
        if resets is not None:
            dr, di = reset_to_zero(dr, di, reset, PAIRS)
        grad_inputs -= stride
        zr, zi = next_zr, next_zi
        hr, hi = next_hr, next_hi
    if F == MODRELU:
        total = tl.sum(total, axis=1)
        store_range(partial, 0, n, total, total, N, False)
        if REST:
            more_total = tl.sum(more_total, axis=1)
            store_range(partial, N, n, more_total, more_total, REST, False)
