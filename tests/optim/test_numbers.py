"""Decays, counters and rates are the numbers that were given, in every dtype."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import projunn
from projunn import optim
from projunn.nn import BlockUnitaryLinear, UnitaryConv2d, UnitaryLinear, UnitaryRNN, UnitaryRNNCell
from projunn.optim.options import unitary_learning_rate

RULES = {
    "SGD": {"momentum": 0.9},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "AdamW": {"betas": (0.9, 0.999), "amsgrad": True},
    "Lion": {"betas": (0.9, 0.99)},
}


@pytest.fixture(params=RULES)
def rule(request):
    return request.param


@pytest.fixture
def bfloat16_by_default():
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


def matrix(dtype):
    return UnitaryLinear(4, 4, bias=False, dtype=dtype)


def averages(rule, steps, bad=()):
    """The averages of a unitary parameter, and torch.optim's of a plain one with the same gradients."""
    layer = matrix(torch.float64)
    plain = nn.Parameter(layer.weight.detach().clone())
    ours = getattr(optim, rule)([layer.weight], lr=1e-6, **RULES[rule])
    theirs = getattr(optim, rule)([plain], lr=1e-6, **RULES[rule])  # torch's rule, or Lion's
    for step in range(steps):
        layer.weight.grad = torch.randn(4, 4, dtype=torch.float64)
        plain.grad = layer.weight.grad.clone()
        if step in bad:
            layer.weight.grad.fill_(torch.nan)
        else:
            theirs.step()
        ours.step()
    state, reference = ours.state[layer.weight], theirs.state[plain]
    return {name: (value, reference[name]) for name, value in state.items() if name in reference}


@pytest.mark.parametrize("bad", [(), (7,)], ids=["", "a bad step among them"])
def test_averages_in_float64_are_float64s(rule, bad):
    for name, (ours, theirs) in averages(rule, 200, bad).items():
        if name != "step":
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14, msg=name)


@pytest.mark.usefixtures("bfloat16_by_default")
def test_averages_decay_whatever_the_default_dtype_is(rule):
    for name, (ours, theirs) in averages(rule, 50, (3,)).items():
        if name != "step":
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14, msg=name)


@pytest.mark.usefixtures("bfloat16_by_default")
@pytest.mark.parametrize("sketch_rank", [None, 2])
def test_steps_are_counted_beyond_256_whatever_the_default_dtype_is(sketch_rank):
    layer = UnitaryLinear(4, 4, bias=False, dtype=torch.float32, sketch_rank=sketch_rank)
    optimizer = optim.SGD(layer.parameters(), lr=1e-3)
    for _ in range(300):
        layer.zero_grad()
        layer(torch.ones(1, 4, dtype=torch.float32)).sum().backward()
        optimizer.step()
    assert optimizer.state[layer.weight]["step"] == 300


def test_an_explicit_unitary_lr_follows_the_schedule_from_a_warm_up_at_zero():
    layer = matrix(torch.float32)
    optimizer = optim.SGD(layer.parameters(), lr=0.1, unitary_lr=0.01)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: step / 4)
    before = layer.weight.detach().clone()
    rates = []
    for step in range(5):
        layer.weight.grad = torch.randn(4, 4)
        optimizer.step()
        if step == 0:
            assert torch.equal(before, layer.weight)
        rates.append(unitary_learning_rate(optimizer.param_groups[0], (4, 4)))
        scheduler.step()
    assert rates == pytest.approx([0, 0.0025, 0.005, 0.0075, 0.01])


@pytest.mark.parametrize("lr", [0, 0.0, torch.tensor(0.0)], ids=str)
def test_an_explicit_unitary_lr_of_parameters_that_start_with_lr_0_is_refused(rule, lr):
    """In proportion to a schedule that starts at 0 it would be anything."""
    layer, plain = matrix(torch.float32), nn.Parameter(torch.ones(3))
    for unitary_lr in (0.1, torch.tensor(0.1)):
        with pytest.raises(ValueError, match="unitary_lr: got"):
            getattr(optim, rule)(layer.parameters(), lr=lr, unitary_lr=unitary_lr)
        optimizer = getattr(optim, rule)([plain], lr=0.1)
        with pytest.raises(ValueError, match="schedule"):
            optimizer.add_param_group({"params": layer.weight, "lr": lr, "unitary_lr": unitary_lr})
        assert len(optimizer.param_groups) == 1
    getattr(optim, rule)([plain], lr=lr, unitary_lr=0.1)  # which has no unitary parameter
    layer(torch.ones(2, 4)).sum().backward()
    before = layer.weight.detach().clone()
    getattr(optim, rule)(layer.parameters(), lr=lr, unitary_lr=0.0).step()
    assert torch.equal(layer.weight, before)
    getattr(optim, rule)(layer.parameters(), lr=lr)
    groups = [{"params": layer.weight, "lr": 0.1, "unitary_lr": 0.1}, {"params": plain}]
    getattr(optim, rule)(groups, lr=lr)


def test_a_complex_initial_state_of_a_real_recurrence_is_refused():
    x, h = torch.randn(5, 2, 3), torch.randn(1, 2, 4, dtype=torch.complex64)
    for sketch_rank in (None, 1):
        with pytest.raises(TypeError, match=r"hx: got torch.complex64, wanted real"):
            UnitaryRNN(3, 4, sketch_rank=sketch_rank)(x, h)
        with pytest.raises(TypeError, match=r"hx: got torch.complex64, wanted real"):
            UnitaryRNNCell(3, 4, sketch_rank=sketch_rank)(x[0], h[0])
        UnitaryRNN(3, 4, sketch_rank=sketch_rank, dtype=torch.complex64)(x, h)


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8])
def test_numpys_integers_are_integers(integer):
    one, two, four = (integer(n) for n in (1, 2, 4))
    layers = [
        UnitaryLinear(four, four, sketch_rank=two),
        BlockUnitaryLinear(two, two, num_factors=two, sketch_rank=one),
        UnitaryRNN(four, four, num_layers=two, sketch_rank=one),
        UnitaryConv2d(two, two, four, stride=two),
        UnitaryConv2d(two, two, (four, four), stride=(two, two)),
    ]
    for layer in layers:
        optimizer = optim.SGD(layer.parameters(), lr=0.1, rank=two, polish_every=four)
        optimizer.param_groups.clear()
        optimizer.add_param_group({"params": list(layer.parameters()), "rank": one})
        group = optimizer.param_groups[0]
        assert (type(group["rank"]), type(group["polish_every"])) == (int, int)
        assert type(optimizer.defaults["rank"]) is int
    for bad in (np.int64(0), np.float64(1.0), np.True_, True):
        with pytest.raises(ValueError, match="rank"):
            optim.SGD(layers[0].parameters(), lr=0.1, rank=bad)
        with pytest.raises(ValueError, match="in_features"):
            UnitaryLinear(bad, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_the_published_regularizer_is_the_energy_outside_times_the_pixels(dtype):
    """Code of arXiv 2203.05483: minus the energy of the projection of sqrt(N) K on the window."""
    size, window = (4, 6), (3, 3)
    layer = UnitaryConv2d(3, 3, size, dtype=dtype)
    for weight in (layer.weight, layer.own_weight):
        if weight is not None:
            nn.init.normal_(weight)
    response = layer.frequency_response().flatten(0, 1)
    places = torch.tensor([(i % size[0], j % size[1]) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    basis = torch.zeros(9, *size)
    basis[torch.arange(9), places[:, 0], places[:, 1]] = 1
    projector = torch.fft.fft2(basis, norm="ortho").flatten(1).conj()
    published = -torch.tensordot(projector, response, dims=([-1], [0])).abs().square().sum()
    constant = response.abs().square().sum()
    energy = layer.energy_outside(window)
    torch.testing.assert_close(energy * (size[0] * size[1]), published + constant, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["number of numpy", "tensor"])
def test_a_rate_of_another_kind_reaches_the_kernels_as_a_number(kernels, kind):
    """A number of NumPy's is none to Triton."""
    rate = np.float32(0.1) if kind == "number of numpy" else torch.tensor(0.1)
    weights = []
    for lr in (0.1, rate):
        torch.manual_seed(0)
        weight = projunn.UnitaryParameter(projunn.init.haar_(torch.empty(5, 5)).to(kernels.device))
        optimizer = projunn.optim.SGD([weight], lr=lr)
        weight.grad = torch.randn(5, 5).to(kernels.device)
        with kernels.backend():
            optimizer.step()
        weights.append(weight.detach())
        found, scale = optimizer._together._parts[0]._rate()
        assert type(found) is float
        assert scale is None or kind == "tensor"
    torch.testing.assert_close(*weights)
