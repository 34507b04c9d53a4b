"""Parameters that are not unitary: bit for bit what torch.optim does."""

import copy

import pytest
import torch
from torch import nn

from projunn import optim
from projunn.nn import UnitaryLinear

CASES = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "maximize": True}),
    ("RMSprop", {"lr": 0.01}),
    ("RMSprop", {"lr": 0.01, "centered": True, "momentum": 0.9, "weight_decay": 0.1}),
    ("AdamW", {"lr": 0.01}),
    ("AdamW", {"lr": 0.01, "amsgrad": True, "betas": (0.8, 0.9), "maximize": True}),
    ("AdamW", {"lr": 0.01, "foreach": False}),
]


def model(kind):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5, dtype=kind), UnitaryLinear(5, 5, dtype=kind))


@pytest.mark.parametrize("kind", [torch.float32, torch.complex64])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_equal_to_torch(name, options, kind):
    ours, theirs = model(kind), model(kind)
    optimizer = getattr(optim, name)(ours.parameters(), **options)
    plain = [*theirs[0].parameters(), theirs[1].bias]
    reference = getattr(torch.optim, name)(plain, **options)
    for _ in range(5):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        optimizer.step()
        reference.step()
    mine = [*ours[0].parameters(), ours[1].bias]
    assert all(torch.equal(p, q) for p, q in zip(mine, plain, strict=True))
    assert not torch.equal(ours[1].weight, theirs[1].weight)


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "AdamW"])
def test_defaults_are_torchs(name):
    ours = getattr(optim, name)([nn.Parameter(torch.ones(1))])
    theirs = getattr(torch.optim, name)([nn.Parameter(torch.ones(1))])
    assert {key: ours.defaults[key] for key in theirs.defaults} == theirs.defaults


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "AdamW"])
def test_invalid_options_are_refused_as_torch_does(name):
    with pytest.raises(ValueError, match="Invalid learning rate"):
        getattr(optim, name)([nn.Parameter(torch.ones(1))], lr=-1)


def test_works_without_any_unitary_parameter_and_without_any_plain_one():
    plain = nn.Linear(2, 2)
    plain(torch.ones(1, 2)).sum().backward()
    before = copy.deepcopy(plain.weight)
    optim.SGD(plain.parameters(), lr=0.1).step()
    assert not torch.equal(plain.weight, before)
    unitary = UnitaryLinear(3, 3, bias=False)
    unitary(torch.ones(1, 3)).square().sum().backward()
    optim.SGD(unitary.parameters(), lr=0.1).step()
