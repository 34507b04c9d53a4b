"""The time loop of a unitary RNN as one operator, forward and backward.

    h_t = f(x_t + h_{t-1} W^T),   t = 1..T

x (T, batch, n) is the projected input, W (n, n), f one of ``NONLINEARITIES``:

    identity   z                            relu   max(z, 0)
    tanh       tanh z                       modrelu   z / |z| max(|z| + b, 0)   (0 at z = 0)

Complex numbers travel as real pairs, a trailing axis of size 2 on every tensor but ``bias``.  Only
the states are kept for backward: f' is recovered from f(z).  The gradient of W is formed once,
after the loop, by one GEMM over all T x batch rows.  As one opaque operator it costs the same to
compile for any T.  On a GPU the loop is one launch in each direction (`jit/recurrence.py`); elsewhere
it is a loop of GEMMs between two buffers that stay in cache.  modReLU: Arjovsky, Shah, Bengio, ICML
2016, equation 8.
"""

import torch
from torch import Tensor
from torch.nn import functional

from projunn.kernels.backends import operator, uses_triton

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
    if uses_triton(inputs):
        from projunn.kernels.jit import launch_recurrence

        return launch_recurrence.forward(
            inputs.contiguous(), initial.contiguous(), weight.contiguous(), bias, nonlinearity
        )
    states = torch.empty_like(inputs, memory_format=torch.contiguous_format)
    x, h, w, out = _matrices(weight.ndim == 3, inputs, initial, weight, states)
    n = w.shape[-1]
    padded = _padded_size(w)
    transposed = functional.pad(w, (0, padded - n, 0, padded - n)).mT
    offset = None if bias is None else functional.pad(bias, (0, padded - n))
    z, h = h.new_zeros(h.shape[0], padded), functional.pad(h, (0, padded - n))
    z_rows, h_rows = z[:, :n], h[:, :n]
    for x_t, out_t in zip(x.unbind(), out.unbind(), strict=True):
        z_rows.copy_(x_t)
        z.addmm_(h, transposed)
        _activate_(z, offset, nonlinearity)
        out_t.copy_(z_rows)
        z, h, z_rows, h_rows = h, z, h_rows, z_rows
    return states


@recurrence.register_fake
def _(inputs, initial, weight, bias, nonlinearity):  # type: ignore[no-untyped-def]
    return torch.empty_like(inputs, memory_format=torch.contiguous_format)


def _matrices(pairs: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.view_as_complex(t.contiguous()) if pairs else t for t in tensors)


def _padded_size(w: Tensor) -> int:
    """n, or for real matrices that are worth it the next multiple of 16: full vectors for the BLAS."""
    n = w.shape[-1]
    return n if w.is_complex() or n < 64 else -(-n // 16) * 16


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


@operator("projunn::recurrence_backward", mutates_args=())
def recurrence_backward(
    grad: Tensor,
    states: Tensor,
    initial: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    nonlinearity: str,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the inputs, initial state, weight and bias; the last two empty if there are none."""
    if uses_triton(states):
        return _triton_backward(grad, states, initial, weight, bias, nonlinearity, wants_weight)
    pairs = weight.ndim == 3
    grad_inputs = torch.empty_like(states)
    g, h, h0, w, dz = _matrices(pairs, grad, states, initial, weight, grad_inputs)
    n = w.shape[-1]
    padded = _padded_size(w)
    conjugate = functional.pad(w.conj().resolve_conj(), (0, padded - n, 0, padded - n))
    d, carry = (h.new_zeros(h.shape[1], padded) for _ in range(2))
    d_rows, carry_rows = d[:, :n], carry[:, :n]
    for g_t, h_t, dz_t in zip(*(reversed(t.unbind()) for t in (g, h, dz)), strict=True):
        carry_rows.add_(g_t)
        _activation_gradient(carry_rows, h_t, bias, nonlinearity, d_rows)
        dz_t.copy_(d_rows)
        torch.mm(d, conjugate, out=carry)
    grad_initial = carry_rows.clone()
    grad_weight = _weight_gradient(h, h0, dz, pairs) if wants_weight else grad.new_empty(0)
    grad_bias = grad.new_empty(0) if bias is None else _bias_gradient(h, dz)
    if pairs:
        grad_initial = torch.view_as_real(grad_initial)
    return grad_inputs, grad_initial, grad_weight, grad_bias


def _triton_backward(
    grad: Tensor,
    states: Tensor,
    initial: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    nonlinearity: str,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from projunn.kernels.jit import launch_recurrence

    grad_inputs, grad_initial, grad_bias = launch_recurrence.backward(
        grad.contiguous(), states, weight.contiguous(), bias, nonlinearity
    )
    grad_weight = None
    if wants_weight:
        pairs = weight.ndim == 3
        h, h0, dz = _matrices(pairs, states, initial, grad_inputs)
        grad_weight = _weight_gradient(h, h0, dz, pairs)
    empty = grad.new_empty(0)
    return (
        grad_inputs,
        grad_initial,
        empty if grad_weight is None else grad_weight,
        empty.clone() if grad_bias is None else grad_bias,
    )


def _bias_gradient(h: Tensor, dz: Tensor) -> Tensor:
    """``sum Re(conj(sgn h) dz)``, a time step at a time: nothing of the size of all states is made."""
    total = torch.zeros(h.shape[1:], dtype=dz.dtype.to_real(), device=dz.device)
    for h_t, dz_t in zip(h.unbind(), dz.unbind(), strict=True):
        if h.is_complex():
            total += (dz_t * h_t.sgn().conj()).real
        else:
            total.addcmul_(h_t.sign(), dz_t)
    return total.sum(0)


def _weight_gradient(h: Tensor, h0: Tensor, dz: Tensor, pairs: bool) -> Tensor:
    """``sum_t dz_t^T conj(h_{t-1})``, contiguous: a GEMM over T x batch rows, and one for h_0."""
    grad_weight = (h0.mH @ dz[0]).mT
    if h.shape[0] > 1:
        grad_weight = grad_weight + (h[:-1].flatten(0, 1).mH @ dz[1:].flatten(0, 1)).mT
    grad_weight = grad_weight.contiguous()
    return torch.view_as_real(grad_weight) if pairs else grad_weight


@recurrence_backward.register_fake
def _(grad, states, initial, weight, bias, nonlinearity, wants_weight):  # type: ignore[no-untyped-def]
    contiguous = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (states, initial)]
    last = (weight if wants_weight else None, bias)
    return *contiguous, *(grad.new_empty(0) if t is None else t.new_empty(t.shape) for t in last)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    _, initial, weight, bias, ctx.nonlinearity = inputs
    ctx.save_for_backward(output, initial, weight, bias)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    states, initial, weight, bias = ctx.saved_tensors
    wanted = ctx.needs_input_grad[2]
    *grads, grad_weight, grad_bias = recurrence_backward(
        grad, states, initial, weight, bias, ctx.nonlinearity, wanted
    )
    return *grads, grad_weight if wanted else None, None if bias is None else grad_bias, None


recurrence.register_autograd(_backward, setup_context=_setup_context)
for _device in ("cpu", "cuda"):
    recurrence.register_autocast(_device, torch.float32)
