"""The time loop of a unitary RNN as one operator, forward and backward.

    h_t = f(x_t + h_{t-1} W^T),   t = 1..T

x (T, batch, n) is the projected input, W (n, n), f one of ``NONLINEARITIES``:

    identity   z                            relu   max(z, 0)
    tanh       tanh z                       modrelu   z / |z| max(|z| + b, 0)   (0 at z = 0)

Complex numbers travel as real pairs, a trailing axis of size 2 on every tensor but ``bias``.  Only
the states are kept for backward: f' is recovered from f(z).  The gradient of W is formed once,
after the loop, by one GEMM over all T x batch rows.  As one opaque operator it costs the same to
compile for any T.  modReLU: Arjovsky, Shah, Bengio, ICML 2016, equation 8.
"""

import torch
from torch import Tensor

from projunn.kernels.backends import operator

NONLINEARITIES = ("modrelu", "relu", "tanh", "identity")


def recurrence_reference(
    inputs: Tensor, initial: Tensor, weight: Tensor, bias: Tensor | None, nonlinearity: str
) -> Tensor:
    """The loop as one would write it on a blackboard: real or complex tensors, autograd's own."""
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


@operator("projunn::recurrence", mutates_args=())
def recurrence(
    inputs: Tensor, initial: Tensor, weight: Tensor, bias: Tensor | None, nonlinearity: str
) -> Tensor:
    """All T hidden states, (T, batch, n), or (T, batch, n, 2) where ``weight`` is (n, n, 2)."""
    states = torch.empty_like(inputs, memory_format=torch.contiguous_format)
    x, h, w, out = _matrices(weight.ndim == 3, inputs, initial, weight, states)
    transposed = w.mT
    for t in range(x.shape[0]):
        z = out[t]
        torch.addmm(x[t], h, transposed, out=z)
        _activate_(z, bias, nonlinearity)
        h = z
    return states


@recurrence.register_fake
def _(inputs, initial, weight, bias, nonlinearity):  # type: ignore[no-untyped-def]
    return torch.empty_like(inputs, memory_format=torch.contiguous_format)


def _matrices(pairs: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.view_as_complex(t.contiguous()) if pairs else t for t in tensors)


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
    elif not h.is_complex():
        torch.mul(carry, h != 0, out=out)
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


@operator("projunn::recurrence_backward", mutates_args=())
def _recurrence_backward(
    grad: Tensor,
    states: Tensor,
    initial: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    nonlinearity: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    pairs = weight.ndim == 3
    grad_inputs = torch.empty_like(states)
    g, h, h0, w, dz = _matrices(pairs, grad, states, initial, weight, grad_inputs)
    conjugate = w.conj().resolve_conj()
    steps = h.shape[0]
    carry = g[steps - 1]
    buffer = torch.empty_like(carry, memory_format=torch.contiguous_format)
    for t in range(steps - 1, -1, -1):
        _activation_gradient(carry, h[t], bias, nonlinearity, dz[t])
        if t:
            carry = torch.addmm(g[t - 1], dz[t], conjugate, out=buffer)
    grad_initial = dz[0] @ conjugate
    grad_weight = (h0.mH @ dz[0]).mT
    if steps > 1:
        grad_weight = grad_weight + (h[:-1].flatten(0, 1).mH @ dz[1:].flatten(0, 1)).mT
    grad_weight = grad_weight.contiguous()
    if bias is None:
        grad_bias = grad.new_empty(0)
    else:
        radial = dz * h.sgn().conj()
        grad_bias = (radial.real if pairs else radial).sum((0, 1))
    if pairs:
        grad_initial, grad_weight = map(torch.view_as_real, (grad_initial, grad_weight))
    return grad_inputs, grad_initial, grad_weight, grad_bias


@_recurrence_backward.register_fake
def _(grad, states, initial, weight, bias, nonlinearity):  # type: ignore[no-untyped-def]
    grad_bias = grad.new_empty(0) if bias is None else torch.empty_like(bias)
    contiguous = [
        torch.empty_like(t, memory_format=torch.contiguous_format) for t in (states, initial, weight)
    ]
    return *contiguous, grad_bias


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    _, initial, weight, bias, ctx.nonlinearity = inputs
    ctx.save_for_backward(output, initial, weight, bias)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    states, initial, weight, bias = ctx.saved_tensors
    *grads, grad_bias = _recurrence_backward(grad, states, initial, weight, bias, ctx.nonlinearity)
    return *grads, None if bias is None else grad_bias, None


recurrence.register_autograd(_backward, setup_context=_setup_context)
for _device in ("cpu", "cuda"):
    recurrence.register_autocast(_device, torch.float32)
