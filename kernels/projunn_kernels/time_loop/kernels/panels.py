"""The time loop of a few rows of the batch for a W that no multiprocessor can hold, transposed too.

W passes from L2 in panels (N, K) in every time step, some of them in flight.  The state is read back
from memory, where the step before has stored it.
"""

import triton
import triton.language as tl

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
def forward_panels(
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
    K: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The same as `forward_block`; the operand of step t is what step t - 1 stored."""
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    rows = batch - tl.program_id(0) * BB
    start = tl.program_id(0).to(tl.int64) * BB * n * WIDTH
    stride = tl.cast(batch, tl.int64) * n * WIDTH
    inputs += start
    states += start
    previous = initial + start
    every = tl.cdiv(batch, BB) * BB
    if resets is not None:
        resets += tl.program_id(0) * BB
    for _t in range(steps):
        known = rows
        if resets is not None:  # a step ahead they took registers, and 16 bytes spilled on sm_120
            known = known_rows(resets, rows, BB)
            resets += every
        for first in range(0, n, N):
            zr, zi = load_columns(inputs, first, rows, n, BB, N, PAIRS)
            zr, zi = add_panels(
                zr, zi, m, previous, first, known, n, n, False, PAIRS, BB, N, K, OPERAND, PRECISION,
                STAGES,
            )  # fmt: skip
            hr, hi = activate(zr, zi, load_bias(bias, first, n, F, N)[:, None], F, PAIRS)
            store_columns(states, first, rows, n, hr, hi, BB, N, PAIRS)
        tl.debug_barrier()  # what one thread stored is another's operand
        previous = states
        inputs += stride
        states += stride


@triton.jit
def backward_panels(
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
    K: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The same as `backward_block`; the operand of step t is what step t + 1 stored."""
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
    # d_{t+1} is read at ``grad_inputs + stride``.  Triton would not carry a name for it that is bound
    # here and again in the loop: see `projunn_kernels.tuning.carried`.
    depth = 0  # there is no d_{T+1} to read
    known, every = rows, tl.cdiv(batch, BB) * BB
    if resets is not None:
        resets += (steps - 1) * tl.cast(every, tl.int64) + tl.program_id(0) * BB
        known = tl.zeros((BB,), tl.int32)
    for t in range(steps):
        for first in range(0, n, N):
            zr, zi = load_columns(grad, first, rows, n, BB, N, PAIRS)
            zr, zi = add_panels(
                zr, zi, m, grad_inputs + stride, first, known, n, depth, True, PAIRS, BB, N, K, OPERAND,
                PRECISION, STAGES,
            )  # fmt: skip
            hr, hi = load_columns(states, first, rows, n, BB, N, PAIRS)
            offset = load_bias(bias, first, n, F, N)[:, None]
            zr, zi, along = activation_gradient(zr, zi, hr, hi, offset, F, PAIRS)
            store_columns(grad_inputs, first, rows, n, zr, zi, BB, N, PAIRS)
            if F == MODRELU:  # behind the barrier of the step before
                units = first + tl.arange(0, N)
                before = tl.load(partial + units, mask=(units < n) & (t > 0), other=0.0)
                tl.store(partial + units, before + tl.sum(along, axis=1), mask=units < n)
        tl.debug_barrier()  # what one thread stored is another's operand
        depth = n
        if resets is not None:  # at the beginning of the next step 168 bytes spilled on sm_120
            known = known_rows(resets, rows, BB)
            resets -= every
        grad -= stride
        states -= stride
        grad_inputs -= stride
    for first in range(0, n, N):
        zr = tl.zeros((N, BB), tl.float32)
        zi = tl.zeros((N, BB), tl.float32)
        zr, zi = add_panels(
            zr, zi, m, grad_inputs + stride, first, known, n, n, True, PAIRS, BB, N, K, OPERAND,
            PRECISION, STAGES,
        )  # fmt: skip
        store_columns(grad_initial, first, rows, n, zr, zi, BB, N, PAIRS)
