"""The time loop against the blackboard loop and autograd's own gradients."""

import pytest
import torch

from projunn.kernels import NONLINEARITIES, recurrence
from projunn.kernels.recurrence import recurrence_reference

CASES = [(f, c) for f in NONLINEARITIES for c in (False, True) if not (f == "relu" and c)]


def draw(complex_, nonlinearity, steps=6, batch=3, n=5, dtype=torch.float64):
    pair = (2,) if complex_ else ()
    shapes = ((steps, batch, n), (batch, n), (n, n))
    tensors = [torch.randn(*s, *pair, dtype=dtype, requires_grad=True) for s in shapes]
    bias = None
    if nonlinearity == "modrelu":
        bias = (0.3 * torch.randn(n, dtype=dtype)).requires_grad_()
    return (*tensors, bias)


def numbers(tensor, complex_):
    return torch.view_as_complex(tensor) if complex_ else tensor


def reference(tensors, complex_, nonlinearity):
    *stored, bias = tensors
    result = recurrence_reference(*(numbers(t, complex_) for t in stored), bias, nonlinearity)
    return torch.view_as_real(result) if complex_ else result


@pytest.mark.parametrize(("nonlinearity", "complex_"), CASES)
@pytest.mark.parametrize("steps", [1, 6])
def test_states_and_gradients(nonlinearity, complex_, steps):
    tensors = draw(complex_, nonlinearity, steps)
    expected = reference(tensors, complex_, nonlinearity)
    result = recurrence(*tensors, nonlinearity)
    torch.testing.assert_close(result, expected, atol=1e-12, rtol=1e-12)
    wanted = [t for t in tensors if t is not None]
    cotangent = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(result, wanted, cotangent),
        torch.autograd.grad(expected, wanted, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("nonlinearity", "complex_"), CASES)
def test_opcheck(nonlinearity, complex_):
    torch.library.opcheck(recurrence, (*draw(complex_, nonlinearity, 3), nonlinearity))


@pytest.mark.parametrize(("nonlinearity", "complex_"), CASES)
def test_strided_input_and_cotangent(nonlinearity, complex_):
    x, h, w, b = draw(complex_, nonlinearity)
    strided = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    result = recurrence(strided, h, w, b, nonlinearity)
    torch.testing.assert_close(result, recurrence(x, h, w, b, nonlinearity))
    (gradient,) = torch.autograd.grad(result.sum(), strided)
    (expected,) = torch.autograd.grad(recurrence(x, h, w, b, nonlinearity).sum(), x)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("complex_", [False, True])
def test_modrelu_at_zero_and_below_threshold(complex_):
    x, h, w, _ = draw(complex_, "identity", steps=1)
    with torch.no_grad():
        x.zero_()
        h.zero_()
    for size in (-1e3, 0.5):  # everything off; everything on, but z = 0 has no phase
        bias = torch.full((5,), size, dtype=torch.float64, requires_grad=True)
        result = recurrence(x, h, w, bias, "modrelu")
        assert torch.count_nonzero(result) == 0
        gradients = torch.autograd.grad(result.sum(), (x, bias))
        assert all(g.isfinite().all() for g in gradients)


def test_error_in_single_precision():
    tensors = draw(False, "tanh", steps=50, dtype=torch.float32)
    exact = reference([None if t is None else t.detach().double() for t in tensors], False, "tanh")
    ours = (recurrence(*tensors, "tanh") - exact).abs().max()
    theirs = (reference(tensors, False, "tanh") - exact).abs().max()
    assert ours <= 4 * theirs + 1e-6
