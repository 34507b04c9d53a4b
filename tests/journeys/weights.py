"""Weights that are moved by hand, by averages, and by other optimizers."""

import copy
import warnings

import torch
from torch import nn

import projunn
from projunn import matrix_view, unitarity_defect, unitary_parameters
from tests.dense import defect
from tests.journeys.layers import LAYERS, NEAR, input_of, run, said, same, stored, trains


def stepped_by_torch(layer):
    module = layer.make()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02)
    with said("SGD"):
        for _ in range(8):
            optimizer.zero_grad()
            run(module, input_of(layer, module)).abs().square().sum().backward()
            optimizer.step()
    projunn.project_(module)
    trains(layer, module)


def initialised_by_hand(layer):
    module = layer.make()
    nn.init.kaiming_uniform_(getattr(module, layer.name))
    assert unitarity_defect(getattr(module, layer.name)).max() > 1e-2
    projunn.init.haar_(getattr(module, layer.name).data)
    trains(layer, module)
    nn.init.normal_(getattr(module, layer.name))
    optimizer = projunn.optim.SGD(module.parameters(), lr=1e-3, polish_every=2)
    with said("At the first step", layer.name):
        for _ in range(4):
            run(module, input_of(layer, module)).abs().square().mean().backward()
            optimizer.step()
    assert all(defect(matrix_view(p).detach()) < NEAR for p in unitary_parameters(module))  # pulled back


def averaged(layer):
    module = layer.make()
    average = torch.optim.swa_utils.AveragedModel(module)
    average.update_parameters(module)
    for p, q in zip(unitary_parameters(average), unitary_parameters(layer.make()), strict=True):
        p.detach().lerp_(q.detach(), 0.5)
    assert any(unitarity_defect(p).max() > 1e-3 for p in unitary_parameters(average))
    if layer is not LAYERS["constrained"]:
        with said("Before evaluation"):
            average.eval()
    assert projunn.project_(average) is average
    trains(layer, average.module)


def unconstrained(layer):
    module = layer.make()
    before = copy.deepcopy(module)
    assert projunn.unconstrain(module) is module
    assert all(type(p) is nn.Parameter for p in module.parameters())
    assert unitary_parameters(module) == []
    same(layer, module, before)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            optimizer.zero_grad()
            run(module, input_of(layer, module)).abs().square().sum().backward()
            optimizer.step()
        module.load_state_dict(stored(module), assign=True)
    assert unitary_parameters(copy.deepcopy(module)) == []


def read_as_data(layer):
    module = layer.make()
    weight = getattr(module, layer.name)
    for tensor in (weight.data, weight.detach(), module.state_dict()[layer.name]):
        torch.testing.assert_close(unitarity_defect(tensor), unitarity_defect(weight))
        assert matrix_view(tensor).shape == matrix_view(weight).shape
    for initialise in (projunn.init.haar_, projunn.init.identity_, projunn.init.henaff_):
        initialise(weight.data)
        assert defect(matrix_view(weight).detach()) < NEAR
    with torch.no_grad():
        weight.mul_(2)
    projunn.project_(weight.detach())
    assert defect(matrix_view(weight).detach()) < NEAR
    assert isinstance(projunn.UnitaryParameter(weight.data), projunn.UnitaryParameter)
    again = projunn.UnitaryParameter(weight.data)
    assert (again.pairs, again.blocks) == (weight.pairs, weight.blocks)
