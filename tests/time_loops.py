"""Time loops to compare: random arguments, the blackboard's loop, and errors against float64."""

from functools import partial

import torch

from projunn_kernels import NONLINEARITIES, recurrence
from projunn_kernels.time_loop.reference import recurrence as recurrence_reference

CASES = [(f, c) for f in NONLINEARITIES for c in (False, True) if not (f == "relu" and c)]


def draw(complex_, nonlinearity, steps=6, batch=3, n=5, dtype=torch.float64):
    pair = (2,) if complex_ else ()
    shapes = ((steps, batch, n), (batch, n), (n, n))
    tensors = [torch.randn(*s, *pair, dtype=dtype) for s in shapes]
    if complex_ and nonlinearity == "tanh":  # near its poles, at i pi / 2, rounding decides
        for tensor in tensors:
            tensor.mul_(0.1)
    tensors = [tensor.requires_grad_() for tensor in tensors]
    bias = None
    if nonlinearity == "modrelu":
        bias = (0.3 * torch.randn(n, dtype=dtype)).requires_grad_()
    return (*tensors, bias)


def numbers(tensor, complex_):
    return torch.view_as_complex(tensor) if complex_ else tensor


def reference(tensors, complex_, nonlinearity, resets=None):
    *stored, bias = tensors
    result = recurrence_reference(*(numbers(t, complex_) for t in stored), bias, nonlinearity, resets)
    return torch.view_as_real(result) if complex_ else result


def pieces(tensors, complex_, nonlinearity, cotangent, run, dtype=None):
    """Output and gradients of everything, of ``run`` on tensors of a dtype."""
    own = [None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
    result = run(own, complex_, nonlinearity)
    wanted = [t for t in own if t is not None]
    return [result.detach(), *torch.autograd.grad(result, wanted, cotangent.to(result.dtype))]


def kernel(tensors, complex_, nonlinearity, resets=None):
    return recurrence(*tensors, nonlinearity, resets=resets)[0]


def moved(tensors, device):
    """Leaves on a device, that want gradients where these do."""
    return [
        None if t is None else t.detach().to(device).requires_grad_(t.requires_grad) for t in tensors
    ]


def small_weight(tensors):
    """States of size 1, whose errors do not grow over time."""
    x, h, w, b = tensors
    scale = (2 * w.shape[0] * (w.ndim - 1)) ** 0.5
    return x, h, (w.detach() / scale).requires_grad_(), b


def check(kernels, tensors, complex_, nonlinearity, floor=1e-6, resets=None):
    """Error against float64 at most eight times PyTorch's in the same dtype (2.9 was seen)."""
    cotangent = torch.randn_like(tensors[0].detach())
    arguments = (tensors, complex_, nonlinearity, cotangent)
    blackboard = partial(reference, resets=resets)
    exact = pieces(*arguments, blackboard, torch.float64)
    plain = pieces(*arguments, blackboard)
    with kernels.backend():
        own = moved(tensors, kernels.device)
        run = partial(kernel, resets=None if resets is None else resets.to(kernels.device))
        ours = pieces(own, complex_, nonlinearity, cotangent.to(kernels.device), run)
    for own, theirs, precise in zip(ours, plain, exact, strict=True):
        assert own.shape == precise.shape
        allowed = 8 * (theirs - precise).abs().max() + floor * precise.abs().max()
        assert (own.cpu() - precise).abs().max() <= allowed
