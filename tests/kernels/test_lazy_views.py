"""Tensors that PyTorch only notes to be negatives, which it knows and memory does not."""

import pytest
import torch
from torch.func import functional_call

import projunn
from projunn.nn import UnitaryConv2d
from projunn_kernels import refresh_basis_
from projunn_kernels.batches import lying_flat


def lazily_negated(tensor):
    """The same numbers, as the negatives of others."""
    return torch.complex(torch.randn_like(tensor), -tensor).conj().imag


@pytest.mark.parametrize("size", [(4, 4), (9, 9)])
def test_a_convolution_of_imaginary_parts(kernels, size):
    """The kernels of the transforms read signals as they lie, and had their sign wrong."""
    layer, x = UnitaryConv2d(2, 3, size), torch.randn(2, 2, *size)
    cotangent = torch.randn(2, 3, *size)
    results = []
    for backend, device, lazily in (
        ("torch", "cpu", torch.clone),
        (kernels.name, kernels.device, lazily_negated),
    ):
        layer, own = layer.to(device), lazily(x.to(device)).detach().requires_grad_()
        assert own.is_neg() == (lazily is lazily_negated)
        with projunn.backend(backend):
            y = layer(own)
            grads = torch.autograd.grad(y, [own, *layer.parameters()], lazily(cotangent.to(device)))
        results.append([t.cpu() for t in (y, *grads)])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_gradient_of_imaginary_parts(kernels):
    """Autograd itself passes such gradients on, where a loss conjugates."""
    layer, x = UnitaryConv2d(1, 1, (4, 6)), torch.randn(2, 1, 4, 6)
    found = []
    for backend, device in (("torch", "cpu"), (kernels.name, kernels.device)):
        layer = layer.to(device)
        with projunn.backend(backend):
            y = torch.complex(x.to(device), layer(x.to(device))).conj()
            (grad,) = torch.autograd.grad((y * (1 + 2j)).real.sum(), layer.bias)
        found.append(grad.cpu())
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_a_convolution_with_a_bias_that_is_one_imaginary_part(kernels):
    """A single number is contiguous, so that nothing copies it."""
    layer, x = UnitaryConv2d(2, 1, (4, 4)).to(kernels.device), torch.randn(3, 2, 4, 4)
    bias = lazily_negated(torch.full((1,), 3.0, device=kernels.device))
    x = x.to(kernels.device)
    with kernels.backend(), torch.no_grad():
        y = functional_call(layer, {"bias": bias}, x)
        wanted = functional_call(layer, {"bias": bias.clone()}, x)
    torch.testing.assert_close(y, wanted)


def test_a_basis_of_conjugates(kernels):
    left, basis, probe = (
        torch.randn(2, 5, 1, dtype=torch.complex64, device=kernels.device) for _ in "123"
    )
    taken, wanted = torch.ones(2, dtype=torch.bool, device=kernels.device), basis.clone()
    with kernels.backend():
        refresh_basis_(left.conj(), basis, probe, taken)
        refresh_basis_(left.conj_physical(), wanted, probe, taken)
    torch.testing.assert_close(basis, wanted)


def test_one_negative_that_is_contiguous():
    one = lazily_negated(torch.full((1, 1), 3.0))
    assert one.is_contiguous()
    assert one.is_neg()
    assert not lying_flat(one).is_neg()
    assert lying_flat(one).item() == 3.0
