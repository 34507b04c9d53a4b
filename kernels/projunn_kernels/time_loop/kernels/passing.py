"""The time loop of one row of the batch, for a real W of which a multiprocessor holds a part.

As `rows`, with M in four blocks

    A B     N rows
    C D     REST rows

A and the even rows of B are in registers for all of time.  The rest is loaded again in each time step.
It is small enough to stay in the cache of the multiprocessor, and its loads do not wait for the state.
Every other row of a block is loaded and multiplied before the others: with all of them there were not
enough registers.

M is padded by zeros to (N + REST, N + REST), so that the addresses of a thread's numbers differ by
constants, which takes no registers, and no load has a mask.
"""

import triton
import triton.language as tl

from projunn_kernels.language.tiles import load_range, store_range
from projunn_kernels.time_loop.kernels.activation import MODRELU, activate, activation_gradient
from projunn_kernels.time_loop.kernels.rows import (
    in_eighths,
    load_bias,
    load_resets,
    reset_to_zero,
    sum_both,
)


@triton.jit
def _rows(m, k, u, EVERY: tl.constexpr, SIDE: tl.constexpr, K: tl.constexpr, U: tl.constexpr):
    """Rows k, k + EVERY.., K of them, and columns u.. of M."""
    rows, columns = k + EVERY * tl.arange(0, K), u + tl.arange(0, U)
    return tl.load(m + rows[:, None] * SIDE + columns[None, :], eviction_policy="evict_last")


@triton.jit
def _even_and_odd(h):
    return tl.split(tl.reshape(h, (h.shape[0] // 2, 2)))


@triton.jit
def _product(h, rows):
    """``h M``, as sums of every eighth term; the rows of M are loaded before threads exchange h."""
    return in_eighths(h[:, None] * rows)


@triton.jit
def _passing(sums, h, m, k, u, SIDE: tl.constexpr, K: tl.constexpr, U: tl.constexpr):
    """``sums`` and the `_product` with K rows k.. and columns u.. of M."""
    even, odd = _even_and_odd(h)
    sums += _product(even, _rows(m, k, u, 2, SIDE, K // 2, U))
    return sums + _product(odd, _rows(m, k + 1, u, 2, SIDE, K // 2, U))


@triton.jit
def _both_products(h, g, m, a, b, N: tl.constexpr, REST: tl.constexpr):
    """``(h, g) M`` of columns 0 to N - 1, and of the other columns."""
    SIDE: tl.constexpr = N + REST
    even, odd = _even_and_odd(h)
    y = _product(even, b)
    y += _product(odd, _rows(m, 1, N, 2, SIDE, N // 2, REST))
    y = _passing(y, g, m, N, N, SIDE, REST, REST)
    z = _product(h, a)
    z = _passing(z, g, m, N, 0, SIDE, REST, N)
    if N == REST:
        z, y = sum_both(z, y)
    else:
        z, y = tl.sum(z, axis=0), tl.sum(y, axis=0)
    return z, y


@triton.jit
def forward_passing(
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
    N: tl.constexpr,
    REST: tl.constexpr,
):
    """``h_t = f(x_t + h_{t-1} M)`` with M = W^T; h_{t-1} is zero in it at a reset."""
    at = tl.program_id(0).to(tl.int64) * n  # one offset for all, which takes fewer registers
    known = n
    if resets is not None:  # those of the next step are loaded a step ahead
        resets += tl.program_id(0)
        known = tl.where(load_resets(resets, True), 0, n)
    a, b = _rows(m, 0, 0, 1, N + REST, N, N), _rows(m, 0, N, 2, N + REST, N // 2, REST)
    offset, more_offset = load_bias(bias, 0, n, F, N), load_bias(bias, N, n, F, REST)
    h, _ = load_range(initial + at, 0, known, N, False)
    g, _ = load_range(initial + at, N, known, REST, False)
    for t in range(steps):
        x, _ = load_range(inputs + at, 0, N, N, False)
        more_x, _ = load_range(inputs + at, N, n, REST, False)
        if resets is not None:
            resets += batch
            reset = load_resets(resets, t + 1 < steps)
        z, y = _both_products(h, g, m, a, b, N, REST)
        h, _ = activate(x + z, z, offset, F, False)
        g, _ = activate(more_x + y, y, more_offset, F, False)
        store_range(states + at, 0, N, h, h, N, False)
        store_range(states + at, N, n, g, g, REST, False)
        if resets is not None:
            h, _ = reset_to_zero(h, h, reset, False)
            g, _ = reset_to_zero(g, g, reset, False)
        at += tl.cast(batch, tl.int64) * n


@triton.jit
def backward_passing(
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
    N: tl.constexpr,
    REST: tl.constexpr,
):
    """``d_t = f'(h_t) (g_t + d_{t+1} M)`` with M = W, and ``d_1 M``.

    At a reset before step t + 1 there is zero in the place of d_{t+1} M.
    """
    start = tl.program_id(0).to(tl.int64) * n
    stride = tl.cast(batch, tl.int64) * n
    at = start + (steps - 1) * stride
    if resets is not None:
        resets += (steps - 1) * tl.cast(batch, tl.int64) + tl.program_id(0)
    a, b = _rows(m, 0, 0, 1, N + REST, N, N), _rows(m, 0, N, 2, N + REST, N // 2, REST)
    offset, more_offset = load_bias(bias, 0, n, F, N), load_bias(bias, N, n, F, REST)
    d, e = tl.zeros((N,), tl.float32), tl.zeros((REST,), tl.float32)
    total, more_total = tl.zeros((N,), tl.float32), tl.zeros((REST,), tl.float32)
    # The last turn, with g = 0, has the gradient of h_0.
    for t in range(steps + 1):
        there = tl.where(t < steps, n, 0)
        target = tl.where(t < steps, grad_inputs + at, grad_initial + start)
        g, _ = load_range(grad + at, 0, there, N, False)
        more_g, _ = load_range(grad + at, N, there, REST, False)
        h, _ = load_range(states + at, 0, there, N, False)
        more_h, _ = load_range(states + at, N, there, REST, False)
        if resets is not None:
            reset = load_resets(resets, t < steps)
            resets -= batch
        z, y = _both_products(d, e, m, a, b, N, REST)
        z, y = g + z, more_g + y
        d, _, along = activation_gradient(z, z, h, h, offset, F, False)
        e, _, more_along = activation_gradient(y, y, more_h, more_h, more_offset, F, False)
        d, e = tl.where(t < steps, d, z), tl.where(t < steps, e, y)
        total += along
        more_total += more_along
        store_range(target, 0, N, d, d, N, False)
        store_range(target, N, n, e, e, REST, False)
        if resets is not None:
            d, _ = reset_to_zero(d, d, reset, False)
            e, _ = reset_to_zero(e, e, reset, False)
        at -= stride
    if F == MODRELU:
        store_range(partial + start, 0, n, total, total, N, False)
        store_range(partial + start, N, n, more_total, more_total, REST, False)
