"""Which calls of an operation reach the registered operator."""

from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from projunn_kernels.operation import OPERATIONS
from projunn_kernels.time_loop import recurrence


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        self.names.append(operator.name())
        return operator(*arguments, **(options or {}))


class Wrapped(torch.Tensor):
    """A subclass that sees every function of PyTorch."""

    seen: ClassVar[list] = []

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        cls.seen.append(str(function))
        return super().__torch_function__(function, types, arguments, options)


def loop():
    inputs, initial = torch.randn(5, 3, 4), torch.randn(3, 4)
    weight = torch.linalg.qr(torch.randn(4, 4))[0].requires_grad_()
    return inputs, initial, weight


def run(inputs, initial, weight):
    return recurrence(inputs, initial, weight, None, "tanh", None, None)[0]


@pytest.fixture
def unregistered(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the registered operator was called")

    for operation in OPERATIONS.values():
        monkeypatch.setattr(operation, "registered", refuse)


def test_eager_calls_do_not(unregistered):
    inputs, initial, weight = loop()
    inputs.requires_grad_()
    found = torch.autograd.grad(run(inputs, initial, weight).sum(), [inputs, weight])
    with torch.no_grad():
        assert not run(inputs, initial, weight).requires_grad

    state, states = initial, []
    for x in inputs:
        state = torch.tanh(x + state @ weight.mT)
        states.append(state)
    expected = torch.autograd.grad(torch.stack(states).sum(), [inputs, weight])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_second_derivative_is_that_of_the_operator():
    inputs, initial, weight = loop()
    (first,) = torch.autograd.grad(
        run(inputs, initial, weight).square().sum(), weight, create_graph=True
    )
    (second,) = torch.autograd.grad(first.square().sum(), weight)

    state, total = initial, 0.0
    for x in inputs:
        state = torch.tanh(x + state @ weight.mT)
        total = total + state.square().sum()
    (first,) = torch.autograd.grad(total, weight, create_graph=True)
    (expected,) = torch.autograd.grad(first.square().sum(), weight)
    torch.testing.assert_close(second, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("wants", [True, False])
def test_modes_see_it(wants):
    inputs, initial, weight = loop()
    with Seen() as seen, torch.set_grad_enabled(wants):
        run(inputs, initial, weight)
    assert "projunn::recurrence" in seen.names


def test_subclasses_see_it():
    inputs, initial, weight = loop()
    Wrapped.seen.clear()
    run(inputs.as_subclass(Wrapped), initial, weight)
    assert any("recurrence" in name for name in Wrapped.seen)


def test_batched_gradients_are_those_of_each():
    inputs, initial, weight = loop()
    states = run(inputs, initial, weight)
    cotangents = torch.randn(3, *states.shape)
    batched = torch.autograd.grad(states, weight, cotangents, is_grads_batched=True, retain_graph=True)[
        0
    ]
    each = [torch.autograd.grad(states, weight, c, retain_graph=True)[0] for c in cotangents]
    torch.testing.assert_close(batched, torch.stack(each), atol=1e-5, rtol=1e-5)
