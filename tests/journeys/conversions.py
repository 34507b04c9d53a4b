"""Other devices, dtypes and memory formats, and how modules come to be without numbers."""

import contextlib
import copy

import torch
from torch import nn

import projunn
from projunn import matrix_view, unitarity_defect, unitary_parameters
from tests.dense import defect
from tests.journeys.layers import NEAR, dtype_of, input_of, run, same, stored, trains


def to_double_and_back(layer):
    module = layer.make()
    other = copy.deepcopy(module).double()
    assert dtype_of(other) == torch.float64
    same(layer, other, module)
    trains(layer, other)
    back = copy.deepcopy(module).double().float()
    same(layer, back, module)
    trains(layer, back)


def to_complex(layer):
    module = layer.make()
    other = copy.deepcopy(module).to(torch.complex128)
    x = torch.randn(layer.shape, dtype=torch.complex128)
    assert run(other, x).dtype == torch.complex128
    assert defect(matrix_view(unitary_parameters(other)[0]).detach()) < NEAR
    optimizer = projunn.optim.SGD(other.parameters(), lr=1.0)
    run(other, x).abs().square().sum().backward()
    optimizer.step()
    assert defect(matrix_view(unitary_parameters(other)[0]).detach()) < NEAR


def to_half_precision_while_training(layer):
    module = layer.make()
    optimizer = projunn.optim.SGD(module.parameters(), lr=0.1)
    module.bfloat16()
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()


def channels_last(layer):
    module = layer.make()
    other = copy.deepcopy(module).to(memory_format=torch.channels_last)
    same(layer, other, module)
    trains(layer, other)


def shared_memory(layer):
    module = layer.make()
    other = copy.deepcopy(module).share_memory()
    assert all(p.is_shared() for p in other.parameters())
    same(layer, other, module)
    trains(layer, other)


def meta_then_empty_then_loaded(layer):
    module = layer.make()
    with torch.device("meta"):
        other = layer.make()
    other.to_empty(device="cpu")
    other.load_state_dict(stored(module))
    same(layer, other, module)
    trains(layer, other)


def meta_then_assigned(layer):
    """As ``from_pretrained`` does."""
    module = layer.make()
    with torch.device("meta"):
        other = layer.make()
    other.load_state_dict(stored(module), assign=True)
    same(layer, other, module)
    trains(layer, other)


def made_under_fake_tensors(layer):
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        module = layer.make()
        weights = unitary_parameters(module)
        assert [(p.pairs, p.blocks) for p in weights] == [
            (p.pairs, p.blocks) for p in unitary_parameters(module)
        ]
        assert len(weights) > 0
        x = torch.randn(layer.shape)
        assert run(module, x).shape[0] == layer.shape[0]


def made_with_empty_weights(layer):
    """As accelerate does: each parameter is rebuilt from its class and its attributes."""
    register = nn.Module.register_parameter

    def register_empty(module, name, parameter):
        register(module, name, parameter)
        if parameter is not None:
            cls, kwargs = type(module._parameters[name]), module._parameters[name].__dict__
            kwargs["requires_grad"] = parameter.requires_grad
            module._parameters[name] = cls(module._parameters[name].to("meta"), **kwargs)

    module = layer.make()
    try:
        nn.Module.register_parameter = register_empty
        other = layer.make()
    finally:
        nn.Module.register_parameter = register
    assert all(p.is_meta for p in other.parameters())
    other.load_state_dict(stored(module), assign=True)
    same(layer, other, module)
    trains(layer, other)


def rebuilt_by_its_class(layer):
    """As offloading does: ``type(p)(data)`` in the place of each parameter."""
    module = layer.make()
    other = copy.deepcopy(module)
    for name, p in list(other._parameters.items()):
        other._parameters[name] = type(p)(p.detach().clone(), requires_grad=p.requires_grad)
    for p in unitary_parameters(other):
        assert unitarity_defect(p).max() < NEAR
    same(layer, other, module)
    trains(layer, other)


@contextlib.contextmanager
def future(name):
    setter = getattr(torch.__future__, f"set_{name}")
    setter(True)
    try:
        yield
    finally:
        setter(False)


def conversion_by_swapping(layer):
    with future("swap_module_params_on_conversion"):
        module = layer.make()
        other = copy.deepcopy(module)
        held = projunn.optim.SGD(other.parameters(), lr=1.0)  # holds them while they are swapped
        other.to("cpu").double().to("cpu")
        x = input_of(layer, other)
        run(other, x).abs().square().sum().backward()
        held.step()
        assert all(defect(matrix_view(p).detach()) < NEAR for p in unitary_parameters(other))
        assert "basis" in held.state[unitary_parameters(other)[0]]
        other.load_state_dict(stored(module))
        same(layer, other, module)
        trains(layer, other)


def conversion_by_overwriting(layer):
    with future("overwrite_module_params_on_conversion"):
        module = layer.make()
        other = copy.deepcopy(module).to("cpu").double()
        same(layer, other, module)
        trains(layer, other)
