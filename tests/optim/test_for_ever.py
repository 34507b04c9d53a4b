"""Steps are counted, polished and seeded for ever: float32 would stop at 2^24."""

import copy
import io

import pytest
import torch

from projunn import OffManifoldWarning, init, optim
from projunn.nn import UnitaryLinear
from projunn.optim.drift import polish_period
from tests.dense import defect

MANY = 2**24 - 1000


def started(rule="SGD", capturable=False, **options):
    """A layer, and its optimizer at step 2^24 - 1000."""
    torch.manual_seed(0)
    layer = UnitaryLinear(4, 4, bias=False)
    optimizer = getattr(optim, rule)(layer.parameters(), lr=1e-2, capturable=capturable, **options)
    step(layer, optimizer)
    optimizer.state[layer.weight]["step"].fill_(MANY)
    return layer, optimizer


def step(layer, optimizer):
    layer.weight.grad = torch.randn_like(layer.weight)
    optimizer.step()


@pytest.mark.parametrize("rule", ["SGD", "RMSprop", "AdamW", "Lion"])
def test_steps_beyond_2_to_the_24_are_counted_and_polished(rule):
    layer, optimizer = started(rule)
    farthest = 0.0
    for _ in range(2000):
        step(layer, optimizer)
        farthest = max(farthest, defect(layer.weight.detach()))
    assert optimizer.state[layer.weight]["step"] == MANY + 2000
    assert farthest < 1e-6
    layer.weight.data.mul_(1.01)

    def until_the_next_polish():
        for _ in range(polish_period(layer.weight)):
            step(layer, optimizer)

    with pytest.warns(OffManifoldWarning):
        until_the_next_polish()
    assert defect(layer.weight.detach()) < 1e-6


@pytest.mark.parametrize("factorization", ["lsi", "column"])
def test_random_factors_differ_from_step_to_step(factorization):
    layer, optimizer = started(factorization=factorization, polish_every=0)
    optimizer.state[layer.weight]["step"].fill_(2**24)
    start, gradient = init.haar_(torch.empty(4, 4)), torch.randn(4, 4)
    results = []
    for _ in range(20):
        layer.weight.data.copy_(start)
        layer.weight.grad = gradient
        optimizer.step()
        results.append(layer.weight.detach().clone())
    assert not all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("capturable", [False, True])
def test_a_checkpoint_beyond_2_to_the_24_goes_on_where_it_was(capturable):
    layer, optimizer = started("AdamW", capturable)
    optimizer.state[layer.weight]["step"].fill_(2**24 + 1)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = optim.AdamW(layer.parameters(), lr=1e-2, capturable=capturable)
    other.load_state_dict(torch.load(file))
    step(layer, other)
    assert other.state[layer.weight]["step"] == 2**24 + 2


def test_a_checkpoint_that_counted_in_float32_goes_on_counting():
    layer, optimizer = started("AdamW")
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["step"] = torch.tensor(2.0**24)
    del saved["state"][0]["missed"]
    other = optim.AdamW(layer.parameters(), lr=1e-2)
    other.load_state_dict(saved)
    for _ in range(3):
        step(layer, other)
    assert other.state[layer.weight]["step"] == 2**24 + 3
    assert other.skipped_steps() == 0
