"""The time loop of `projunn_kernels.recurrence` in PyTorch, forward and backward.

The loop is made of GEMMs.  It works in panels of a few hundred rows, so that what it touches stays in
cache: the time steps of a panel are projected, stepped and written out together, and on the way back the
gradients of a panel are added to every sum over time at once.  No other tensor has the size of all
states, except their gradients where `TimeSums` needs all of them.  The inputs, and what projects them,
are real; all other tensors are real or complex.
"""

import threading

import torch
from torch import Tensor
from torch.nn import functional

from projunn_kernels.time_loop.arguments import Recurrence, RecurrenceBackward, numbers, states_shape
from projunn_kernels.time_loop.steps import Steps
from projunn_kernels.time_loop.sums import TimeSums


def recurrence(call: Recurrence) -> tuple[Tensor, Tensor]:
    """All states, and a copy of the last of each sequence."""
    states = call.inputs.new_empty(states_shape(call))
    steps = Steps(states.shape, call.batch_sizes, call.resets)
    _fill_states(call, steps, states)
    return states, steps.last(states)


def recurrence_backward(call: RecurrenceBackward) -> list[Tensor]:
    """The gradients that `projunn_kernels.recurrence_backward` returns."""
    h, h0, w = numbers(call.weight, call.states, call.initial, call.weight)
    grad, grad_last, basis = (
        None if t is None else numbers(call.weight, t)[0]
        for t in (call.grad, call.grad_last, call.basis)
    )
    steps = Steps(h.shape, call.batch_sizes, call.resets)
    sums = TimeSums(h, h0, call, sums_bias=call.bias is not None, basis=basis, steps=steps)
    return _gradients(grad, grad_last, h, w, call.bias, call.nonlinearity, sums)


def _fill_states(call: Recurrence, steps: Steps, states: Tensor) -> None:
    """Write all states into ``states``."""
    h, weight, out = numbers(call.weight, call.initial, call.weight, states)
    inputs, bias = call.inputs, call.bias
    if call.input_weight is None:
        (inputs,) = numbers(call.weight, inputs)
    n, padded = weight.shape[0], _padded_size(weight)
    transposed = functional.pad(weight.mT, (0, padded - n))
    offset = None if bias is None else functional.pad(bias, (0, padded - n))
    panels, scratch, held = steps.panels(), None, steps.sizes[0]
    if padded > n:  # two: the first step of a panel reads the last state of the one before
        scratch = [steps.scratch(out, padded, panels).zero_() for _ in range(2)]
    for number, (begin, end) in enumerate(panels):
        panel = rows = target = steps.part(out, begin, end)
        if scratch is not None:
            panel = scratch[number % 2][: len(target)]
            rows = panel[..., :n]
        _project(steps.rows(inputs, begin, end), call.input_weight, call.input_bias, rows)
        whole = steps.each(panel, begin, end)
        each = zip(whole, whole if scratch is None else steps.each(rows, begin, end), strict=True)
        if steps.even:
            for z, z_rows in each:
                z.addmm_(h, transposed)
                _activate_(z, offset, call.nonlinearity)
                h = z_rows
        else:
            of_step = zip(each, steps.sizes[begin:end], steps.resets[begin:end], strict=True)
            for (z, z_rows), size, reset in of_step:
                if size != held:
                    h, held = h[:size], size
                z.addmm_(h if reset is None else h.masked_fill(reset, 0), transposed)
                _activate_(z, offset, call.nonlinearity)
                h = z_rows
        if scratch is not None:
            target.copy_(rows)


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
    steps, n = sums.steps, weight.shape[0]
    padded, panels, held = _padded_size(weight), steps.panels(), steps.sizes[-1]
    conjugate = functional.pad(weight.conj().resolve_conj(), (0, padded - n))
    count = len(steps.sizes)
    grads = [None] * count if grad is None else list(steps.each(grad, 0, count))
    before = [None, *grads[:-1]]  # of h_{t-1}
    every = states.new_zeros(steps.sizes[0], padded)  # the gradient of h_t, of each row of the batch
    carry, carried = every[:held], every[:held, :n]
    if grads[-1] is not None:
        carried.add_(grads[-1])
    if grad_last is not None:
        every[:, :n].add_(grad_last)
    if not sums.keeps_all:
        kept = steps.scratch(states, n, panels)
    else:
        kept = torch.empty_like(states) if sums.returns_all else _workspace.like(states)
    for begin, end in reversed(panels):
        part = steps.part(states, begin, end)
        panel = steps.part(kept, begin, end) if sums.keeps_all else kept[: len(part)]
        each = list(
            zip(
                steps.each(part, begin, end),
                steps.each(panel, begin, end),
                before[begin:end],
                strict=True,
            )
        )
        if not steps.even:
            of_step = zip(each, steps.sizes[begin:end], steps.resets[begin:end], strict=True)
            for (h, dz, g), size, reset in reversed(list(of_step)):
                if size != held:
                    carry, carried, held = every[:size], every[:size, :n], size
                _activation_gradient(carried, h, bias, nonlinearity, dz)
                if g is None:
                    carry.zero_()
                elif len(g) == size:
                    carried.copy_(g)
                else:  # some sequences end at h_{t-1}
                    carried.copy_(g[:size])
                    every[size : len(g), :n].add_(g[size:])
                carry.addmm_(dz if reset is None else dz.masked_fill(reset, 0), conjugate)
        else:
            for h, dz, g in reversed(each):
                _activation_gradient(carried, h, bias, nonlinearity, dz)
                if g is None:
                    carry.zero_()
                else:
                    carried.copy_(g)
                carry.addmm_(dz, conjugate)  # faster than a product that overwrites
        sums.add(begin, end, panel)
    return sums.finish(every[:, :n], kept if sums.keeps_all else None)


class _Workspace(threading.local):
    """Memory for the gradients of all states, which each thread keeps from step to step.

    When two large pieces of memory are freed together, the C library returns one of them to the system.
    Every step would then pay for its page faults, a fifth of the time of a sketched step.
    """

    most = 1 << 28  # bytes; larger ones are not kept

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8, device="cpu")

    def like(self, states: Tensor) -> Tensor:
        """Uninitialised memory of the shape of ``states``, good until the next call."""
        size = states.numel() * states.element_size()
        if size > self.most:
            return torch.empty_like(states)
        if self._bytes.numel() < size:
            self._bytes = torch.empty(size, dtype=torch.uint8, device="cpu")
        return self._bytes[:size].view(states.dtype).view(states.shape)


_workspace = _Workspace()


def _padded_size(w: Tensor) -> int:
    """n, or for real matrices that are worth it the next multiple of 16: full vectors for the BLAS."""
    n = w.shape[-1]
    return n if w.is_complex() or n < 64 else -(-n // 16) * 16


def _project(u: Tensor, input_weight: Tensor | None, input_bias: Tensor | None, out: Tensor) -> None:
    """``U u_t + c``, or u_t itself, from the rows of a few time steps."""
    if input_weight is None:
        out.copy_(u.view(out.shape))
        return
    columns = torch.view_as_real(out).flatten(-2) if out.is_complex() else out
    columns = columns if columns.ndim == 2 else columns.flatten(0, 1)
    if input_bias is None:
        torch.mm(u, input_weight.mT, out=columns)
    else:
        torch.addmm(input_bias, u, input_weight.mT, out=columns)


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
