"""The time loop of `projunn_kernels.recurrence` in PyTorch, forward and backward.

The loop is made of GEMMs.  It works in panels of a few hundred rows, so that what it touches stays in
cache: the time steps of a panel are projected, stepped and written out together, and on the way back the
gradients of a panel are added to every sum over time at once.  No other tensor has the size of all
states, except their gradients where `TimeSums` needs all of them.  The inputs, and what projects them,
are real; all other tensors are real or complex.
"""

import threading
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from projunn_kernels.time_loop.arguments import RecurrenceBackward, numbers, states_shape
from projunn_kernels.time_loop.sums import TimeSums

_PANEL = 512  # rows


def recurrence(
    inputs: Tensor,
    initial: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    nonlinearity: str,
    input_weight: Tensor | None,
    input_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """All states, and a copy of the last."""
    states = inputs.new_empty(states_shape(inputs, weight))
    x = inputs
    if input_weight is None:
        (x,) = numbers(weight, inputs)
    h, w, out = numbers(weight, initial, weight, states)
    _fill_states(x, h, w, bias, nonlinearity, input_weight, input_bias, out)
    return states, states[-1].clone()


def recurrence_backward(call: RecurrenceBackward) -> list[Tensor]:
    """The gradients that `projunn_kernels.recurrence_backward` returns."""
    h, h0, w = numbers(call.weight, call.states, call.initial, call.weight)
    grad, grad_last, basis = (
        None if t is None else numbers(call.weight, t)[0]
        for t in (call.grad, call.grad_last, call.basis)
    )
    sums = TimeSums(h, h0, call, sums_bias=call.bias is not None, basis=basis)
    return _gradients(grad, grad_last, h, w, call.bias, call.nonlinearity, sums)


def _fill_states(
    inputs: Tensor,
    initial: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    nonlinearity: str,
    input_weight: Tensor | None,
    input_bias: Tensor | None,
    out: Tensor,
) -> None:
    """Write all states into ``out`` (T, batch, n)."""
    n, padded = weight.shape[0], _padded_size(weight)
    transposed = functional.pad(weight.mT, (0, padded - n))
    offset = None if bias is None else functional.pad(bias, (0, padded - n))
    h, scratch = initial, None
    if padded > n:  # two: the first step of a panel reads the last state of the one before
        scratch = [out.new_zeros(_panel_length(out), out.shape[1], padded) for _ in range(2)]
    for number, (begin, end) in enumerate(_panels(out)):
        panel = out[begin:end] if scratch is None else scratch[number % 2][: end - begin]
        rows = panel[..., :n]
        _project(inputs[begin:end], input_weight, input_bias, rows)
        for z, z_rows in zip(panel.unbind(), rows.unbind(), strict=True):
            z.addmm_(h, transposed)
            _activate_(z, offset, nonlinearity)
            h = z_rows
        if scratch is not None:
            out[begin:end].copy_(rows)


def _gradients(
    grad: Tensor | None,
    grad_last: Tensor | None,
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    nonlinearity: str,
    sums: TimeSums,
) -> list[Tensor]:
    """The gradients, from ``grad`` of all states and ``grad_last`` of the last; each may be None."""
    n, (steps, batch) = weight.shape[0], states.shape[:2]
    padded = _padded_size(weight)
    conjugate = functional.pad(weight.conj().resolve_conj(), (0, padded - n))
    grads = [None] * steps if grad is None else list(grad.unbind())
    before = [None, *grads[:-1]]  # of h_{t-1}
    carry = states.new_zeros(batch, padded)  # the gradient of h_t
    carried = carry[:, :n]
    for last in (grads[-1], grad_last):
        if last is not None:
            carried.add_(last)
    if not sums.keeps_all:
        kept = torch.empty_like(states[: _panel_length(states)])
    else:
        kept = torch.empty_like(states) if sums.returns_all else _workspace.like(states)
    for begin, end in reversed(list(_panels(states))):
        panel = kept[begin:end] if sums.keeps_all else kept[: end - begin]
        steps_of_panel = zip(states[begin:end], panel, before[begin:end], strict=True)
        for h, dz, g in reversed(list(steps_of_panel)):
            _activation_gradient(carried, h, bias, nonlinearity, dz)
            if g is None:
                carry.zero_()
            else:
                carried.copy_(g)
            carry.addmm_(dz, conjugate)  # faster than a product that overwrites
        sums.add(begin, end, panel)
    return sums.finish(carried, kept if sums.keeps_all else None)


class _Workspace(threading.local):
    """Memory for the gradients of all states, which each thread keeps from step to step.

    When two large pieces of memory are freed together, the C library returns one of them to the system.
    Every step would then pay for its page faults, a fifth of the time of a sketched step.
    """

    most = 1 << 28  # bytes; larger ones are not kept

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def like(self, states: Tensor) -> Tensor:
        """Uninitialised memory of the shape of ``states``, good until the next call."""
        size = states.numel() * states.element_size()
        if size > self.most:
            return torch.empty_like(states)
        if self._bytes.numel() < size:
            self._bytes = torch.empty(size, dtype=torch.uint8)
        return self._bytes[:size].view(states.dtype).view(states.shape)


_workspace = _Workspace()


def _panel_length(states: Tensor) -> int:
    steps, batch = states.shape[:2]
    return min(steps, max(1, _PANEL // max(1, batch)))


def _panels(states: Tensor) -> Iterator[tuple[int, int]]:
    """First time step of each panel, and the one after its last."""
    steps, length = states.shape[0], _panel_length(states)
    return ((begin, min(begin + length, steps)) for begin in range(0, steps, length))


def _padded_size(w: Tensor) -> int:
    """n, or for real matrices that are worth it the next multiple of 16: full vectors for the BLAS."""
    n = w.shape[-1]
    return n if w.is_complex() or n < 64 else -(-n // 16) * 16


def _project(u: Tensor, input_weight: Tensor | None, input_bias: Tensor | None, out: Tensor) -> None:
    """``U u_t + c``, or u_t itself, of a few time steps."""
    if input_weight is None:
        out.copy_(u)
        return
    columns = torch.view_as_real(out).flatten(-2) if out.is_complex() else out
    if input_bias is None:
        torch.mm(u.flatten(0, 1), input_weight.mT, out=columns.flatten(0, 1))
    else:
        torch.addmm(input_bias, u.flatten(0, 1), input_weight.mT, out=columns.flatten(0, 1))


def _activate_(z: Tensor, bias: Tensor | None, nonlinearity: str) -> None:
    if nonlinearity == "relu":
        z.relu_()
    elif nonlinearity == "tanh":
        z.tanh_()
    elif nonlinearity == "modrelu":
        assert bias is not None
        size = z.abs()
        grown = (size + bias).relu_()
        if z.is_complex():
            z.mul_(grown.div_(size.clamp_min_(torch.finfo(size.dtype).tiny)))
        else:
            torch.mul(z.sign_(), grown, out=z)
    elif nonlinearity != "identity":
        raise AssertionError(f"no nonlinearity {nonlinearity!r}")


def _activation_gradient(
    carry: Tensor, h: Tensor, bias: Tensor | None, nonlinearity: str, out: Tensor
) -> None:
    """``out`` = the gradient at z, from ``carry`` = the gradient at h = f(z)."""
    if nonlinearity == "relu":
        torch.ops.aten.threshold_backward.grad_input(carry, h, 0, grad_input=out)
    elif nonlinearity == "tanh":
        torch.ops.aten.tanh_backward.grad_input(carry, h, grad_input=out)
    elif nonlinearity == "identity":
        out.copy_(carry)
    elif nonlinearity != "modrelu":
        raise AssertionError(f"no nonlinearity {nonlinearity!r}")
    elif not h.is_complex():  # where h is not 0, at a third of the time that a mask takes
        torch.ops.aten.threshold_backward.grad_input(carry, h.abs(), 0, grad_input=out)
    else:
        # dh = dz + (b/|z|) (dz - u Re(conj(u) dz)) with u = h/|h|, where |h| = |z| + b > 0
        assert bias is not None
        tiny = torch.finfo(bias.dtype).tiny
        size = h.abs()
        ratio = bias / (size - bias).clamp_min_(tiny)
        radial = (carry * h.conj()).real * ratio / size.square().clamp_min_(tiny)
        active = size > 0
        torch.mul(carry, torch.where(active, 1 + ratio, 0.0), out=out)
        out.sub_(h * torch.where(active, radial, 0.0))
