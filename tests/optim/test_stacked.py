"""Weights of several modules in one tensor, as ``torch.func.stack_module_state`` makes them."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

import projunn
from projunn import UnitaryParameter, constrain, unitarity_defect
from projunn.nn import UnitaryLinear
from projunn.optim import SGD, RMSprop


def stacks_of(*modules):
    return stack_module_state([*modules])[0]


def test_a_stack_of_the_weights_of_modules_is_stepped_as_they_are():
    """In a dtype and on a device of its own too, and whatever module of the shape is known first."""
    gates = [constrain(nn.LSTM(3, 4), "weight_hh_l0") for _ in range(2)]
    other = UnitaryParameter(projunn.init.haar_(torch.empty(16, 4)))
    module = nn.Module()
    module.weight = other  # of the shape of the gates
    stack = stacks_of(*gates)["weight_hh_l0"].detach().double().requires_grad_()
    RMSprop([stack], lr=0.1)
    assert type(stack) is UnitaryParameter
    assert stack.blocks == 4
    assert unitarity_defect(stack).shape == (2, 4)


def test_an_ensemble_that_vmap_runs_stays_unitary():
    modules = [UnitaryLinear(8, 8) for _ in range(3)]
    stacks, skeleton = stacks_of(*modules), copy.deepcopy(modules[0]).to("meta")
    optimizer, x = SGD(list(stacks.values()), lr=0.1), torch.randn(16, 8)
    before = stacks["weight"].detach().clone()
    for _ in range(20):
        optimizer.zero_grad()
        vmap(lambda own: functional_call(skeleton, own, (x,)))(stacks).pow(4).mean().backward()
        optimizer.step()
    assert (stacks["weight"].detach() - before).abs().amax((-2, -1)).min() > 1e-3
    assert unitarity_defect(stacks["weight"]).max() < 1e-6


def test_a_stack_that_no_module_holds_is_named():
    """Its optimizer is made after the modules have gone, but for the one that the function is of."""
    # Of a size that no module of another test has, which may live still.
    modules = [UnitaryLinear(11, 11, dtype=torch.complex64) for _ in range(2)]
    skeleton = copy.deepcopy(modules[0]).to("meta")
    stack = stacks_of(*modules)["weight"]
    del modules
    with pytest.warns(
        UserWarning, match=r"\(2, 11, 11, 2\).*weight of UnitaryLinear.*pairs=True\)"
    ) as said:
        RMSprop([stack], lr=0.1)
    assert said[0].filename == __file__
    assert type(stack) is torch.Tensor
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RMSprop([UnitaryParameter(stack, pairs=True)], lr=0.1)
    del skeleton


def test_other_tensors_and_parameters_of_the_shape_of_a_stack_stay_plain():
    layers = [UnitaryLinear(4, 4, bias=False) for _ in range(2)]
    plain = projunn.unconstrain(UnitaryLinear(4, 4, bias=False))
    tensors = [
        torch.randn(2, 4, 4, requires_grad=True),
        nn.Parameter(torch.stack([layer.weight for layer in layers]).detach().mul(2)),
        stacks_of(*layers)["weight"].detach().to("meta").requires_grad_(),
        stacks_of(plain, plain)["weight"].detach().mul(2).requires_grad_(),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RMSprop(tensors, lr=0.1)
    assert not any(isinstance(tensor, UnitaryParameter) for tensor in tensors)


def test_plain_parameters_that_hold_stacks_of_unitary_ones_are_named():
    """As tensordict's ``TensorDict.from_modules(*modules, as_module=True)`` makes them."""
    model = nn.Sequential(UnitaryLinear(5, 5), UnitaryLinear(5, 5, dtype=torch.complex64))
    held = nn.ParameterList(torch.stack([layer.weight.data] * 2) for layer in model)
    named = r"\(2, 5, 5\) those of weight of UnitaryLinear, \(2, 5, 5, 2\) .* \(pairs=True\); wanted"
    with pytest.warns(UserWarning, match=named) as said:
        SGD(held, lr=0.1)
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constrain(held, "0")
        held[1] = UnitaryParameter(held[1].data, pairs=True)
        SGD(held, lr=0.1)
        projunn.init.identity_(model[0].weight)
        SGD([nn.Parameter(torch.eye(5).expand(2, 5, 5).clone())], lr=0.1)
