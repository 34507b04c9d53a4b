"""Forward mode through whole networks, and derivatives of what is no layer: right, or refused."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad, functional
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

import projunn
from projunn.diagnostics import captured_energy, eigenphases
from projunn.manifold import UnitaryParameter
from projunn.models import ResNet9
from projunn.nn import (
    BlockUnitaryLinear,
    LocalUnitaryConv1d,
    LocalUnitaryConv2d,
    OrthogonalFinetuning,
    UnitaryConv2d,
    UnitaryLinear,
    UnitaryRNN,
    UnitaryRNNCell,
    select_blocks,
)

CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64)


def slope(function, x, direction, step=1e-6):
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


def tangents(function, x, direction, randomness="error"):
    """The derivative along a direction, in each way that forward mode is asked for."""
    yield torch.func.jvp(function, (x,), (direction,))[1]
    yield torch.tensordot(torch.func.jacfwd(function, randomness=randomness)(x), direction, x.ndim)
    with forward_ad.dual_level():
        yield forward_ad.unpack_dual(function(forward_ad.make_dual(x, direction))).tangent


def test_tangents_through_an_rnn_are_not_zero():
    rnn, x = UnitaryRNN(3, 8, dtype=torch.float64), draw(20, 2, 3)
    direction = torch.randn_like(x)
    expected = slope(lambda x: rnn(x)[0], x, direction)
    assert expected.norm() > 1
    for found in tangents(lambda x: rnn(x)[0], x, direction):
        torch.testing.assert_close(found, expected, **CLOSE)


def test_zeros_have_second_derivatives_by_modrelu_of_complex_numbers():
    """A state and an input of zeros are how a sequence begins; a penalty on gradients was NaN there."""
    cell = UnitaryRNNCell(3, 4, dtype=torch.complex128)
    nn.init.constant_(cell.modrelu_bias, 0.1)
    x, h = torch.zeros(2, 3).double(), torch.zeros(2, 4, dtype=torch.complex128)
    for given in (h, h + torch.eye(2, 4)):
        given.requires_grad_()
        loss = torch.view_as_real(cell(x, given)).square().sum()
        (gradient,) = torch.autograd.grad(loss, given, create_graph=True)
        wanted = (*cell.parameters(), given)
        second = torch.autograd.grad(torch.view_as_real(gradient).square().sum(), wanted)
        assert all(torch.isfinite(t).all() for t in second)
        assert bool(second[-1].any()) == bool(given.any())


def test_tangents_through_resnet9_are_not_zero():
    torch.set_default_dtype(torch.float64)
    try:
        net = ResNet9(1, 3, 4, width=2).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    x, direction = draw(2, 1, 4, 4), draw(2, 1, 4, 4)
    for found in tangents(net, x, direction):
        torch.testing.assert_close(found, slope(net, x, direction), **CLOSE)
    torch.testing.assert_close(torch.func.jacfwd(net)(x), functional.jacobian(net, x))


def test_a_backward_may_carry_tangents_that_the_forward_did_not():
    rnn, x = UnitaryRNN(3, 4, dtype=torch.float64), draw(5, 2, 3).requires_grad_()
    y, _ = rnn(x)
    cotangent, direction = torch.randn_like(y), torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, direction, retain_graph=True)  # it is linear
    with forward_ad.dual_level():
        (found,) = torch.autograd.grad(y, x, forward_ad.make_dual(cotangent, direction))
        torch.testing.assert_close(forward_ad.unpack_dual(found).tangent, expected)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("method", ["lsi", "column", "subspace", "svd"])
def test_factors_of_a_matrix_have_derivatives(method, rank):
    basis = draw(5, rank) if method == "subspace" else None

    def product(matrix):
        generator = torch.Generator().manual_seed(3)
        left, right = projunn.factorize(matrix, rank, method, basis=basis, generator=generator)
        return left @ right.mH

    x, direction = draw(5, 4), draw(5, 4)
    expected = slope(product, x, direction)
    for found in tangents(product, x, direction, randomness="same"):
        torch.testing.assert_close(found, expected, **CLOSE)
    x.requires_grad_()
    cotangent = draw(5, 4)
    (gradient,) = torch.autograd.grad(product(x), x, cotangent)
    torch.testing.assert_close((gradient * direction).sum(), (cotangent * expected).sum(), **CLOSE)


def test_selected_matrices_take_part_in_a_transform():
    bank, chosen = UnitaryParameter(draw(5, 3, 3)), torch.tensor([3, 1])

    def function(x):
        return select_blocks(bank, chosen) @ x

    x, direction = draw(3), draw(3)
    _, found = torch.func.jvp(function, (x,), (direction,))
    torch.testing.assert_close(found, bank[chosen] @ direction)
    torch.testing.assert_close(torch.func.jacrev(function)(x), bank[chosen].detach())


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("projunn.retract", lambda w: projunn.retract(w, draw(4, 1), draw(4, 1))),
        ("this diagnostic", projunn.unitarity_defect),
        ("this diagnostic", eigenphases),
        ("this diagnostic", lambda w: captured_energy(w, 1)),
    ],
    ids=["retract", "unitarity_defect", "eigenphases", "captured_energy"],
)
def test_what_comes_without_gradient_says_so_under_transforms(name, function):
    weight = projunn.init.haar_(torch.empty(4, 4, dtype=torch.float64))
    words = pytest.raises(NotImplementedError, match=f"{name} has no derivative")
    with words:
        torch.func.jvp(function, (weight,), (weight,))
    with words:
        torch.func.jacrev(function)(weight)
    with forward_ad.dual_level(), words:
        function(forward_ad.make_dual(weight, weight.clone()))
    # Autograd says itself that there is no gradient.
    assert not function(weight.clone().requires_grad_()).requires_grad
    # Of a constant no derivative is wanted.
    gradient = torch.func.grad(lambda x: (function(weight) * x).sum())(draw())
    assert gradient.isfinite()


def test_diagnostics_of_many_weights_under_vmap():
    weights = draw(3, 4, 4)
    found = torch.vmap(projunn.unitarity_defect)(weights)
    torch.testing.assert_close(found, projunn.unitarity_defect(weights))


LINEARIZED = {
    "linear": (lambda: UnitaryLinear(4, 5), (2, 4)),
    "complex": (lambda: UnitaryLinear(4, 5, dtype=torch.complex128), (2, 4)),
    "blocks": (lambda: BlockUnitaryLinear(2, 2), (2, 4)),
    "recurrent": (lambda: UnitaryRNN(3, 4), (5, 2, 3)),
    "convolution": (lambda: UnitaryConv2d(2, 3, 4), (2, 2, 4, 4)),
    "local": (lambda: LocalUnitaryConv2d(2, 3, 3), (2, 2, 4, 5)),
    "fine-tuned": (lambda: OrthogonalFinetuning(nn.Linear(4, 5), 2), (2, 4)),
    "constrained": (lambda: projunn.constrain(nn.Conv2d(2, 4, 1)), (2, 2, 3, 3)),
}


@pytest.mark.parametrize("name", LINEARIZED)
@pytest.mark.parametrize("by", ["input", "parameters"])
def test_a_layer_is_linearized(name, by):
    make, shape = LINEARIZED[name]
    layer, x = make().double(), draw(*shape)
    point = {k: p.detach().clone() for k, p in layer.named_parameters()} if by == "parameters" else x

    def function(point):
        y = layer(point) if by == "input" else functional_call(layer, point, (x,))
        return y[0] if isinstance(y, tuple) else y

    direction = (
        {k: torch.randn_like(p) for k, p in point.items()} if by == "parameters" else torch.randn_like(x)
    )
    _, expected = torch.func.jvp(function, (point,), (direction,))
    _, linear = torch.func.linearize(function, point)
    torch.testing.assert_close(linear(direction), expected)


def test_make_fx_takes_layers():
    model, x = nn.Sequential(UnitaryLinear(4, 4), LocalUnitaryConv1d(3, 3, 2)), draw(2, 3, 4).float()
    with torch.no_grad():
        traced = make_fx(model)(x)
        torch.testing.assert_close(traced(2 * x), model(2 * x))
