"""The step that captures itself: what it replays, and when it does not."""

import contextlib
import copy
import weakref

import pytest
import torch
from torch import nn

import projunn
from projunn import FactoredTensor, UnitaryParameter, init
from projunn.nn import UnitaryLinear
from projunn.optim import SGD, AdamW, CapturedStep, captured
from projunn.optim.answers import Answer


class Recorded(CapturedStep):
    """On a CPU: a stand-in for a graph takes its step where the tensors were at its capture."""

    def _check(self):
        pass

    def _capture(self, take, before=None):
        step, polishes = self, getattr(self.optimizer, "_polishes", True)

        class Graph:
            places = step._places()

            def replay(self):
                assert step._places() == self.places
                asked, first = step._asked, step._first
                step.optimizer._polishes = polishes
                take()
                step.optimizer._polishes = True
                step._asked, step._first = asked, first  # a replay runs no hook

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


class Late(Answer):
    """Is there a few looks after it was asked for, as where the host runs ahead of a device."""

    looks = 0

    def __init__(self, tensor):
        super().__init__(tensor)
        self.looks = Late.looks

    def has_arrived(self):
        self.looks -= 1
        return self.looks < 0


def gradients(parameters, steps, bad):
    """Gradients of each step; of some matrices, at random steps, they are not finite."""
    source = torch.Generator().manual_seed(2)
    for _ in range(steps):
        found = [torch.randn(p.shape, generator=source) for p in parameters]
        for grad in found:
            if bad:
                lost = torch.rand(grad.shape[:-2], generator=source) < 0.2
                grad[lost] = torch.nan
        yield found


@pytest.mark.parametrize("late", [0, 1, 3, 100])
@pytest.mark.parametrize("bad", [False, True], ids=["all taken", "some missed"])
@pytest.mark.parametrize("rule", [SGD, AdamW])
def test_no_polish_is_missed(monkeypatch, rule, bad, late):
    """Of parameters of several periods and counts, some of which miss steps: the same bits."""
    monkeypatch.setattr(Late, "looks", late)
    monkeypatch.setattr(captured, "Answer", Late)
    start = [init.haar_(torch.empty(shape)) for shape in ((3, 5, 5), (7, 7), (2, 4, 9), (7, 7))]
    steps, results = 60, []
    for cls in (Recorded, None):
        parameters = [UnitaryParameter(one.clone()) for one in start]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        groups = [
            {"params": parameters[:2], "polish_every": 5},
            {"params": parameters[2:3], "polish_every": 0},
            {"params": parameters[3:]},
        ]
        optimizer = rule(groups, lr=0.1, factorization="tangent")
        step = optimizer.step if cls is None else cls(optimizer)
        for number, found in enumerate(gradients(parameters, steps, bad)):
            for parameter, grad in zip(parameters, found, strict=True):
                parameter.grad.copy_(grad)
            if number == 30:  # behind its back
                optimizer.step()
            elif number == 20:
                optimizer.state[parameters[1]]["step"] += 3
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
                step()
            else:
                step()
        results.append(parameters)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_replays_look_for_a_polish_only_where_one_is_due():
    parameter = UnitaryParameter(init.haar_(torch.empty(6, 6)))
    parameter.grad = torch.randn(6, 6)
    optimizer = SGD([parameter], lr=0.1, polish_every=8)
    step = Recorded(optimizer)
    quiet = []
    for _ in range(35):
        before = step.quiet
        step()
        quiet.append(step.quiet > before)
    assert step.captures == 1
    assert [i for i, one in enumerate(quiet, 1) if not one] == [1, 2, 3, 4, 8, 16, 24, 32]


def test_loaded_counters_are_asked_for_anew_though_they_lie_where_others_did():
    parameter = UnitaryParameter(init.haar_(torch.empty(6, 6)))
    parameter.grad = torch.randn(6, 6)
    optimizer = SGD([parameter], lr=0.1, polish_every=8)
    step = Recorded(optimizer)
    for _ in range(10):
        step()
    state, quiet = dict(optimizer.state[parameter]), step.quiet
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.state[parameter] = state
    step()
    assert step.captures == 1
    assert step.quiet == quiet


def test_without_drift_control_there_is_one_graph():
    for parameter, rule in (
        (nn.Parameter(torch.eye(3)), torch.optim.SGD),
        (UnitaryParameter(torch.eye(3)), SGD),
    ):
        parameter.grad = torch.ones(3, 3)
        options = {"polish_every": 0} if rule is SGD else {}
        step = Recorded(rule([parameter], lr=0.1, **options))
        for _ in range(6):
            step()
        assert (step.captures, step.quiet) == (1, 0)
        assert step.replays > 1


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
    weight = net[2].weight
    found = weight.grad
    weight.grad = found.clone()
    assert step._places() != places
    # an allocator that has freed one gradient may put one of another rank in its place
    weight.grad = FactoredTensor(found.stored_left[:, :1], found.stored_right[:, :1])
    assert step._places() != places
    weight.grad = FactoredTensor(found.stored_left, found.stored_right)
    assert step._places() == places


def test_captures_bear_other_threads_and_share_a_stream(monkeypatch):
    """The thread that pins memory for a `DataLoader` allocates meanwhile; a pool is that of a stream."""
    captures = []

    class Graph:
        def pool(self):
            return "pool"

    class Stream:
        def __init__(self, device):
            self.device = device

    @contextlib.contextmanager
    def graph(_, pool=None, stream=None, capture_error_mode="global"):
        captures.append((pool, stream, capture_error_mode))
        assert current == [stream.device]  # which a capture waits for
        yield

    @contextlib.contextmanager
    def device(given):
        current.append(given)
        yield
        current.pop()

    current = []
    stand_ins = ("CUDAGraph", Graph), ("Stream", Stream), ("graph", graph), ("device", device)
    for name, stand_in in stand_ins:
        monkeypatch.setattr(torch.cuda, name, stand_in, raising=False)
    optimizer = SGD(UnitaryLinear(3, 3).parameters(), lr=0.1)
    step = Recorded(optimizer)
    before = CapturedStep._capture(step, optimizer.step)
    CapturedStep._capture(step, optimizer.step, before)
    (first, stream, mode), (second, other, other_mode) = captures
    assert (first, second) == (None, "pool")
    assert stream is other
    assert mode == other_mode == "thread_local"


def test_its_graphs_do_not_live_as_long_as_the_optimizer():
    optimizer = SGD(UnitaryLinear(3, 3).parameters(), lr=0.1)
    gone = weakref.ref(Recorded(optimizer))
    assert gone() is None
    optimizer.step()


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
        torch.cuda.synchronize()
    assert step.captures == 1
    assert step.replays >= 30
    assert 0 < step.quiet < step.replays
    torch.testing.assert_close(net[2].weight, twin[2].weight, rtol=0, atol=1e-5)
    assert projunn.unitarity_defect(net[0].weight).item() < 1e-5
