"""The time loop of one row of the batch: W in registers, a product of matrix and vector a time step.

A program has one row, so that a batch of 128 fills 128 multiprocessors, and the products are exact in
float32.  W is held as its rows and columns 0 to N - 1 and, if ``REST``, the REST that follow, because a
tile's sides are powers of two.  The index of the sum runs over registers and warps, the other one over
the threads of a warp, so that threads exchange only a few partial sums.
"""

import triton
import triton.language as tl

from projunn_kernels.language.tiles import (
    load_floats,
    load_range,
    load_stored,
    parts,
    store_range,
)
from projunn_kernels.time_loop.kernels.activation import MODRELU, activate, activation_gradient


@triton.jit
def load_bias(bias, units, n, F: tl.constexpr):
    """b of modReLU; zeros for any other f."""
    if F == MODRELU:
        offset = tl.load(bias + units, mask=units < n, other=0.0).to(tl.float32)
    else:
        offset = tl.zeros(units.shape, tl.float32)
    return offset


@triton.jit
def load_resets(resets, there):
    """True for the rows, of those that are ``there``, whose state is to become zero."""
    return tl.load(resets, mask=there, other=0) != 0


@triton.jit
def reset_to_zero(re, im, reset, PAIRS: tl.constexpr):
    """Zero, whatever the number was, where ``reset`` is True."""
    re = tl.where(reset, 0.0, re)
    im = tl.where(reset, 0.0, im) if PAIRS else re
    return re, im


@triton.jit
def _block(m, k, u, n, PAIRS: tl.constexpr, K: tl.constexpr, U: tl.constexpr):
    """Rows k.. and columns u.. of M (n, n), pairs side by side as in memory."""
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    n = tl.maximum(
        n, 1
    )  # no multiple of 16 for the compiler, which would give threads 4 neighbours each
    return load_floats(m, k + tl.arange(0, K), WIDTH * u, n, WIDTH * n, WIDTH * U)


@triton.jit
def halves(rows):
    """The first and the second half of the rows, which a thread has both of."""
    return tl.split(tl.permute(tl.reshape(rows, (2, rows.shape[0] // 2, rows.shape[1])), (1, 2, 0)))


@triton.jit
def add_products(sums, h, m):
    """``sums`` (8, U) of every eighth term of ``h M``, for a column h (K, 1) and M (K, U).

    Added one after the other, so that one instruction multiplies and adds: Triton adds up in pairs.
    """
    if m.shape[0] == sums.shape[0]:
        sums = tl.fma(tl.broadcast_to(h, m.shape), m, sums)
    else:
        h, second_h = halves(h)
        m, second_m = halves(m)
        sums = add_products(sums, h, m)
        sums = add_products(sums, second_h, second_m)
    return sums


@triton.jit
def _plus(a, b, c, d):
    return a + c, b + d


@triton.jit
def sum_both(x, y):
    """The sums over the rows of two tiles, with one exchange among warps."""
    return tl.reduce((x, y), 0, _plus)


@triton.jit
def packed(x, y):
    """Two numbers as one of 64 bits, so that threads exchange both at once."""
    high = y.to(tl.int32, bitcast=True).to(tl.int64) << 32
    return high | x.to(tl.uint32, bitcast=True).to(tl.int64)


@triton.jit
def unpacked(both):
    """The inverse of `packed`."""
    x = both.to(tl.int32).to(tl.float32, bitcast=True)
    return x, (both >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _add_both_products(re, im, hr, hi, m, PAIRS: tl.constexpr):
    """`add_products` of the real and of the imaginary part of a row h, each with the floats of M."""
    if PAIRS:
        hr, hi = unpacked(packed(hr, hi)[:, None])
        re, im = add_products(re, hr, m), add_products(im, hi, m)
    else:
        re = add_products(re, hr[:, None], m)
    return re, im


@triton.jit
def _pairs(floats):
    return tl.split(tl.reshape(floats, (floats.shape[0], floats.shape[1] // 2, 2)))


@triton.jit
def as_complex(re, im, CONJUGATE: tl.constexpr):
    """``h M`` or ``h conj(M)`` from what the real and the imaginary part of h make with M's floats."""
    rr, ri = _pairs(re)
    ir, ii = _pairs(im)
    if CONJUGATE:
        re, im = rr + ii, ir - ri
    else:
        re, im = rr - ii, ir + ri
    return re, im


@triton.jit
def _total(re, im, CONJUGATE: tl.constexpr, PAIRS: tl.constexpr):
    """The product's real and imaginary part, from `_add_both_products`."""
    if PAIRS:
        re, im = sum_both(*as_complex(re, im, CONJUGATE))
    else:
        re = tl.sum(re, axis=0)
        im = re
    return re, im


@triton.jit
def _product(hr, hi, m, CONJUGATE: tl.constexpr, PAIRS: tl.constexpr):
    """``h M`` or ``h conj(M)`` for a row h."""
    zero = tl.zeros((8, m.shape[1]), tl.float32)
    re, im = _add_both_products(zero, zero, hr, hi, m, PAIRS)
    return _total(re, im, CONJUGATE, PAIRS)


@triton.jit
def _both_products(hr, hi, m, gr, gi, l, CONJUGATE: tl.constexpr, PAIRS: tl.constexpr):
    """``h M + g L``, or of the conjugates, with one exchange among threads for the two products."""
    zero = tl.zeros((8, m.shape[1]), tl.float32)
    re, im = _add_both_products(zero, zero, hr, hi, m, PAIRS)
    re, im = _add_both_products(re, im, gr, gi, l, PAIRS)
    return _total(re, im, CONJUGATE, PAIRS)


@triton.jit
def forward_row(
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
    N: tl.constexpr,
    REST: tl.constexpr,
):
    """``h_t = f(x_t + h_{t-1} M)`` with M = W^T; h_{t-1} is zero in it at a reset."""
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    FAR: tl.constexpr = not REST and N * WIDTH <= 128
    start = tl.program_id(0).to(tl.int64) * n * WIDTH
    stride = tl.cast(batch, tl.int64) * n * WIDTH
    inputs += start
    states += start
    a = _block(m, 0, 0, n, PAIRS, N, N)
    offset = load_bias(bias, tl.arange(0, N), n, F)
    known = n
    if resets is not None:  # those of the next step are loaded a step ahead
        resets += tl.program_id(0)
        known = tl.where(load_resets(resets, True), 0, n)
        resets += batch
        reset = load_resets(resets, steps > 1)
    hr, hi = load_range(initial + start, 0, known, N, PAIRS)
    x = load_stored(inputs, 0, n, N, PAIRS)
    if FAR:  # a step is shorter than the way from memory: its inputs are loaded two steps ahead
        inputs += stride
        next_x = load_stored(inputs, 0, tl.where(steps > 1, n, 0), N, PAIRS)
    if REST:
        b = _block(m, 0, N, n, PAIRS, N, REST)
        c = _block(m, N, 0, n, PAIRS, REST, N)
        d = _block(m, N, N, n, PAIRS, REST, REST)
        more_offset = load_bias(bias, N + tl.arange(0, REST), n, F)
        gr, gi = load_range(initial + start, N, known, REST, PAIRS)
        more_x = load_stored(inputs, N, n, REST, PAIRS)
    for t in range(steps):
        # The inputs of the next step arrive while this one's product is made.
        inputs += stride
        there = tl.where(t + (2 if FAR else 1) < steps, n, 0)
        last_x = load_stored(inputs, 0, there, N, PAIRS)
        if resets is not None:
            resets += batch
            next_reset = load_resets(resets, t + 2 < steps)
        if REST:
            next_more_x = load_stored(inputs, N, there, REST, PAIRS)
            yr, yi = _both_products(hr, hi, b, gr, gi, d, False, PAIRS)
            zr, zi = _both_products(hr, hi, a, gr, gi, c, False, PAIRS)
            xr, xi = parts(more_x, PAIRS)
            gr, gi = activate(xr + yr, xi + yi, more_offset, F, PAIRS)
            store_range(states, N, n, gr, gi, REST, PAIRS)
            if resets is not None:
                gr, gi = reset_to_zero(gr, gi, reset, PAIRS)
            more_x = next_more_x
        else:
            zr, zi = _product(hr, hi, a, False, PAIRS)
        xr, xi = parts(x, PAIRS)
        hr, hi = activate(xr + zr, xi + zi, offset, F, PAIRS)
        store_range(states, 0, n, hr, hi, N, PAIRS)
        states += stride
        if resets is not None:
            hr, hi = reset_to_zero(hr, hi, reset, PAIRS)
            reset = next_reset
        if FAR:
            x, next_x = next_x, last_x
        else:
            x = last_x


@triton.jit
def backward_row(
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
    N: tl.constexpr,
    REST: tl.constexpr,
):
    """``d_t = f'(h_t) (g_t + d_{t+1} conj(M))`` with M = W, and ``d_1 conj(M)``.

    At a reset before step t + 1 there is zero in the place of d_{t+1} conj(M).
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    FAR: tl.constexpr = not REST and N * WIDTH <= 128
    start = tl.program_id(0).to(tl.int64) * n * WIDTH
    stride = tl.cast(batch, tl.int64) * n * WIDTH
    last = start + (steps - 1) * stride
    grad += last
    states += last
    grad_inputs += last
    grad_initial += start
    partial += tl.program_id(0).to(tl.int64) * n
    a = _block(m, 0, 0, n, PAIRS, N, N)
    offset = load_bias(bias, tl.arange(0, N), n, F)
    dr = tl.zeros((N,), tl.float32)
    di = tl.zeros((N,), tl.float32)
    total = tl.zeros((N,), tl.float32)
    g = load_stored(grad, 0, n, N, PAIRS)
    h = load_stored(states, 0, n, N, PAIRS)
    if FAR:
        grad -= stride
        states -= stride
        there = tl.where(steps > 1, n, 0)
        next_g = load_stored(grad, 0, there, N, PAIRS)
        next_h = load_stored(states, 0, there, N, PAIRS)
    if resets is not None:
        resets += (steps - 1) * tl.cast(batch, tl.int64) + tl.program_id(0)
        reset = load_resets(resets, True)
    if REST:
        b = _block(m, 0, N, n, PAIRS, N, REST)
        c = _block(m, N, 0, n, PAIRS, REST, N)
        e = _block(m, N, N, n, PAIRS, REST, REST)
        more_offset = load_bias(bias, N + tl.arange(0, REST), n, F)
        fr = tl.zeros((REST,), tl.float32)
        fi = tl.zeros((REST,), tl.float32)
        more_total = tl.zeros((REST,), tl.float32)
        more_g = load_stored(grad, N, n, REST, PAIRS)
        more_h = load_stored(states, N, n, REST, PAIRS)
    # The last turn, with g = 0 and h = 0, has the gradient of h_0.  A product after the loop took
    # registers that were not there.
    for t in range(steps + 1):
        grad -= stride
        states -= stride
        target = tl.where(t < steps, grad_inputs, grad_initial)
        there = tl.where(t + (2 if FAR else 1) < steps, n, 0)
        last_g = load_stored(grad, 0, there, N, PAIRS)
        last_h = load_stored(states, 0, there, N, PAIRS)
        if resets is not None:
            resets -= batch
            next_reset = load_resets(resets, t + 1 < steps)
        if REST:
            next_more_g = load_stored(grad, N, there, REST, PAIRS)
            next_more_h = load_stored(states, N, there, REST, PAIRS)
            zr, zi = _both_products(dr, di, a, fr, fi, c, True, PAIRS)
            yr, yi = _both_products(dr, di, b, fr, fi, e, True, PAIRS)
            gr, gi = parts(more_g, PAIRS)
            hr, hi = parts(more_h, PAIRS)
            yr, yi = gr + yr, gi + yi
            fr, fi, along = activation_gradient(yr, yi, hr, hi, more_offset, F, PAIRS)
            fr, fi = tl.where(t < steps, fr, yr), tl.where(t < steps, fi, yi)
            more_total += along
            store_range(target, N, n, fr, fi, REST, PAIRS)
            if resets is not None:
                fr, fi = reset_to_zero(fr, fi, reset, PAIRS)
            more_g, more_h = next_more_g, next_more_h
        else:
            zr, zi = _product(dr, di, a, True, PAIRS)
        gr, gi = parts(g, PAIRS)
        hr, hi = parts(h, PAIRS)
        zr, zi = gr + zr, gi + zi
        dr, di, along = activation_gradient(zr, zi, hr, hi, offset, F, PAIRS)
        dr, di = tl.where(t < steps, dr, zr), tl.where(t < steps, di, zi)
        total += along
        store_range(target, 0, n, dr, di, N, PAIRS)
        grad_inputs -= stride
        if resets is not None:
            dr, di = reset_to_zero(dr, di, reset, PAIRS)
            reset = next_reset
        if FAR:
            g, next_g = next_g, last_g
            h, next_h = next_h, last_h
        else:
            g, h = last_g, last_h
    if F == MODRELU:
        store_range(partial, 0, n, total, total, N, False)
        if REST:
            store_range(partial, N, n, more_total, more_total, REST, False)
