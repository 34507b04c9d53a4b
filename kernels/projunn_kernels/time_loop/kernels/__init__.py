"""The time loop of a unitary RNN, and its backward.

    forward    h_t = f(x_t + h_{t-1} W^T)                                  t = 1..T
    backward   d_t = f'(h_t) (g_t + d_{t+1} conj(W)),  d_{T+1} = 0         t = T..1
               gradient of h_0 = d_1 conj(W)

x, h, g, d are (T, batch, n), W (n, n), f one of the codes of `activation`; f' is recovered from
h = f(z).  d is the gradient of x; that of W is a product of d and h, made elsewhere.

``resets`` are booleans, or None, which compiles to code without them: (T, rows), with a column for each
row of every program, also where the batch has no such row.  Where one is True, h_{t-1} is zero in the
forward step t, and d_t conj(W) in the backward step t - 1; for t = 1 these are h_0 and its gradient.
Where W is held, the resets of a step are loaded while the product of the step before is made.  Then what
goes on to the next step is zero, and what is stored stays.

No program waits for another.  There are four forms.  In the first three a launch is the whole loop,
because the rows of a batch have nothing to do with each other: a program takes BB of them through all
of time, and holds W (HOLD).  A program of one row (BB = 1) has it in registers and multiplies matrix by
vector in float32 (`rows`); it may have a part of W in its multiprocessor's cache (`passing`, not HOLD).
A program of 8 or 16 rows has it as the first operand of products on tensor cores (`blocks`).  What
global memory sees is x and h alone.  Where W does not fit a multiprocessor, or where many rows are to
be multiplied in float32, a launch is one step, whose programs share rows and units (`every_step`,
kernels of their own).

The gradient of the modReLU bias is summed over time and rows by the program that has them, so that it
is the same in every run: partial sums (programs, n), added up elsewhere.
"""

import triton
import triton.language as tl

from projunn_kernels.time_loop.kernels.blocks import backward_block, forward_block
from projunn_kernels.time_loop.kernels.every_step import (
    recurrence_step_backward_kernel,
    recurrence_step_kernel,
)
from projunn_kernels.time_loop.kernels.passing import backward_passing, forward_passing
from projunn_kernels.time_loop.kernels.rows import backward_row, forward_row

__all__ = (
    "recurrence_backward_kernel",
    "recurrence_kernel",
    "recurrence_step_backward_kernel",
    "recurrence_step_kernel",
)


@triton.jit
def recurrence_kernel(
    inputs,
    initial,
    w,
    bias,
    resets,
    states,
    steps,
    batch,
    n,
    F: tl.constexpr,
    PAIRS: tl.constexpr,
    BB: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    HOLD: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (batch / BB,).  ``steps`` >= 1.  ``w`` is W, but W^T if BB = 1, padded if it is not held.

    BN units have a tile and the BK that follow, if any, have another, or two where a part of W passes.
    """
    if BB == 1 and not HOLD:
        forward_passing(inputs, initial, w, bias, resets, states, steps, batch, n, F, PAIRS, BN)
    elif BB == 1:
        forward_row(inputs, initial, w, bias, resets, states, steps, batch, n, F, PAIRS, BN, BK)
    else:
        forward_block(
            inputs, initial, w, bias, resets, states, steps, batch, n, F, PAIRS, BB, BN, BK, OPERAND,
            PRECISION,
        )  # fmt: skip


@triton.jit
def recurrence_backward_kernel(
    grad,
    states,
    w,
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
    BN: tl.constexpr,
    BK: tl.constexpr,
    HOLD: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (batch / BB,).  ``w`` is W^T, but W if BB = 1, padded if it is not held.

    ``partial`` (batch / BB, n) gets the sums for the bias of modReLU.
    """
    if BB == 1 and not HOLD:
        backward_passing(
            grad, states, w, bias, resets, grad_inputs, grad_initial, partial, steps, batch, n, F, PAIRS,
            BN,
        )  # fmt: skip
    elif BB == 1:
        backward_row(
            grad, states, w, bias, resets, grad_inputs, grad_initial, partial, steps, batch, n, F, PAIRS,
            BN, BK,
        )  # fmt: skip
    else:
        backward_block(
            grad, states, w, bias, resets, grad_inputs, grad_initial, partial, steps, batch, n, F, PAIRS,
            BB, BN, BK, OPERAND, PRECISION,
        )  # fmt: skip
