"""The step that captures itself: what it replays, and when it does not."""

import copy

import pytest
import torch
from torch import nn

import projunn
from projunn.nn import UnitaryLinear
from projunn.optim import SGD, AdamW, CapturedStep


class Recorded(CapturedStep):
    """On a CPU: a stand-in for the graph takes the step where the tensors were at its capture."""

    def _check(self):
        pass

    def _capture(self):
        step, optimizer = self, self.optimizer

        class Graph:
            places = step._places()

            def replay(self):
                assert step._places() == self.places
                optimizer.step()

        return Graph()


def model():
    torch.manual_seed(0)
    return nn.Sequential(UnitaryLinear(6, 6), nn.Tanh(), UnitaryLinear(6, 8, sketch_rank=2))


def trained(net, optimizer, step, steps, *, keep=True):
    source = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(16, 6, generator=source)
        optimizer.zero_grad(set_to_none=not keep)
        net(x).square().sum().backward()
        step()


@pytest.mark.parametrize("rule", [SGD, AdamW])
def test_steps_are_those_of_the_optimizer(rule):
    net = UnitaryLinear(6, 6)
    twin = copy.deepcopy(net)
    optimizer, other = rule(net.parameters(), lr=0.1), rule(twin.parameters(), lr=0.1)
    step = Recorded(optimizer)
    trained(net, optimizer, step, 12)
    trained(twin, other, other.step, 12)
    torch.testing.assert_close(net.weight, twin.weight, rtol=0, atol=0)
    assert (step.captures, step.replays) == (1, 12 - 3)


def test_gradients_that_move_are_stepped_as_usual():
    net = UnitaryLinear(6, 6)
    optimizer = SGD(net.parameters(), lr=0.1)
    step = Recorded(optimizer)
    trained(net, optimizer, step, 8)
    before, kept = step.replays, net.weight.clone()
    net.weight.grad = net.weight.grad.clone()
    step()
    assert step.replays == before
    assert not torch.equal(net.weight, kept)


def test_a_rate_that_is_a_number_is_captured_anew():
    net = UnitaryLinear(6, 6)
    optimizer = SGD(net.parameters(), lr=0.1)
    step = Recorded(optimizer)
    trained(net, optimizer, step, 8)
    optimizer.param_groups[0]["lr"] = 0.01
    trained(net, optimizer, step, 8)
    assert step.captures == 2


@pytest.mark.parametrize("name", ["lr", "betas"])
def test_numbers_in_tensors_on_the_host_are_part_of_a_graph(name):
    net = UnitaryLinear(6, 6)
    numbers = torch.tensor(0.1), torch.tensor(0.9)
    options = {"lr": numbers[0]} if name == "lr" else {"lr": 0.1, "betas": numbers}
    optimizer = torch.optim.AdamW(net.parameters(), foreach=False, **options)
    step = Recorded(optimizer)
    places = step._places()
    assert step._places() == places
    numbers[0].mul_(0.5)
    assert step._places() != places


def test_loaded_state_is_not_replayed_over():
    net = UnitaryLinear(6, 6)
    optimizer = AdamW(net.parameters(), lr=0.1)
    step = Recorded(optimizer)
    trained(net, optimizer, step, 8)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    before = step.replays
    step()
    assert step.replays == before


def test_sketched_gradients_are_found_where_their_factors_lie():
    net = model()
    optimizer = SGD(net.parameters(), lr=0.1)
    step = Recorded(optimizer)
    trained(net, optimizer, step, 3)
    assert len(net[2].weight.grad.stored_left.shape) == 2
    places = step._places()
    net[2].weight.grad = net[2].weight.grad.clone()
    assert step._places() != places


def test_what_cannot_be_captured_is_refused_by_name():
    with pytest.raises(
        ValueError, match="optimizer: got parameters on cpu, wanted all of them on one GPU"
    ):
        CapturedStep(SGD(UnitaryLinear(3, 3).parameters(), lr=0.1, capturable=True))


@pytest.mark.requires_cuda
def test_replays_train_as_steps_do():
    net = nn.Sequential(UnitaryLinear(40, 40), nn.Tanh(), UnitaryLinear(40, 200)).cuda()
    twin = copy.deepcopy(net)
    optimizer, other = (SGD(n.parameters(), lr=0.1, capturable=True) for n in (net, twin))
    with pytest.raises(ValueError, match="capturable"):
        CapturedStep(SGD(net.parameters(), lr=0.1))
    step = CapturedStep(optimizer)
    for _ in range(40):
        x = torch.randn(16, 40, device="cuda")
        for one, rule, take in ((net, optimizer, step), (twin, other, other.step)):
            rule.zero_grad(set_to_none=False)
            one(x).square().sum().backward()
            take()
    assert step.captures == 1
    assert step.replays >= 30
    torch.testing.assert_close(net[2].weight, twin[2].weight, rtol=0, atol=1e-5)
    assert projunn.unitarity_defect(net[0].weight).item() < 1e-5
