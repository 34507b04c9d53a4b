"""One time step for a W that no multiprocessor can hold: a launch for each step.

A program has a few rows of the batch and N units, so that a step has programs for all multiprocessors.
W and the states of before come from L2 in panels of K terms of the sums, some of them in flight.  For
that both are stored once more, the states by the step before: complex numbers as a plane of real parts
and one of imaginary parts, padded by zeros, so that no load has a mask.

**On tensor cores** (SPLITS = 0) M is stored as it is and the states as rows, so that neighbours in
memory are terms of one sum.

**In float32** the products are multiply-adds, each of them rounded: tensor cores cut off what does not
fit their sums, which makes a state smaller in each of thousands of steps.  They take no more
instructions than three TF32 products of halves of numbers do.  Each of SPLITS warps has K terms of a
panel and all of the tile, so that a thread multiplies 4 x 4 numbers with two loads from shared memory.
M is stored as M^T and the states as columns, so that the numbers of such a load are neighbours.

What is added to the product is loaded EARLY, before it, where it leaves enough registers.

With OVERLAP the programs of a step are set up while those of the step before still run, and wait for
all of them to end before they read or write anything (programmatic dependent launch, from sm_90 on).
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from projunn_kernels.language.tensor_cores import for_tensor_cores
from projunn_kernels.time_loop.kernels.activation import MODRELU, activate, activation_gradient
from projunn_kernels.time_loop.kernels.blocks import load_columns, load_resets, store_columns
from projunn_kernels.time_loop.kernels.rows import load_bias, reset_to_zero


@triton.jit
def _after_the_step_before(OVERLAP: tl.constexpr):
    """Wait for the launch before this one, and let the next one be set up."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()


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
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Units first.. and rows row.. of ``M H``."""
    units, rows = first + tl.arange(0, N), row + tl.arange(0, BB)
    tall = tl.cast(tall, tl.int64)  # a state may have more than 2**31 numbers
    if SPLITS:
        k = tl.arange(0, SPLITS)[:, None] * K + tl.arange(0, K)[None, :]
        m += k[:, None, :] * padded + units[None, :, None]
        h += k[:, :, None] * tall + rows[None, None, :]
        re = tl.zeros((SPLITS, N, BB), tl.float32)
        from_m, from_h, panel = padded, tall, SPLITS * K
    else:
        k = tl.arange(0, K)
        m += units[:, None] * padded + k[None, :]
        h += rows[None, :] * padded + k[:, None]
        re = tl.zeros((N, BB), tl.float32)
        from_m, from_h, panel = 1, 1, K
    less, im = re, re
    for start in tl.range(0, n, panel, num_stages=STAGES):
        mr = tl.load(m + start * from_m)
        hr = tl.load(h + start * from_h)
        re = tl.dot(mr, hr, re, input_precision=PRECISION)
        if PAIRS:
            mi = tl.load(m + padded * padded + start * from_m)
            hi = tl.load(h + padded * tall + start * from_h)
            less = tl.dot(mi, hi, less, input_precision=PRECISION)
            im = tl.dot(mr, hi, im, input_precision=PRECISION)
            im = tl.dot(mi, hr, im, input_precision=PRECISION)
    if PAIRS:
        re -= less
    if SPLITS:
        re, im = tl.sum(re, axis=0), tl.sum(im, axis=0)
    return re, im


@triton.jit
def _store_again(
    h, first, row, padded, tall, re, im, PAIRS: tl.constexpr, BB: tl.constexpr, N: tl.constexpr,
    SPLITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Units first.. and rows row.. of H."""
    units, rows = first + tl.arange(0, N), row + tl.arange(0, BB)
    tall = tl.cast(tall, tl.int64)  # a state may have more than 2**31 numbers
    h += units[:, None] * tall + rows[None, :] if SPLITS else units[:, None] + rows[None, :] * padded
    tl.store(h, for_tensor_cores(re, PRECISION))
    if PAIRS:
        tl.store(h + padded * tall, for_tensor_cores(im, PRECISION))


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
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """``h_t = f(x_t + M h_{t-1})`` of one step, M = W; h_{t-1} is zero in it at a reset of step t.

    Grid (batch / BB, n / BN).  ``m`` has planes (padded, padded) of M, ``before`` and ``after`` such of
    h_{t-1} and h_t, (tall, padded), in float32 (padded, tall); ``states`` (batch, n) is h_t.
    """
    _after_the_step_before(OVERLAP)
    row, first = tl.program_id(0).to(tl.int64) * BB, tl.program_id(1) * BN
    rows, start = batch - row, row * n * (2 if PAIRS else 1)
    EARLY: tl.constexpr = BB * BN * (2 if PAIRS else 1) < 1024
    if EARLY:
        xr, xi = load_columns(inputs + start, first, rows, n, BB, BN, PAIRS)
    zr, zi = _product(
        m, before, first, row, n, padded, tall, PAIRS, BB, BN, BK, SPLITS, PRECISION, STAGES
    )
    if not EARLY:
        tl.debug_barrier()  # or the compiler would load before the product
        xr, xi = load_columns(inputs + start, first, rows, n, BB, BN, PAIRS)
    offset = load_bias(bias, first + tl.arange(0, BN), n, F)[:, None]
    if resets is not None:
        zr, zi = reset_to_zero(zr, zi, load_resets(resets + row, BB)[None, :], PAIRS)
    hr, hi = activate(xr + zr, xi + zi, offset, F, PAIRS)
    store_columns(states + start, first, rows, n, hr, hi, BB, BN, PAIRS)
    _store_again(after, first, row, padded, tall, hr, hi, PAIRS, BB, BN, SPLITS, PRECISION)


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
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """``d_t = f'(h_t) (g_t + M d_{t+1})`` of one step, M = W^H; M d_{t+1} is zero at a reset of t + 1.

    As `recurrence_step_kernel`; ``before`` is d_{t+1}, ``after`` and ``grad_inputs`` are d_t.  The sums
    for the bias of modReLU are added to ``partial`` (batch / BB, n).
    """
    _after_the_step_before(OVERLAP)
    EARLY: tl.constexpr = BB * BN * (2 if PAIRS else 1) < 1024
    row, first = tl.program_id(0).to(tl.int64) * BB, tl.program_id(1) * BN
    rows, start = batch - row, row * n * (2 if PAIRS else 1)
    if EARLY:
        gr, gi = load_columns(grad + start, first, rows, n, BB, BN, PAIRS)
        hr, hi = load_columns(states + start, first, rows, n, BB, BN, PAIRS)
    zr, zi = _product(
        m, before, first, row, n, padded, tall, PAIRS, BB, BN, BK, SPLITS, PRECISION, STAGES
    )
    if not EARLY:
        tl.debug_barrier()  # or the compiler would load before the product
        gr, gi = load_columns(grad + start, first, rows, n, BB, BN, PAIRS)
        hr, hi = load_columns(states + start, first, rows, n, BB, BN, PAIRS)
    offset = load_bias(bias, first + tl.arange(0, BN), n, F)[:, None]
    if resets is not None:
        zr, zi = reset_to_zero(zr, zi, load_resets(resets + row, BB)[None, :], PAIRS)
    zr, zi, along = activation_gradient(gr + zr, gi + zi, hr, hi, offset, F, PAIRS)
    store_columns(grad_inputs + start, first, rows, n, zr, zi, BB, BN, PAIRS)
    _store_again(after, first, row, padded, tall, zr, zi, PAIRS, BB, BN, SPLITS, PRECISION)
    if F == MODRELU:
        units = first + tl.arange(0, BN)
        at = partial + tl.program_id(0).to(tl.int64) * n + units
        before_it = tl.load(at, mask=units < n, other=0.0)
        tl.store(at, before_it + tl.sum(along, axis=1), mask=units < n)
