"""The time loop in operations that change nothing in place, on real numbers.

Transforms, derivatives and exporters run it.
"""

import torch
from torch import Tensor
from torch.nn import functional

from projunn_kernels import private
from projunn_kernels.pairs import real_matrix
from projunn_kernels.time_loop.arguments import Recurrence, RecurrenceBackward, numbers, states_shape
from projunn_kernels.time_loop.reference import apply_nonlinearity


def recurrence(call: Recurrence) -> tuple[Tensor, Tensor]:
    """All states, and the last: see `projunn_kernels.recurrence`."""
    u, weight = call.inputs, call.weight
    if call.input_weight is not None:
        u = functional.linear(u, call.input_weight, call.input_bias)
    h, w, apply = call.initial, weight, apply_nonlinearity
    if weight.ndim == 3:
        leading = 2 if call.batch_sizes is None else 1
        u, h, w, apply = u.flatten(leading), h.flatten(1), real_matrix(weight), nonlinearity_of_parts
    if isinstance(u.shape[0], torch.SymInt) and private.in_onnx_export():
        raise ValueError(
            "input: got a dynamic number of time steps, wanted a fixed one for ONNX, which gets the loop"
            " over time unrolled; torch.export takes any"
        )
    states: list[Tensor] = []
    ended: list[Tensor] = []
    for x, reset in zip(*_steps(call, u, call.resets), strict=True):
        if call.batch_sizes is not None:
            h = _kept(h, x.shape[0], ended)
        if reset is not None:
            h = torch.where(reset.unsqueeze(-1), 0.0, h)
        h = apply(x + h @ w.mT, call.bias, call.nonlinearity)
        states.append(h)
    last = torch.cat([h, *ended[::-1]]) if ended else h.clone()
    found = torch.stack(states) if call.batch_sizes is None else torch.cat(states)
    return found.reshape(states_shape(call)), last.reshape(call.initial.shape)


def _steps(
    call: Recurrence | RecurrenceBackward, *tensors: Tensor | None
) -> list[tuple[Tensor | None, ...]]:
    """Each tensor step by step, in tuples of one length."""
    sizes = call.batch_sizes
    length = call.inputs.shape[0] if sizes is None else len(sizes)
    return [
        (None,) * length if t is None else tuple(t.unbind() if sizes is None else t.split(sizes))
        for t in tensors
    ]


def _kept(h: Tensor, size: int, ended: list[Tensor]) -> Tensor:
    """The states of the sequences that go on; those of the others are added to ``ended``."""
    if size == h.shape[0]:
        return h
    ended.append(h[size:])
    return h[:size]


def nonlinearity_of_parts(z: Tensor, bias: Tensor | None, nonlinearity: str) -> Tensor:
    """f(z) of complex numbers in real arithmetic, on parts as `projunn_kernels.pairs` has them."""
    if nonlinearity == "identity":
        return z
    parts = z.unflatten(-1, (-1, 2))
    if nonlinearity == "modrelu":
        assert bias is not None
        size = torch.linalg.vector_norm(parts, dim=-1)
        some = size > 0
        scale = torch.where(some, (size + bias).relu() / torch.where(some, size, 1.0), 0.0)
        return (parts * scale.unsqueeze(-1)).flatten(-2)
    if nonlinearity != "tanh":
        raise ValueError(
            f"nonlinearity: got {nonlinearity!r}, wanted modrelu, tanh or identity for complex numbers"
        )
    # tanh(a + ib) = (t + i s c (1 - t^2)) / (c^2 + t^2 s^2), with t = tanh a, s = sin b, c = cos b
    a, b = parts.unbind(-1)
    t, s, c = a.tanh(), b.sin(), b.cos()
    below = c.square() + (t * s).square()
    return torch.stack([t / below, s * c * (1 - t.square()) / below], -1).flatten(-2)


def recurrence_backward(call: RecurrenceBackward) -> list[Tensor]:
    """The gradients as functions of the states too: see `projunn_kernels.recurrence_backward`."""
    if call.basis is not None:
        raise NotImplementedError(
            "basis: got a tensor, wanted None: the factors of a sketch have no derivative"
        )
    h, h0, w = numbers(call.weight, call.states, call.initial, call.weight)
    grad, grad_last = (
        None if t is None else numbers(call.weight, t)[0] for t in (call.grad, call.grad_last)
    )
    grad_last = torch.zeros_like(h0) if grad_last is None else grad_last
    every = list(zip(*_steps(call, h, grad, call.resets), strict=True))
    carry, reversed_steps = grad_last, []
    if call.batch_sizes is not None:
        carry = grad_last[: call.batch_sizes[-1]]
    for state, g, reset in reversed(every):
        if call.batch_sizes is not None and state.shape[0] > carry.shape[0]:
            # h_t is the last state of some sequences
            carry = torch.cat([carry, grad_last[carry.shape[0] : state.shape[0]]])
        carry = carry if g is None else carry + g
        reversed_steps.append(_activation_gradient(carry, state, call.bias, call.nonlinearity))
        carry = reversed_steps[-1] @ w.conj()
        if reset is not None:
            carry = torch.where(reset.unsqueeze(-1), 0.0, carry)
    whole = torch.stack if call.batch_sizes is None else torch.cat
    dz = whole(reversed_steps[::-1])
    rows = dz.reshape(-1, dz.shape[-1])
    by_inputs, by_projection, by_shift, by_bias = dz, None, None, None
    if call.input_weight is not None:
        columns = torch.view_as_real(rows).reshape(rows.shape[0], -1) if dz.is_complex() else rows
        by_inputs = (columns @ call.input_weight).reshape(call.inputs.shape)
        by_projection = columns.mT @ call.inputs.reshape(-1, call.inputs.shape[-1])
        by_shift = columns.sum(0)
    if call.bias is not None:
        by_bias = (h.sgn().conj() * dz).real.sum(tuple(range(h.ndim - 1)))
    found = [
        by_inputs if call.wants_inputs or call.input_weight is None else None,
        carry,
        by_bias,
        by_projection,
        by_shift if call.wants_input_bias else None,
    ]
    if call.wants_weight:
        found.append(rows.mT @ _before(call, h0, [step[0] for step in every]).conj())
    return [_stored(call.states.new_empty(0) if t is None else t) for t in found]


def _before(call: RecurrenceBackward, initial: Tensor, states: list[Tensor]) -> Tensor:
    """h_{t-1} of all time steps, (rows, n)."""
    earlier = [initial, *states[:-1]]
    if call.batch_sizes is not None:
        earlier = [h[: state.shape[0]] for h, state in zip(earlier, states, strict=True)]
    before = torch.cat(earlier)
    if call.resets is None:
        return before
    return torch.where(call.resets.reshape(-1, 1), 0.0, before)


def _activation_gradient(carry: Tensor, h: Tensor, bias: Tensor | None, nonlinearity: str) -> Tensor:
    """The gradient at z, from ``carry`` = the gradient at h = f(z)."""
    if nonlinearity == "identity":
        return carry
    if nonlinearity == "tanh":
        return carry * (1 - h.square()).conj()
    if not h.is_complex():
        return torch.where(h > 0 if nonlinearity == "relu" else h != 0, carry, 0.0)
    # dh = dz + (b/|z|) (dz - u Re(conj(u) dz)) with u = h/|h|, where |h| = |z| + b > 0
    assert bias is not None
    size = h.abs()
    active = size > 0
    ratio = torch.where(active, bias / torch.where(active, size - bias, 1.0), 0.0)
    radial = (carry * h.conj()).real * ratio / torch.where(active, size, 1.0).square()
    return torch.where(active, carry * (1 + ratio) - h * radial, 0.0)


def _stored(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
