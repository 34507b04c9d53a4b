"""The direction of a unitary step is the one that torch's rule takes."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import projunn
from projunn import optim
from projunn.nn import UnitaryLinear
from tests.dense import retracted
from tests.optim.test_plain_rules import CASES

LR = 0.05


def twins(kind):
    """A unitary weight, and a free copy of it."""
    layer = UnitaryLinear(4, 4, bias=False, dtype=kind)
    return layer, nn.Parameter(layer.matrix.detach().clone())


@pytest.mark.parametrize(("name", "options"), CASES)
def test_full_rank_step_follows_torchs_direction(name, options):
    options = {**options, "lr": LR, "weight_decay": 0.0}
    layer, free = twins(torch.float64)
    exact = {"unitary_lr": LR, "rank": 4, "factorization": "svd", "polish_every": 0}
    optimizer = getattr(optim, name)(layer.parameters(), **options, **exact)
    reference = getattr(torch.optim, name)([free], **options)
    for _ in range(6):
        weight = layer.matrix.detach().clone()
        layer.weight.grad = torch.randn(4, 4, dtype=torch.float64)
        before = free.detach().clone()
        free.grad = layer.weight.grad.clone()
        optimizer.step()
        reference.step()
        step = free.detach() - before
        expected = retracted(weight, step, torch.eye(4, dtype=torch.float64), "exp")
        torch.testing.assert_close(layer.matrix.detach(), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "AdamW", "Lion"])
def test_weight_decay_acts_on_plain_parameters_alone(name):
    torch.manual_seed(0)
    ends = {}
    start, gradients = torch.randn(2, 4, 4), torch.randn(3, 2, 4, 4)
    for decay in (0.0, 0.5):
        unitary = projunn.UnitaryParameter(projunn.project_(start[0].clone()))
        plain = nn.Parameter(start[1].clone())
        optimizer = getattr(optim, name)([unitary, plain], lr=LR, unitary_lr=LR, weight_decay=decay)
        for unitary.grad, plain.grad in gradients:
            optimizer.step()
        ends[decay] = unitary.detach(), plain.detach()
    assert torch.equal(ends[0.0][0], ends[0.5][0])
    assert not torch.equal(ends[0.0][1], ends[0.5][1])


def complex_direction(name, options, gradients):
    """The rule written out for complex numbers, the square being g conj(g)."""
    m = torch.zeros_like(gradients[0])
    v = torch.zeros(m.shape, dtype=torch.float64)
    for t, g in enumerate(gradients, 1):
        if name == "AdamW":
            m = 0.9 * m + 0.1 * g
            v = 0.999 * v + 0.001 * (g * g.conj()).real
            direction = m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        else:
            v = 0.99 * v + 0.01 * (g * g.conj()).real
            average = v
            if options.get("centered"):
                m = 0.99 * m + 0.01 * g
                average = v - (m * m.conj()).real
            direction = g / (average.sqrt() + 1e-8)
    return direction


@pytest.mark.parametrize(
    ("name", "options"), [("RMSprop", {}), ("RMSprop", {"centered": True}), ("AdamW", {})]
)
def test_complex_second_moments_are_real(name, options):
    layer, _ = twins(torch.complex128)
    exact = {"unitary_lr": LR, "rank": 4, "factorization": "svd", "polish_every": 0}
    optimizer = getattr(optim, name)(layer.parameters(), lr=LR, **options, **exact)
    gradients = [torch.randn(4, 4, dtype=torch.complex128) for _ in range(4)]
    for gradient in gradients:
        weight = layer.matrix.detach().clone()
        layer.weight.grad = torch.view_as_real(gradient).clone()
        optimizer.step()
    step = -LR * complex_direction(name, options, gradients)
    expected = retracted(weight, step, torch.eye(4, dtype=torch.complex128), "exp")
    torch.testing.assert_close(layer.matrix.detach(), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "AdamW"])
def test_pairs_and_complex_storage_take_the_same_steps(name):
    import projunn

    layer = UnitaryLinear(4, 4, bias=False, dtype=torch.complex64)
    native = nn.Linear(4, 4, bias=False, dtype=torch.complex64)
    with torch.no_grad():
        native.weight.copy_(layer.matrix)
    projunn.constrain(native)
    with torch.no_grad():
        native.weight.copy_(layer.matrix)
    momentum = {} if name == "AdamW" else {"momentum": 0.9}
    optimizers = [
        getattr(optim, name)(m.parameters(), lr=0.1, unitary_lr=0.1, rank=2, **momentum)
        for m in (layer, native)
    ]
    for _ in range(5):
        native.weight.grad = torch.randn(4, 4, dtype=torch.complex64)
        layer.weight.grad = torch.view_as_real(native.weight.grad).clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(layer.matrix, native.weight)


class Reductions(TorchDispatchMode):
    """Lists reductions of whole complex matrices, and of axes of two, which PyTorch does slowly."""

    def __init__(self, entries):
        super().__init__()
        self.entries, self.slow = entries, []

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        name = operator.name()
        if "norm" in name or "sum" in name:
            x = arguments[0]
            pairs = (
                "sum" in name and x.numel() == 2 * self.entries and list(arguments[1]) == [x.ndim - 1]
            )
            if pairs or (x.is_complex() and x.numel() == self.entries):
                self.slow.append(f"{name} of {x.dtype} {tuple(x.shape)}")
        return operator(*arguments, **(options or {}))


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "AdamW"])
def test_steps_of_complex_weights_reduce_real_numbers(name):
    layer = UnitaryLinear(12, 12, bias=False, dtype=torch.complex64)
    optimizer = getattr(optim, name)(layer.parameters(), lr=0.1)
    with Reductions(12 * 12) as seen:
        for _ in range(3):
            layer.weight.grad = torch.randn(12, 12, 2)
            optimizer.step()
    assert not seen.slow


def test_the_printed_optimizer_tells_the_default_rate():
    groups = [
        {"params": [UnitaryLinear(4, 4).weight]},
        {"params": [UnitaryLinear(4, 4).weight], "unitary_lr": 0.5},
    ]
    said = repr(optim.SGD(groups, lr=0.32))
    assert said.count("unitary_lr: ") == 2
    assert "unitary_lr: None, which is 0.01\n" in said
    assert "unitary_lr: 0.5\n" in said
