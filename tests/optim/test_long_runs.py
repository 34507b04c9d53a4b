"""Steps are counted beyond 2^24, where float32 stops: the polish and random factorizations go on."""

import copy
import io
import pickle
from itertools import pairwise

import pytest
import torch

import projunn
from projunn import optim
from projunn.nn import UnitaryLinear
from projunn_kernels import polish_when_due_
from tests.dense import defect

STOP = 2**24
KINDS = pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)


@pytest.fixture(params=["SGD", "RMSprop", "AdamW", "Lion"])
def rule(request):
    return getattr(optim, request.param)


def started(rule, count, dtype=torch.float32, **options):
    """A layer and its optimizer after so many steps."""
    layer = UnitaryLinear(4, 4, bias=False, dtype=dtype)
    optimizer = rule(layer.parameters(), **{"lr": 1e-3, **options})
    take(layer, optimizer, 1)
    optimizer.state[layer.weight]["step"].fill_(count)
    return layer, optimizer


def take(layer, optimizer, steps):
    for _ in range(steps):
        layer.weight.grad = torch.randn_like(layer.weight)
        optimizer.step()


def count(layer, optimizer):
    return int(optimizer.state[layer.weight]["step"].item())


@KINDS
def test_steps_are_counted_past_2_24(rule, dtype):
    layer, optimizer = started(rule, STOP - 1000, dtype)
    take(layer, optimizer, 1501)
    assert count(layer, optimizer) == STOP + 501


@KINDS
def test_the_polish_goes_on_past_2_24(rule, dtype):
    layer, optimizer = started(rule, STOP - 100, dtype, polish_every=7)
    for _ in range(20):
        take(layer, optimizer, 7)
        with torch.no_grad():
            layer.weight.mul_(1 + 1e-5)
        take(layer, optimizer, 7)
        assert defect(projunn.matrix_view(layer.weight).detach()) < 2e-6


@pytest.mark.parametrize("factorization", ["lsi", "column"])
def test_random_factorizations_draw_other_numbers_in_every_step_past_2_24(factorization):
    layer, optimizer = started(optim.SGD, STOP - 2, factorization=factorization, polish_every=0)
    start, gradient, seen = layer.weight.detach().clone(), torch.randn(4, 4), []
    for _ in range(8):
        with torch.no_grad():
            layer.weight.copy_(start)
        layer.weight.grad = gradient.clone()
        optimizer.step()
        seen.append(layer.weight.detach().clone())
    if factorization == "column":  # draws one of four columns
        assert any(not torch.equal(seen[4], other) for other in seen[4:])
    else:
        assert all(not torch.equal(a, b) for a, b in pairwise(seen))


@pytest.mark.parametrize("capturable", [False, True])
@KINDS
def test_a_resumed_run_has_the_count_that_was_saved(rule, capturable, dtype):
    _, optimizer = started(rule, STOP + 1, dtype, capturable=capturable)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = UnitaryLinear(4, 4, bias=False, dtype=dtype)
    resumed = rule(other.parameters(), capturable=capturable)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert count(other, resumed) == STOP + 1
    take(other, resumed, 2)
    assert count(other, resumed) == STOP + 3


@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
@KINDS
def test_a_run_of_an_older_version_counts_on(rule, way, dtype):
    """It counted in float32, and knew of no counts of single matrices."""
    layer, optimizer = started(rule, 0, dtype, polish_every=5)
    old = {"step", "skipped", *optimizer._averages(optimizer.param_groups[0]), "basis", "probe"}
    state = optimizer.state[layer.weight]
    for name in [name for name in state if name not in old]:
        del state[name]
    state["step"] = torch.tensor(float(STOP))
    if way == "state_dict":
        other = UnitaryLinear(4, 4, bias=False, dtype=dtype)
        other.load_state_dict(layer.state_dict())
        resumed = rule(other.parameters())
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    elif way == "pickle":
        other, resumed = pickle.loads(pickle.dumps((layer, optimizer)))
    else:
        other, resumed = copy.deepcopy((layer, optimizer))
    take(other, resumed, 3)
    assert count(other, resumed) == STOP + 3
    with torch.no_grad():
        other.weight.mul_(1 + 3e-5)
    take(other, resumed, 6)
    assert defect(projunn.matrix_view(other.weight).detach()) < 2e-6


@pytest.mark.parametrize("kind", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("count", [float, int])
def test_the_device_reads_counts_past_2_24(kernels, kind, count):
    """2^24 + 13 is a multiple of 7, and no number of float32."""
    dtype = torch.float64 if count is float else torch.int64
    weight = projunn.init.haar_(torch.empty(2, 12, 12, dtype=kind)).mul_(1 + 1e-4).to(kernels.device)
    before = weight.clone()
    with kernels.backend():
        for steps in (STOP + 12, STOP + 14):
            polish_when_due_(
                [weight], [torch.tensor(count(steps), dtype=dtype, device=kernels.device)], 7
            )
            assert torch.equal(weight, before)
        polish_when_due_(
            [weight], [torch.tensor(count(STOP + 13), dtype=dtype, device=kernels.device)], 7
        )
    assert defect(weight) < 2e-6


def test_the_count_of_a_traced_step_goes_on():
    layer, optimizer = started(optim.SGD, STOP - 1)
    step = torch.compile(optimizer.step, fullgraph=True, backend="aot_eager")
    for _ in range(4):
        layer.weight.grad = torch.randn(4, 4)
        step()
    assert count(layer, optimizer) == STOP + 3
