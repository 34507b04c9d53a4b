"""One time step for a W that no multiprocessor can hold, transposed too: a launch for each step.

A program has a few rows of the batch and N units, so that a step has programs for all multiprocessors.
W passes from L2 in panels (N, K), some of them in flight; the operand is what the step before stored.

With OVERLAP the programs of a step are set up while those of the step before still run, and wait for
all of them to end before they read or write anything (programmatic dependent launch, from sm_90 on).
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from projunn_kernels.time_loop.kernels.activation import MODRELU, activate, activation_gradient
from projunn_kernels.time_loop.kernels.blocks import (
    add_product,
    known_rows,
    load_columns,
    load_operand,
    store_columns,
)
from projunn_kernels.time_loop.kernels.rows import load_bias


@triton.jit
def add_panels(
    re,
    im,
    m,
    h,
    first,
    rows,
    n,
    depth,
    CONJUGATE: tl.constexpr,
    PAIRS: tl.constexpr,
    BB: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Units first.. of ``Z + M H``, or with conj(M), over ``depth`` rows of H."""
    for k in tl.range(0, depth, K, num_stages=STAGES):
        mr, mi = load_operand(m, first, k, n, CONJUGATE, PAIRS, N, K, OPERAND)
        hr, hi = load_columns(h, k, rows, n, BB, K, PAIRS)
        re, im = add_product(re, im, mr, mi, hr, hi, PAIRS, PRECISION)
    return re, im


@triton.jit
def after_the_step_before(OVERLAP: tl.constexpr):
    """Wait for the launch before this one, and let the next one be set up."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def forward_panels(
    inputs,
    previous,
    m,
    bias,
    resets,
    states,
    batch,
    n,
    F: tl.constexpr,
    PAIRS: tl.constexpr,
    BB: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """``h_t = f(x_t + M h_{t-1})`` of one step, with ``previous`` h_{t-1} and the resets of t."""
    after_the_step_before(OVERLAP)
    first = tl.program_id(1) * N
    rows = batch - tl.program_id(0) * BB
    start = tl.program_id(0).to(tl.int64) * BB * n * (2 if PAIRS else 1)
    known = rows
    if resets is not None:
        known = known_rows(resets + tl.program_id(0) * BB, rows, BB)
    zr, zi = load_columns(inputs + start, first, rows, n, BB, N, PAIRS)
    zr, zi = add_panels(
        zr, zi, m, previous + start, first, known, n, n, False, PAIRS, BB, N, K, OPERAND, PRECISION,
        STAGES,
    )  # fmt: skip
    hr, hi = activate(zr, zi, load_bias(bias, first, n, F, N)[:, None], F, PAIRS)
    store_columns(states + start, first, rows, n, hr, hi, BB, N, PAIRS)


@triton.jit
def backward_panels(
    grad,
    states,
    m,
    bias,
    resets,
    grad_inputs,
    following,
    partial,
    batch,
    n,
    F: tl.constexpr,
    PAIRS: tl.constexpr,
    BB: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """d_t of one step, with ``following`` d_{t+1} and the resets of t + 1; its share of ``partial``."""
    after_the_step_before(OVERLAP)
    first = tl.program_id(1) * N
    rows = batch - tl.program_id(0) * BB
    start = tl.program_id(0).to(tl.int64) * BB * n * (2 if PAIRS else 1)
    known = rows
    if resets is not None:
        known = known_rows(resets + tl.program_id(0) * BB, rows, BB)
    zr, zi = load_columns(grad + start, first, rows, n, BB, N, PAIRS)
    zr, zi = add_panels(
        zr, zi, m, following + start, first, known, n, n, True, PAIRS, BB, N, K, OPERAND, PRECISION,
        STAGES,
    )  # fmt: skip
    hr, hi = load_columns(states + start, first, rows, n, BB, N, PAIRS)
    offset = load_bias(bias, first, n, F, N)[:, None]
    zr, zi, along = activation_gradient(zr, zi, hr, hi, offset, F, PAIRS)
    store_columns(grad_inputs + start, first, rows, n, zr, zi, BB, N, PAIRS)
    if F == MODRELU:
        units = first + tl.arange(0, N)
        at = partial + tl.program_id(0).to(tl.int64) * n + units
        before = tl.load(at, mask=units < n, other=0.0)
        tl.store(at, before + tl.sum(along, axis=1), mask=units < n)
