"""The learning rate that unitary parameters have when ``unitary_lr`` is not given."""

import copy
import pickle

import pytest
import torch
from torch import nn

import projunn
from projunn import optim
from projunn.nn import UnitaryConv2d, UnitaryLinear, UnitaryRNN

NORMALIZING = ["RMSprop", "AdamW", "Lion"]
LR = 1e-3


def take_step(network, optimizer, step=None):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, network[0].in_features, generator=generator)
    optimizer.zero_grad()
    network(x).sin().sum().backward()
    (step or optimizer.step)()


def trained(build, name, steps=3, **options):
    torch.manual_seed(0)
    network = build()
    optimizer = getattr(optim, name)(network.parameters(), lr=LR, rank=2, **options)
    for _ in range(steps):
        take_step(network, optimizer)
    return [p.detach() for p in network.parameters()]


def same(one, other):
    return all(map(torch.equal, one, other))


@pytest.mark.parametrize("name", NORMALIZING)
@pytest.mark.parametrize(("m", "n"), [(12, 12), (6, 24)])
@pytest.mark.parametrize("sketch_rank", [None, 2])
def test_it_is_16_lr_over_the_root_of_m_n(name, m, n, sketch_rank):
    if name == "Lion" and sketch_rank:
        pytest.skip("takes no sketched gradients")

    def build():
        return nn.Sequential(UnitaryLinear(n, m, sketch_rank=sketch_rank), nn.Linear(m, 6))

    given = trained(build, name, unitary_lr=LR * 16 / (m * n) ** 0.5)
    assert same(trained(build, name), given)
    assert not same(trained(build, name, unitary_lr=LR / 32), given)


def test_of_sgd_it_is_lr_over_32():
    def build():
        return nn.Sequential(UnitaryLinear(12, 12), nn.Linear(12, 6))

    assert same(trained(build, "SGD"), trained(build, "SGD", unitary_lr=LR / 32))


@pytest.mark.parametrize("name", NORMALIZING)
def test_a_step_turns_matrices_of_every_size_by_the_same_angle(name):
    """Of a gradient of rank 1 whose entries have one size; half of it, at W = I, is the tangent part."""
    for n in (8, 64):
        layer = UnitaryLinear(n, n, bias=False)
        optimizer = getattr(optim, name)(layer.parameters(), lr=LR)
        with torch.no_grad():
            layer.weight.copy_(torch.eye(n))
        signs = torch.ones(n), torch.cat([torch.ones(n // 2), -torch.ones(n // 2)])
        layer.weight.grad = torch.outer(*signs)
        optimizer.step()
        turn = layer.weight.detach().double()
        angle = (torch.linalg.matrix_norm(turn - turn.T, 2) / 2).asin().item()
        first = 10 if name == "RMSprop" else 1  # its average of squares starts at 1/100 of the square
        assert angle == pytest.approx(first * 16 * LR / 2, rel=1e-2)


def many(count):
    return nn.Sequential(*[UnitaryLinear(6, 6, bias=False) for _ in range(count)])


@pytest.mark.parametrize(("count", "angle"), [(2, 16.0), (16, 16.0), (64, 4.0)])
def test_the_angles_of_many_matrices_have_a_largest_sum(count, angle):
    given = trained(lambda: many(count), "AdamW", unitary_lr=LR * angle / 6)
    assert same(trained(lambda: many(count), "AdamW"), given)


def test_parameter_groups_that_come_later_count_too():
    first, second = many(10), many(22)
    optimizer = optim.RMSprop(first.parameters(), lr=LR)
    assert "unitary_lr: None, which is 0.00267 (6 x 6)\n" in repr(optimizer)
    optimizer.add_param_group({"params": list(second.parameters()), "unitary_lr": 0.1})
    assert "unitary_lr: None, which is 0.00133 (6 x 6)\n" in repr(optimizer)


def test_a_group_without_unitary_parameters_has_no_rate_to_print():
    groups = [{"params": UnitaryLinear(6, 6).parameters()}, {"params": nn.Linear(6, 6).parameters()}]
    said = repr(optim.AdamW(groups, lr=LR))
    assert "unitary_lr: None, which is 0.00267 (6 x 6)\n" in said
    assert "unitary_lr: None\n" in said


def test_mixed_shapes_have_their_own_rates_in_one_group():
    layers = UnitaryLinear(4, 4), UnitaryConv2d(4, 8, 4), UnitaryRNN(3, 16)
    optimizer = optim.AdamW([p for layer in layers for p in layer.parameters()], lr=LR)
    assert "which is 0.004 (4 x 4), 0.00283 (8 x 4), 0.001 (16 x 16)\n" in repr(optimizer)


@pytest.mark.parametrize("lr", [LR, torch.tensor(LR)], ids=["float", "tensor"])
def test_it_follows_the_schedule(lr):
    def step(**options):
        torch.manual_seed(0)
        network = many(2)
        optimizer = optim.AdamW(network.parameters(), lr=copy.copy(lr), **options)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for _ in range(3):
            take_step(network, optimizer)
            schedule.step()
        return [p.detach() for p in network.parameters()]

    for one, other in zip(step(), step(unitary_lr=LR * 16 / 6), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


def test_a_compiled_step_has_it():
    def step(compiled):
        torch.manual_seed(0)
        network = many(2)
        optimizer = optim.AdamW(network.parameters(), lr=LR)
        take = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for _ in range(2):
            take_step(network, optimizer, take)
        return [p.detach() for p in network.parameters()]

    for one, other in zip(step(True), step(False), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


@pytest.mark.parametrize("compiled", [False, True])
def test_parameters_that_become_unitary_count_at_the_next_step(compiled):
    network = many(32)
    projunn.unconstrain(network[:16])
    optimizer = optim.AdamW(network.parameters(), lr=LR)
    take = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
    take_step(network, optimizer, take)
    assert "which is 0.00267 (6 x 6)\n" in repr(optimizer)
    projunn.constrain(network, "*.weight")
    take_step(network, optimizer, take)
    assert "which is 0.00133 (6 x 6)\n" in repr(optimizer)


@pytest.mark.parametrize("compiled", [False, True])
def test_frozen_and_empty_parameters_do_not_count(compiled):
    """They turn nothing; one that is trained again counts from its next step on."""
    network = many(32)
    network[:16].requires_grad_(False)
    empty = projunn.UnitaryParameter(torch.empty(0, 6, 6))
    optimizer = optim.AdamW([*network.parameters(), empty], lr=LR)
    take = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
    take_step(network, optimizer, take)
    assert "which is 0.00267 (6 x 6)\n" in repr(optimizer)
    network.requires_grad_(True)
    take_step(network, optimizer, take)
    assert "which is 0.00133 (6 x 6)\n" in repr(optimizer)


@pytest.mark.parametrize("way", ["load_state_dict", "pickle"])
def test_what_an_older_version_saved_goes_on_at_its_own_rate(way):
    optimizer = optim.AdamW(many(2).parameters(), lr=LR)
    if way == "load_state_dict":
        saved = optimizer.state_dict()
        del saved["param_groups"][0]["default_angle"]
        optimizer.load_state_dict(saved)
    else:
        del optimizer.param_groups[0]["default_angle"], optimizer.defaults["default_angle"]
        optimizer = pickle.loads(pickle.dumps(optimizer))
    optimizer.add_param_group({"params": list(many(1).parameters())})  # as it would have been there
    assert repr(optimizer).count(f"unitary_lr: None, which is {LR / 32}\n") == 2


def test_what_this_version_saved_and_what_torch_saved_have_the_default():
    network = many(2)
    for saved in (optim.AdamW, torch.optim.AdamW):
        optimizer = optim.AdamW(network.parameters(), lr=LR)
        optimizer.load_state_dict(saved(network.parameters(), lr=LR).state_dict())
        assert "unitary_lr: None, which is 0.00267 (6 x 6)\n" in repr(optimizer)


def test_a_printed_optimizer_tells_where_a_schedule_has_taken_a_rate_that_was_given():
    optimizer = optim.AdamW(many(1).parameters(), lr=LR, unitary_lr=5e-3)
    assert "unitary_lr: 0.005\n" in repr(optimizer)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.01)
    assert "unitary_lr: 0.005, now 5e-05\n" in repr(optimizer)
