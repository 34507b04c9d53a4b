"""`projunn.constrain` in the course of a training: the optimizer goes on with what it has kept."""

import copy
import pickle

import pytest
import torch
from torch import nn

import projunn
from projunn.nn import UnitaryLinear
from projunn.optim import SGD, AdamW, Lion, RMSprop

C = torch.complex64
MODULES = {
    "gates": (lambda: nn.LSTM(4, 4), "weight_hh_l0"),
    "filter": (lambda: nn.Conv2d(4, 4, 1), "weight"),
    "groups": (lambda: nn.Conv2d(4, 8, 1, groups=2), "weight"),
    "complex": (lambda: nn.Linear(4, 4, dtype=C), "weight"),
    "real": (lambda: nn.Linear(4, 7), "weight"),
    "attention": (lambda: nn.MultiheadAttention(4, 1), "in_proj_weight"),
    "bank": (lambda: nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), "*.weight"),
}
OPTIMIZERS = {
    "sgd": (SGD, {"momentum": 0.9}),
    "adamw": (AdamW, {"amsgrad": True}),
    "rmsprop": (RMSprop, {"momentum": 0.5, "centered": True}),
    "lion": (Lion, {}),
    "svd": (AdamW, {"factorization": "svd"}),
}


def step(module, optimizer, seed, take=None):
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.grad = torch.randn(p.shape, dtype=p.dtype, generator=generator)
    (take or optimizer.step)()


def trained(name, kind, options):
    """A plain module after two steps."""
    torch.manual_seed(0)
    module = MODULES[name][0]()
    optimizer = kind(module.parameters(), lr=1e-2, **options)
    for seed in range(2):
        step(module, optimizer, seed)
    return module, optimizer


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_steps_are_those_of_a_new_optimizer_that_loads_the_state(name, optimizer):
    kind, options = OPTIMIZERS[optimizer]
    module, own = trained(name, kind, options)
    saved = copy.deepcopy(own.state_dict())
    projunn.constrain(module, MODULES[name][1])
    other = copy.deepcopy(module)
    new = kind(other.parameters(), lr=1e-2, **options)
    new.load_state_dict(saved)
    for seed in range(2, 5):
        step(module, own, seed)
        step(other, new, seed)
    for a, b in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert own.skipped_steps() == 0
    for p in projunn.unitary_parameters(module):
        assert projunn.unitarity_defect(p).max() < 1e-6
        assert own.state[p]["step"].dtype == torch.int64
    own.load_state_dict(own.state_dict())
    step(module, own, 5)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_of_an_optimizer_that_maximizes_goes_on_alike(again):
    """The plain rule averages the negative gradient, which is turned at the first step of either."""
    module, optimizer = trained("real", SGD, {"momentum": 0.9, "maximize": True})
    projunn.constrain(module)
    copied = again((module, optimizer))
    step(module, optimizer, 2)
    step(*copied, 2)
    assert torch.equal(module.weight, copied[0].weight)


def test_the_averages_of_gates_are_split():
    module, optimizer = trained("gates", AdamW, {})
    before = optimizer.state[module.weight_hh_l0]["exp_avg"].clone()
    projunn.constrain(module, "weight_hh_l0")
    optimizer.zero_grad()
    module.weight_hh_l0.grad = torch.zeros(16, 4)
    optimizer.step()
    found = optimizer.state[module.weight_hh_l0]["exp_avg"]
    assert torch.allclose(found, 0.9 * before.view(4, 4, 4))


@pytest.mark.parametrize("name", ["gates", "filter", "complex"])
def test_compiled_steps(name):
    modules = []
    projunn.constrain(nn.Linear(2, 2))  # the first in a process registers hooks, which Dynamo sees
    for compiled in (True, False):
        torch._dynamo.reset()
        module, optimizer = trained(name, AdamW, {})
        take = torch.compile(optimizer.step, backend="eager") if compiled else None
        step(module, optimizer, 2, take)
        projunn.constrain(module, MODULES[name][1])
        for seed in range(3, 5):
            step(module, optimizer, seed, take)
        assert all(projunn.unitarity_defect(p).max() < 1e-6 for p in projunn.unitary_parameters(module))
        modules.append(module)
    for a, b in zip(*(module.parameters() for module in modules), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_averages_of_gradients_are_none_of_the_tangent_part():
    module, optimizer = trained("gates", AdamW, {"averages": "tangent"})
    projunn.constrain(module, "weight_hh_l0")
    with pytest.raises(ValueError, match="averages of the other kind; wanted 'gradient', or a new"):
        step(module, optimizer, 2)


@pytest.mark.parametrize("blocks", [(1, 2), (2, 1)])
@pytest.mark.parametrize("momentum", [0, 0.9])
def test_other_blocks_ask_for_a_new_optimizer(blocks, momentum):
    module = projunn.constrain(nn.Linear(4, 8), blocks=blocks[0])
    optimizer = SGD(module.parameters(), lr=0.1, momentum=momentum)
    for seed in range(2):
        step(module, optimizer, seed)
    projunn.constrain(module, blocks=blocks[1])
    with pytest.raises(ValueError, match=r"another number of matrices.* made after projunn\.constrain"):
        step(module, optimizer, 2)
    step(module, SGD(module.parameters(), lr=0.1, momentum=momentum), 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: projunn.constrain(nn.LSTM(4, 4), "weight_hh_l0"),
        lambda: UnitaryLinear(4, 4, dtype=C),
        lambda: UnitaryLinear(4, 4, sketch_rank=2),
    ],
    ids=["gates", "complex", "sketched"],
)
def test_parameters_that_are_plain_again_ask_for_a_new_optimizer(make):
    """Where their state does not fit: that of one plain matrix does."""
    module = make()
    optimizer = AdamW(module.parameters(), lr=1e-2)
    step(module, optimizer, 0)
    projunn.unconstrain(module)
    words = r"params: .* is plain now.*wanted an optimizer made after projunn\.unconstrain"
    with pytest.raises(RuntimeError, match=words):
        step(module, optimizer, 1)
    step(module, AdamW(module.parameters(), lr=1e-2), 1)
