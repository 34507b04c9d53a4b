"""The arguments of the time loop and of its backward, and how real and complex states are stored."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


@dataclass
class Recurrence:
    """The arguments of `projunn_kernels.recurrence`, which says what they are."""

    inputs: Tensor
    initial: Tensor
    weight: Tensor
    bias: Tensor | None
    nonlinearity: str
    input_weight: Tensor | None
    input_bias: Tensor | None
    batch_sizes: list[int] | None = None
    resets: Tensor | None = None


@dataclass(frozen=True)
class RecurrenceBackward:
    """The arguments of `projunn_kernels.recurrence_backward`, for T time steps and n units.

    Attributes:
        grad: the gradient of all states, (T, batch, n), or None.
        grad_last: the gradient of the copy of the last state, (batch, n), or None.
        inputs, initial, weight, bias, nonlinearity, input_weight: what `projunn_kernels.recurrence` got.
        states: what it returned.
        wants_inputs, wants_input_bias, wants_weight: whether the gradients of u, c and W are wanted.
        basis: R (n, k), if the gradient of W is wanted as low-rank factors, else None.
        group: the processes over which those are averaged, as in `projunn_kernels.sketch`.
        batch_sizes, resets: what `projunn_kernels.recurrence` got.  With ``batch_sizes`` the first two
            axes of ``grad``, ``inputs`` and ``states`` are one, (rows, n).
    """

    grad: Tensor | None
    grad_last: Tensor | None
    inputs: Tensor
    states: Tensor
    initial: Tensor
    weight: Tensor
    bias: Tensor | None
    nonlinearity: str
    input_weight: Tensor | None = None
    wants_inputs: bool = True
    wants_input_bias: bool = True
    wants_weight: bool = True
    basis: Tensor | None = None
    group: str = ""
    batch_sizes: list[int] | None = None
    resets: Tensor | None = None


def states_shape(call: Recurrence) -> tuple[int, ...]:
    """The shape of all states, with a trailing axis of 2 where the weight holds pairs."""
    leading = 2 if call.batch_sizes is None else 1
    return (*call.inputs.shape[:leading], *call.weight.shape[1:])


def flops(call: Recurrence) -> int:
    """Multiplications and additions of the products with U and W, for all time steps."""
    n, rows = call.weight.shape[0], prod(states_shape(call)[: 2 if call.batch_sizes is None else 1])
    return 2 * rows * (_of_numbers(call) * n * n + _of_projection(call))


def backward_flops(call: RecurrenceBackward) -> int:
    """`flops` of the backward, for the gradients that are wanted."""
    n, rows = call.weight.shape[0], call.states.numel() // prod(call.weight.shape[1:])
    products = n * n * (1 + (call.wants_weight and call.basis is None))
    if call.wants_weight and call.basis is not None:  # a sketch, by two products each way
        products += 4 * n * call.basis.shape[1]
    projection = _of_projection(call) * (1 + call.wants_inputs)
    return 2 * rows * (_of_numbers(call) * products + projection)


def _of_numbers(call: Recurrence | RecurrenceBackward) -> int:
    """The real products of one of numbers."""
    return 4 if call.weight.ndim == 3 else 1


def _of_projection(call: Recurrence | RecurrenceBackward) -> int:
    return 0 if call.input_weight is None else call.input_weight.numel()


def numbers(weight: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as real or, where ``weight`` holds pairs, complex numbers."""
    if weight.ndim == 2:
        return tensors
    return tuple(torch.view_as_complex(t.contiguous()) for t in tensors)
