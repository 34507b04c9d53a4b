"""The time loop of a unitary RNN as one operator, forward and backward.

    h_t = f(U u_t + c + h_{t-1} W^T),   t = 1..T

u (T, batch, m), U (n, m), c (n,), W (n, n), and f one of ``NONLINEARITIES``:

    identity   z                            relu   max(z, 0)
    tanh       tanh z                       modrelu   z / |z| max(|z| + b, 0)   (0 at z = 0)

Without U, u_t (T, batch, n) stands for U u_t + c.  Complex numbers travel as real pairs, a trailing axis
of size 2, but u, U and c are real: the 2 n rows of U then make real and imaginary parts in turn.

The last state is an output of its own, for losses that need no other.  Only the states are kept for
backward: f' is recovered from f(z).  As one opaque operator it costs the same to compile for any T.  On
a GPU the loop is one launch in each direction (`jit/recurrence.py`), with GEMMs before and after it;
elsewhere it is the loop of GEMMs of `time_loop`.

modReLU: Arjovsky, Shah, Bengio, ICML 2016, equation 8.
"""

import torch
from torch import Tensor
from torch.nn import functional

from projunn_kernels import time_loop
from projunn_kernels.backends import operator, uses_triton
from projunn_kernels.sketch import sketch
from projunn_kernels.time_sums import TimeSums

NONLINEARITIES = ("modrelu", "relu", "tanh", "identity")


def recurrence_reference(
    inputs: Tensor, initial: Tensor, weight: Tensor, bias: Tensor | None, nonlinearity: str
) -> Tensor:
    """The loop without U as one would write it on a blackboard: real or complex, autograd's own."""
    states, h = [], initial
    for x in inputs:
        h = apply_nonlinearity(x + h @ weight.mT, bias, nonlinearity)
        states.append(h)
    return torch.stack(states)


def apply_nonlinearity(z: Tensor, bias: Tensor | None, nonlinearity: str) -> Tensor:
    """f(z), real or complex, with autograd's own gradient."""
    if nonlinearity == "modrelu":
        assert bias is not None
        return z.sgn() * (z.abs() + bias).relu()
    if nonlinearity == "relu":
        return z.relu()
    return z.tanh() if nonlinearity == "tanh" else z


def recurrence(
    inputs: Tensor,
    initial: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    nonlinearity: str,
    input_weight: Tensor | None = None,
    input_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """All T states, (T, batch, n), and a copy of the last; pairs where ``weight`` is (n, n, 2)."""
    states, last = _operator(inputs, initial, weight, bias, nonlinearity, input_weight, input_bias)
    return states, last


@operator("projunn::recurrence", mutates_args=())
def _operator(
    inputs: Tensor,
    initial: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    nonlinearity: str,
    input_weight: Tensor | None,
    input_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if uses_triton(inputs):
        from projunn_kernels.jit import launch_recurrence

        x = inputs
        if input_weight is not None:
            x = functional.linear(inputs, input_weight, input_bias).view(_shape(inputs, weight))
        arguments = x.contiguous(), initial.contiguous(), weight.contiguous(), bias, nonlinearity
        states = launch_recurrence.forward(*arguments)
    else:
        states = inputs.new_empty(_shape(inputs, weight))
        x = inputs
        if input_weight is None:
            (x,) = _numbers(weight, inputs)
        h, w, out = _numbers(weight, initial, weight, states)
        time_loop.states_of(x, h, w, bias, nonlinearity, input_weight, input_bias, out)
    return states, states[-1].clone()


@_operator.register_fake
def _(inputs, initial, weight, bias, nonlinearity, input_weight, input_bias):  # type: ignore[no-untyped-def]
    shape = _shape(inputs, weight)
    return inputs.new_empty(shape), inputs.new_empty(shape[1:])


def _shape(inputs: Tensor, weight: Tensor) -> tuple[int, ...]:
    return (*inputs.shape[:2], *weight.shape[1:])


def _numbers(weight: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    if weight.ndim == 2:
        return tensors
    return tuple(torch.view_as_complex(t.contiguous()) for t in tensors)


@operator("projunn::recurrence_backward", mutates_args=())
def recurrence_backward(
    grad: Tensor | None,
    grad_last: Tensor | None,
    inputs: Tensor,
    states: Tensor,
    initial: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    nonlinearity: str,
    input_weight: Tensor | None = None,
    wants_inputs: bool = True,
    wants_input_bias: bool = True,
    wants_weight: bool = True,
    basis: Tensor | None = None,
) -> list[Tensor]:
    """The gradients of `recurrence`, from those of its two outputs, either of which may be None.

    Returns those of u, h_0, b, U and c, empty where there is none, and then that of W, or X and Y of
    `projunn_kernels.sketch` if its ``basis`` R is given, or nothing.  The gradients of u, c and W are
    made where they are wanted.
    """
    h, h0, w = _numbers(weight, states, initial, weight)
    arguments = inputs, input_weight, wants_inputs, wants_input_bias
    if not uses_triton(states):
        above, above_last, start = (
            None if t is None else _numbers(weight, t)[0] for t in (grad, grad_last, basis)
        )
        sums = TimeSums(h, h0, bias, *arguments, wants_weight, start)
        return time_loop.gradients_of(above, above_last, h, w, bias, nonlinearity, sums)
    from projunn_kernels.jit import launch_recurrence

    dz, grad_initial, grad_bias = launch_recurrence.backward(
        _all_of(grad, grad_last, states), states, weight.contiguous(), bias, nonlinearity
    )
    sums = TimeSums(h, h0, None, *arguments, wants_weight and basis is None, None)
    grads, first = _numbers(weight, dz, grad_initial)
    for begin, end in ((0, 1), (1, states.shape[0])):
        sums.add(begin, end, grads[begin:end])
    results = sums.finish(first, grads, grad_bias)
    if basis is not None and wants_weight:
        before, after = [h0, h[:-1].flatten(0, 1)], [grads[0], grads[1:].flatten(0, 1)]
        if len(h) == 1:
            before, after = before[:1], after[:1]
        results += sketch(before, after, basis, weight.ndim == 3)
    return results


def _all_of(grad: Tensor | None, grad_last: Tensor | None, states: Tensor) -> Tensor:
    """The gradient of all states with that of the last one added."""
    if grad is None:
        grad = torch.zeros_like(states)
    elif grad_last is not None:
        grad = grad.clone(memory_format=torch.contiguous_format)
    if grad_last is not None:
        grad[-1] += grad_last
    return grad.contiguous()


@recurrence_backward.register_fake
def _(  # type: ignore[no-untyped-def]
    grad,
    grad_last,
    inputs,
    states,
    initial,
    weight,
    bias,
    nonlinearity,
    input_weight=None,
    wants_inputs=True,
    wants_input_bias=True,
    wants_weight=True,
    basis=None,
):
    def like(tensor: Tensor, wanted: bool = True) -> Tensor:
        return tensor.new_empty(tensor.shape if wanted else 0)

    factors = []
    if wants_weight:
        factors = [like(weight)] if basis is None else [like(basis), like(basis)]
    return [
        like(inputs, wants_inputs or input_weight is None),
        like(initial),
        like(states, False) if bias is None else like(bias),
        like(states, False) if input_weight is None else like(input_weight),
        states.new_empty(input_weight.shape[0] if input_weight is not None and wants_input_bias else 0),
        *factors,
    ]


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    u, initial, weight, bias, ctx.nonlinearity, input_weight, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(u, output[0], initial, weight, bias, input_weight)


def _backward(ctx, grad, grad_last):  # type: ignore[no-untyped-def]
    *tensors, input_weight = ctx.saved_tensors
    needs = ctx.needs_input_grad
    wanted = needs[0], needs[6], needs[2]
    inputs, initial, bias, projection, shift, *weight = recurrence_backward(
        grad, grad_last, *tensors, ctx.nonlinearity, input_weight, *wanted
    )
    grads = inputs, initial, *(weight or [None]), bias, None, projection, shift
    return tuple(g if need else None for g, need in zip(grads, needs, strict=True))


_operator.register_autograd(_backward, setup_context=_setup_context)
for _device in ("cpu", "cuda"):
    _operator.register_autocast(_device, torch.float32)
