"""The time loop of one row of the batch, for a W of which a multiprocessor holds a part.

As `rows`, with M in blocks of N by N numbers, padded by zeros:

    real      A B        complex    A . .      . is a block that passes
              . .                   . B .
                                    . . C

A, B and C are in registers for all of time, of the last of them only one half of the rows.  The rest is
loaded again in each time step.  It is small enough to stay in the cache of the multiprocessor, and its
loads do not wait for the state.  The rows of M have a length that the compiler knows, so that the
addresses of a thread's numbers differ by constants, which takes no registers, and no load has a mask.

The state is one vector, in which units of the parts alternate: unit 0, N, 1, N + 1... if it is real, and
0, 2 N, N, none, 1, 2 N + 1... if it is complex, with N places that no unit has.
"""

import triton
import triton.language as tl

from projunn_kernels.language.tiles import load_column, store_column
from projunn_kernels.time_loop.kernels.activation import MODRELU, activate, activation_gradient
from projunn_kernels.time_loop.kernels.rows import (
    add_products,
    as_complex,
    halves,
    load_bias,
    load_resets,
    packed,
    reset_to_zero,
    sum_both,
    unpacked,
)


@triton.jit
def _units(N: tl.constexpr, PAIRS: tl.constexpr):
    """The unit of each number of the state."""
    if PAIRS:
        at = tl.arange(0, 4 * N)
        units = at // 4 + N * (at // 2 % 2) + 2 * N * (at % 2)
    else:
        at = tl.arange(0, 2 * N)
        units = at // 2 + N * (at % 2)
    return units


@triton.jit
def _side_by_side(f, g, h, PAIRS: tl.constexpr):
    """The numbers of two or three parts, as `_units` has them."""
    if PAIRS:
        parts = tl.join(tl.join(f, g), tl.join(h, h))
        parts = tl.reshape(parts, (4 * f.shape[0],))
    else:
        parts = tl.reshape(tl.join(f, g), (2 * f.shape[0],))
    return parts


@triton.jit
def _apart(state, N: tl.constexpr, PAIRS: tl.constexpr):
    """The inverse of `_side_by_side`."""
    if PAIRS:
        first, second = tl.split(tl.reshape(state, (N, 2, 2)))
        f, g = tl.split(first)
        h, _ = tl.split(second)
    else:
        f, g = tl.split(tl.reshape(state, (N, 2)))
        h = g
    return f, g, h


@triton.jit
def _rows(m, k, u, N: tl.constexpr, K: tl.constexpr, PAIRS: tl.constexpr):
    """K rows from k, and the columns of N units from u."""
    SIDE: tl.constexpr = 6 * N if PAIRS else 2 * N
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    rows, columns = k + tl.arange(0, K), WIDTH * u + tl.arange(0, WIDTH * N)
    return tl.load(m + rows[:, None] * SIDE + columns[None, :], eviction_policy="evict_last")


@triton.jit
def _held(m, N: tl.constexpr, PAIRS: tl.constexpr):
    """A, B and C, or A and B twice."""
    a = _rows(m, 0, 0, N, N, PAIRS)
    if PAIRS:
        b, c = _rows(m, N, N, N, N, True), _rows(m, 2 * N, 2 * N, N, N // 2, True)
    else:
        b = _rows(m, 0, N, N, N // 2, False)
        c = b
    return a, b, c


@triton.jit
def _real_product(state, m, a, b, N: tl.constexpr):
    """``h M``.  Half of the rows are loaded before the others: there are no registers for all."""
    HALF: tl.constexpr = N // 2
    f, g, _ = _apart(state, N, False)
    f, g = f[:, None], g[:, None]
    f_first, f_second = halves(f)
    g_first, g_second = halves(g)
    zero = tl.zeros((8, N), tl.float32)
    y = add_products(zero, f_first, b)
    y = add_products(y, f_second, _rows(m, HALF, N, N, HALF, False))
    y = add_products(y, g_first, _rows(m, N, N, N, HALF, False))
    y = add_products(y, g_second, _rows(m, N + HALF, N, N, HALF, False))
    x = add_products(zero, f, a)
    x = add_products(x, g_first, _rows(m, N, 0, N, HALF, False))
    x = add_products(x, g_second, _rows(m, N + HALF, 0, N, HALF, False))
    x, y = sum_both(x, y)
    return _side_by_side(x, y, y, False)


@triton.jit
def _add(re, im, hr, hi, m):
    """`add_products` of the real and of the imaginary part of a column h, each with the floats of M."""
    return add_products(re, hr, m), add_products(im, hi, m)


@triton.jit
def _plus(a, b, c, d, e, f, u, v, w, x, y, z):
    return a + u, b + v, c + w, d + x, e + y, f + z


@triton.jit
def _complex_product(re, im, m, a, b, c, CONJUGATE: tl.constexpr, N: tl.constexpr):
    """``h M`` or ``h conj(M)``."""
    f, g, h = _apart(packed(re, im), N, True)
    fr, fi = unpacked(f[:, None])
    gr, gi = unpacked(g[:, None])
    hr, hi = unpacked(h[:, None])
    zero = tl.zeros((8, 2 * N), tl.float32)
    xr, xi = _add(zero, zero, fr, fi, a)
    yr, yi = _add(zero, zero, fr, fi, _rows(m, 0, N, N, N, True))
    zr, zi = _add(zero, zero, fr, fi, _rows(m, 0, 2 * N, N, N, True))
    xr, xi = _add(xr, xi, gr, gi, _rows(m, N, 0, N, N, True))
    zr, zi = _add(zr, zi, gr, gi, _rows(m, N, 2 * N, N, N, True))
    yr, yi = _add(yr, yi, gr, gi, b)
    xr, xi = _add(xr, xi, hr, hi, _rows(m, 2 * N, 0, N, N, True))
    yr, yi = _add(yr, yi, hr, hi, _rows(m, 2 * N, N, N, N, True))
    hr, hr_second = halves(hr)
    hi, hi_second = halves(hi)
    last = _rows(m, 2 * N + N // 2, 2 * N, N, N // 2, True)
    zr, zi = _add(zr, zi, hr_second, hi_second, last)
    zr, zi = _add(zr, zi, hr, hi, c)
    xr, xi = as_complex(xr, xi, CONJUGATE)
    yr, yi = as_complex(yr, yi, CONJUGATE)
    zr, zi = as_complex(zr, zi, CONJUGATE)
    xr, xi, yr, yi, zr, zi = tl.reduce((xr, xi, yr, yi, zr, zi), 0, _plus)
    return unpacked(_side_by_side(packed(xr, xi), packed(yr, yi), packed(zr, zi), True))


@triton.jit
def _product(re, im, m, a, b, c, CONJUGATE: tl.constexpr, N: tl.constexpr, PAIRS: tl.constexpr):
    if PAIRS:
        re, im = _complex_product(re, im, m, a, b, c, CONJUGATE, N)
    else:
        re = _real_product(re, m, a, b, N)
        im = re
    return re, im


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
    PAIRS: tl.constexpr,
    N: tl.constexpr,
):
    """``h_t = f(x_t + h_{t-1} M)`` with M = W^T; h_{t-1} is zero in it at a reset."""
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    units = _units(N, PAIRS)
    there = units < n
    at = tl.program_id(0).to(tl.int64) * n * WIDTH
    known = there
    if resets is not None:  # those of the next step are loaded a step ahead
        resets += tl.program_id(0)
        known = there & ~load_resets(resets, True)
    a, b, c = _held(m, N, PAIRS)
    offset = load_bias(bias, units, n, F)
    hr, hi = load_column(initial + at, units, known, PAIRS)
    for t in range(steps):
        xr, xi = load_column(inputs + at, units, there, PAIRS)
        if resets is not None:
            resets += batch
            reset = load_resets(resets, t + 1 < steps)
        zr, zi = _product(hr, hi, m, a, b, c, False, N, PAIRS)
        hr, hi = activate(xr + zr, xi + zi, offset, F, PAIRS)
        store_column(states + at, units, there, hr, hi, PAIRS)
        if resets is not None:
            hr, hi = reset_to_zero(hr, hi, reset, PAIRS)
        at += tl.cast(batch, tl.int64) * n * WIDTH


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
    PAIRS: tl.constexpr,
    N: tl.constexpr,
):
    """``d_t = f'(h_t) (g_t + d_{t+1} conj(M))`` with M = W, and ``d_1 conj(M)``.

    At a reset before step t + 1 there is zero in the place of d_{t+1} conj(M).
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    units = _units(N, PAIRS)
    start = tl.program_id(0).to(tl.int64) * n * WIDTH
    stride = tl.cast(batch, tl.int64) * n * WIDTH
    at = start + (steps - 1) * stride
    if resets is not None:
        resets += (steps - 1) * tl.cast(batch, tl.int64) + tl.program_id(0)
    a, b, c = _held(m, N, PAIRS)
    offset = load_bias(bias, units, n, F)
    dr, total = tl.zeros(units.shape, tl.float32), tl.zeros(units.shape, tl.float32)
    di = dr
    # The last turn, with g = 0, has the gradient of h_0.
    for t in range(steps + 1):
        there = tl.where(t < steps, n, 0)
        target = tl.where(t < steps, grad_inputs + at, grad_initial + start)
        gr, gi = load_column(grad + at, units, units < there, PAIRS)
        hr, hi = load_column(states + at, units, units < there, PAIRS)
        if resets is not None:
            reset = load_resets(resets, t < steps)
            resets -= batch
        zr, zi = _product(dr, di, m, a, b, c, True, N, PAIRS)
        zr, zi = gr + zr, gi + zi
        dr, di, along = activation_gradient(zr, zi, hr, hi, offset, F, PAIRS)
        dr, di = tl.where(t < steps, dr, zr), tl.where(t < steps, di, zi)
        total += along
        store_column(target, units, units < n, dr, di, PAIRS)
        if resets is not None:
            dr, di = reset_to_zero(dr, di, reset, PAIRS)
        at -= stride
    if F == MODRELU:
        partial += tl.program_id(0).to(tl.int64) * n
        tl.store(partial + units, total, mask=units < n)
