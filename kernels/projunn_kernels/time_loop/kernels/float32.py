"""One time step in float32's own arithmetic, for a W that no multiprocessor can hold.

Tensor cores cut off what does not fit their sums, which makes a state smaller in each of thousands of
steps.  So the products are multiply-adds, each of them rounded.  They take no more instructions than
three TF32 products of halves of numbers do.

A launch is one step.  A program has a few rows of the batch and N units, and W and the states of before
come in panels of SPLITS * K terms of the sum, some of them in flight.  Every warp has K terms of a panel
and all of the tile, so that a thread multiplies 4 x 4 numbers with two loads from shared memory.  M is
stored as M^T, and the states are stored a second time as columns (n, batch), so that the numbers of such
a load are neighbours.  Complex numbers have a plane for real parts and one for imaginary parts.  All is
padded by zeros, so that no load has a mask.  OVERLAP is as in `panels`.
"""

import triton
import triton.language as tl

from projunn_kernels.time_loop.kernels.activation import MODRELU, activate, activation_gradient
from projunn_kernels.time_loop.kernels.blocks import load_columns, load_resets, store_columns
from projunn_kernels.time_loop.kernels.panels import after_the_step_before
from projunn_kernels.time_loop.kernels.rows import load_bias, reset_to_zero


@triton.jit
def _product(
    m,
    h,
    first,
    row,
    n,
    padded,
    tall,
    PAIRS: tl.constexpr,
    BB: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Units first.. and rows row.. of ``M H``, of planes M^T (padded, padded) and H (padded, tall)."""
    k = tl.arange(0, SPLITS)[:, None] * K + tl.arange(0, K)[None, :]
    m += k[:, None, :] * padded + (first + tl.arange(0, N))[None, :, None]
    h += k[:, :, None] * tall + (row + tl.arange(0, BB))[None, None, :]
    re = tl.zeros((SPLITS, N, BB), tl.float32)
    less = tl.zeros((SPLITS, N, BB), tl.float32)
    im = tl.zeros((SPLITS, N, BB), tl.float32)
    for start in tl.range(0, n, SPLITS * K, num_stages=STAGES):
        mr = tl.load(m + start * padded)
        hr = tl.load(h + start * tall)
        re = tl.dot(mr, hr, re, input_precision="ieee")
        if PAIRS:
            mi = tl.load(m + (padded + start) * padded)
            hi = tl.load(h + (padded + start) * tall)
            less = tl.dot(mi, hi, less, input_precision="ieee")
            im = tl.dot(mr, hi, im, input_precision="ieee")
            im = tl.dot(mi, hr, im, input_precision="ieee")
    if PAIRS:
        im = tl.sum(im, axis=0)
        re = tl.sum(re - less, axis=0)
    else:
        re = tl.sum(re, axis=0)
        im = re
    return re, im


@triton.jit
def _store_plane(h, first, row, tall, numbers, BB: tl.constexpr, N: tl.constexpr):
    """Units first.. and rows row.. of H."""
    units, rows = first + tl.arange(0, N), row + tl.arange(0, BB)
    tl.store(h + units[:, None] * tall + rows[None, :], numbers)


@triton.jit
def recurrence_step_kernel(
    inputs,
    before,
    m,
    bias,
    resets,
    states,
    after,
    batch,
    n,
    padded,
    tall,
    F: tl.constexpr,
    PAIRS: tl.constexpr,
    BB: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """``h_t = f(x_t + M h_{t-1})`` of one step, M = W; h_{t-1} is zero in it at a reset of step t.

    Grid (tall / BB, padded / BN).  ``m`` (planes, padded, padded) is M^T.  ``before`` and ``after``
    (planes, padded, tall) are h_{t-1} and h_t, ``states`` (batch, n) is h_t once more.
    """
    after_the_step_before(OVERLAP)
    row, first = tl.program_id(0) * BB, tl.program_id(1) * BN
    rows, start = batch - row, row.to(tl.int64) * n * (2 if PAIRS else 1)
    xr, xi = load_columns(inputs + start, first, rows, n, BB, BN, PAIRS)
    offset = load_bias(bias, first, n, F, BN)[:, None]
    zr, zi = _product(m, before, first, row, n, padded, tall, PAIRS, BB, BN, BK, SPLITS, STAGES)
    if resets is not None:
        zr, zi = reset_to_zero(zr, zi, load_resets(resets + row, BB)[None, :], PAIRS)
    hr, hi = activate(xr + zr, xi + zi, offset, F, PAIRS)
    store_columns(states + start, first, rows, n, hr, hi, BB, BN, PAIRS)
    _store_plane(after, first, row, tall, hr, BB, BN)
    if PAIRS:
        _store_plane(after + padded * tall, first, row, tall, hi, BB, BN)


@triton.jit
def recurrence_step_backward_kernel(
    grad,
    states,
    before,
    m,
    bias,
    resets,
    grad_inputs,
    after,
    partial,
    batch,
    n,
    padded,
    tall,
    F: tl.constexpr,
    PAIRS: tl.constexpr,
    BB: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """``d_t = f'(h_t) (g_t + M d_{t+1})`` of one step, M = W^H; M d_{t+1} is zero at a reset of t + 1.

    As `recurrence_step_kernel`; ``before`` is d_{t+1}, ``after`` and ``grad_inputs`` are d_t.  The sums
    for the bias of modReLU are added to ``partial`` (tall / BB, n).
    """
    after_the_step_before(OVERLAP)
    EARLY: tl.constexpr = BB * BN < 1024  # larger tiles would not leave registers for the product
    row, first = tl.program_id(0) * BB, tl.program_id(1) * BN
    rows, start = batch - row, row.to(tl.int64) * n * (2 if PAIRS else 1)
    if EARLY:
        gr, gi = load_columns(grad + start, first, rows, n, BB, BN, PAIRS)
        hr, hi = load_columns(states + start, first, rows, n, BB, BN, PAIRS)
    zr, zi = _product(m, before, first, row, n, padded, tall, PAIRS, BB, BN, BK, SPLITS, STAGES)
    if not EARLY:
        tl.debug_barrier()  # or the compiler would load before the product
        gr, gi = load_columns(grad + start, first, rows, n, BB, BN, PAIRS)
        hr, hi = load_columns(states + start, first, rows, n, BB, BN, PAIRS)
    offset = load_bias(bias, first, n, F, BN)[:, None]
    if resets is not None:
        zr, zi = reset_to_zero(zr, zi, load_resets(resets + row, BB)[None, :], PAIRS)
    zr, zi, along = activation_gradient(gr + zr, gi + zi, hr, hi, offset, F, PAIRS)
    store_columns(grad_inputs + start, first, rows, n, zr, zi, BB, BN, PAIRS)
    _store_plane(after, first, row, tall, zr, BB, BN)
    if PAIRS:
        _store_plane(after + padded * tall, first, row, tall, zi, BB, BN)
    if F == MODRELU:
        units = first + tl.arange(0, BN)
        at = partial + tl.program_id(0).to(tl.int64) * n + units
        before_it = tl.load(at, mask=units < n, other=0.0)
        tl.store(at, before_it + tl.sum(along, axis=1), mask=units < n)
