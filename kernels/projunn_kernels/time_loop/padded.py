"""The time loop's launches of packed sequences, which the kernels take padded.

Padding lies after the end of a sequence, so that nothing of it enters a state that is read.  In the
backward the states and the gradients of the padding are zero, and so is all that they add to a sum.
"""

from dataclasses import replace

import torch
from torch import Tensor

from projunn_kernels.keeping import sent
from projunn_kernels.time_loop import launch
from projunn_kernels.time_loop.arguments import Recurrence, RecurrenceBackward


def recurrence(call: Recurrence) -> tuple[Tensor, Tensor]:
    """All states, and a copy of the last of each sequence."""
    inputs, resets, rows = call.inputs, call.resets, None
    if call.batch_sizes is not None:
        rows = _rows(call.batch_sizes, inputs.device)
        inputs = _padded(inputs, rows, call.batch_sizes)
        resets = None if resets is None else _padded(resets, rows, call.batch_sizes)
    states, last = launch.recurrence(
        inputs=inputs,
        initial=call.initial,
        weight=call.weight,
        bias=call.bias,
        nonlinearity=call.nonlinearity,
        input_weight=call.input_weight,
        input_bias=call.input_bias,
        resets=resets,
    )
    if call.batch_sizes is None or rows is None:
        return states, last
    return states.flatten(0, 1)[rows], states.flatten(0, 1)[_ends(call.batch_sizes, rows.device)]


def recurrence_backward(call: RecurrenceBackward) -> list[Tensor]:
    """`projunn_kernels.recurrence_backward` of padded sequences, its results packed again."""
    sizes = call.batch_sizes
    if sizes is None:
        return launch.recurrence_backward(call)
    rows = _rows(sizes, call.states.device)
    states, inputs = (_padded(t, rows, sizes) for t in (call.states, call.inputs))
    grad = torch.zeros_like(states) if call.grad is None else _padded(call.grad, rows, sizes)
    if call.grad_last is not None:
        grad.flatten(0, 1).index_add_(0, _ends(sizes, rows.device), call.grad_last)
    by_inputs, *others = launch.recurrence_backward(
        replace(
            call,
            grad=grad,
            grad_last=None,
            inputs=inputs,
            states=states,
            batch_sizes=None,
            resets=None if call.resets is None else _padded(call.resets, rows, sizes),
        )
    )
    if by_inputs.shape == inputs.shape:
        by_inputs = by_inputs.flatten(0, 1)[rows]
    return [by_inputs, *others]


def _rows(sizes: list[int], device: torch.device) -> Tensor:
    """The row, among those of all time steps padded, of each packed row.

    It is found on the CPU: to count what is there, a GPU would have to come to the end of its work.
    """
    return sent(_there(sizes).flatten().nonzero().squeeze(1), device)


def _ends(sizes: list[int], device: torch.device) -> Tensor:
    """The padded row of the last time step of each sequence."""
    lengths = _there(sizes).sum(0)
    return sent((lengths - 1) * sizes[0] + torch.arange(sizes[0], device="cpu"), device)


def _there(sizes: list[int]) -> Tensor:
    """Whether each time step has each sequence, (T, batch)."""
    return torch.arange(sizes[0], device="cpu") < torch.tensor(sizes, device="cpu").unsqueeze(1)


def _padded(packed: Tensor, rows: Tensor, sizes: list[int]) -> Tensor:
    """Packed rows (rows, ...) as (T, batch, ...), zero in the padding."""
    found = packed.new_zeros(len(sizes) * sizes[0], *packed.shape[1:])
    found[rows] = packed
    return found.unflatten(0, (len(sizes), sizes[0]))
