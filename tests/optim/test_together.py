"""Parameters that are alike step together: what is kept from step to step, and what ends that."""

import copy
import weakref
from itertools import chain

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from projunn import UnitaryParameter, init, matrix_view, optim, unitarity_defect

RULES = {
    "SGD": {},
    "SGD with momentum": {"momentum": 0.9, "nesterov": True},
    "SGD, dampened": {"momentum": 0.9, "dampening": 0.5},
    "RMSprop": {"centered": True, "momentum": 0.5},
    "AdamW": {"amsgrad": True},
    "Lion": {},
}
KINDS = ("real", "complex", "pairs", "blocks", "bank")


def parameter(kind, seed, n=5):
    """A parameter of one of the layouts, Haar-random."""
    source = torch.Generator().manual_seed(seed)
    dtype = torch.complex64 if kind in ("complex", "pairs") else torch.float32
    batch = (2,) if kind in ("blocks", "bank") else ()
    weight = init.haar_(torch.empty(*batch, n, n, dtype=dtype), source)
    if kind == "pairs":
        return UnitaryParameter(torch.view_as_real(weight), pairs=True)
    return (
        UnitaryParameter(weight.flatten(0, 1), blocks=2)
        if kind == "blocks"
        else UnitaryParameter(weight)
    )


def optimizer_of(rule, parameters, **options):
    name = rule.split(" ")[0].strip(",")
    return getattr(optim, name)(parameters, lr=0.5, unitary_lr=0.02, **RULES[rule], **options)


def feed(parameters, seed, bad=()):
    """Gradients of a step; NaN for the parameters ``bad``."""
    for i, p in enumerate(parameters):
        source = torch.Generator().manual_seed(1000 * seed + i)
        p.grad = torch.randn(p.shape, dtype=p.dtype, generator=source)
        if i in bad:
            p.grad.view(-1)[3] = torch.nan


def weights(parameters):
    return [matrix_view(p).detach().clone() for p in parameters]


# Options that differ between two groups, and were once those of the first group for both.
DIFFERENT = [
    ("SGD", {"momentum": 0.9}, {"momentum": 0.1}),
    ("SGD", {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "dampening": 0.5}, {"momentum": 0.9}),
    ("SGD", {"polish_every": 0}, {"polish_every": 1}),
    ("RMSprop", {"alpha": 0.9}, {"alpha": 0.5}),
    ("RMSprop", {"eps": 1e-8}, {"eps": 1.0}),
    ("AdamW", {"betas": (0.9, 0.99)}, {"betas": [0.1, 0.5]}),
    ("AdamW", {"amsgrad": True}, {"amsgrad": False}),
    ("Lion", {"betas": (0.9, 0.99)}, {"betas": (0.1, 0.5)}),
]


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize(("rule", "first", "second"), DIFFERENT, ids=str)
def test_each_group_has_its_own_options(rule, first, second, edited):
    """Also where they are set when steps have been taken; next to an optimizer for each group."""
    groups = [[parameter("real", 3 * i + j) for j in range(3)] for i in range(2)]
    apart = copy.deepcopy(groups)
    options = {"lr": 0.5, "unitary_lr": 0.05, "rank": 5}  # no matter where the bases start
    start = (first, first) if edited else (first, second)
    kind, every, others = getattr(optim, rule), [*chain(*groups)], [*chain(*apart)]
    both = kind([{"params": p, **own} for p, own in zip(groups, start, strict=True)], **options)
    single = [kind(p, **options, **own) for p, own in zip(apart, start, strict=True)]
    for number in range(6):
        if edited and number == 3:
            both.param_groups[1].update(second)
            single[1].param_groups[0].update(second)
        feed(every, number)
        for p, q in zip(every, others, strict=True):
            q.grad = p.grad.clone()
        both.step()
        for one in single:
            one.step()
    for p, q in zip(every, others, strict=True):
        torch.testing.assert_close(p, q, atol=2e-6, rtol=0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [1, 4])
def test_gradients_are_free_once_a_step_is_done(rule, count):
    parameters = [parameter("real", seed) for seed in range(count)]
    optimizer = optimizer_of(rule, parameters)
    for number in range(3):
        feed(parameters, number)
        optimizer.step()
        gradients = [weakref.ref(p.grad) for p in parameters]
        optimizer.zero_grad()
        assert not [grad for grad in gradients if grad() is not None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_they_step_as_they_do_alone(rule, kind):
    together = [parameter(kind, seed) for seed in range(5)]
    apart = copy.deepcopy(together)
    one = optimizer_of(rule, together, rank=2)
    each = [optimizer_of(rule, [p], rank=2) for p in apart]
    for optimizer in each:
        feed(apart, 0)
        optimizer.step()
        feed(together, 0)
    one.step()  # whose bases depend on the number of a parameter
    for p, twin, optimizer in zip(together, apart, each, strict=True):
        twin.data.copy_(p.data)
        for name, value in one.state[p].items():
            optimizer.state[twin][name].copy_(value)
    for step in range(1, 6):
        feed(together, step, bad=(step % 5,))
        feed(apart, step, bad=(step % 5,))
        one.step()
        for optimizer in each:
            optimizer.step()
    for mine, theirs in zip(weights(together), weights(apart), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=0)
    for p, twin, optimizer in zip(together, apart, each, strict=True):
        own, other = one.state[p], optimizer.state[twin]
        assert own.keys() == other.keys()
        for name in ("step", "skipped", "missed"):
            assert torch.equal(own[name], other[name]), name


@pytest.mark.parametrize("rule", RULES)
def test_a_bad_gradient_of_one_leaves_it_bit_for_bit(rule):
    together = [parameter("real", seed) for seed in range(4)]
    optimizer = optimizer_of(rule, together)
    for step in range(3):
        feed(together, step)
        optimizer.step()
    before = weights(together)
    state = copy.deepcopy(optimizer.state[together[1]])
    feed(together, 3, bad=(1,))
    optimizer.step()
    after = weights(together)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [False, True, False, False]
    assert [int(optimizer.state[p]["skipped"]) for p in together] == [0, 1, 0, 0]
    for name, value in optimizer.state[together[1]].items():
        if name not in ("step", "skipped", "missed"):
            assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("rule", RULES)
def test_a_resumed_run_takes_the_same_steps(rule):
    together = [parameter("real", seed) for seed in range(4)]
    optimizer = optimizer_of(rule, together)
    for step in range(7):
        feed(together, step)
        optimizer.step()
    twins = copy.deepcopy(together)
    resumed = optimizer_of(rule, twins)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(7, 30):  # over a polish
        for parameters, one in ((together, optimizer), (twins, resumed)):
            feed(parameters, step)
            one.step()
    assert all(torch.equal(a, b) for a, b in zip(together, twins, strict=True))


def noticed(change, steps=4):
    """Whether a change between two steps has the effect that it has on a fresh optimizer."""
    together = [parameter("real", seed) for seed in range(4)]
    optimizer = optimizer_of("SGD with momentum", together)
    for step in range(steps):
        feed(together, step)
        optimizer.step()
    twins = copy.deepcopy(together)
    fresh = optimizer_of("SGD with momentum", twins)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for parameters, one in ((together, optimizer), (twins, fresh)):
        feed(parameters, 9)
        change(parameters, one)
        one.step()
        feed(parameters, 10)
        one.step()
    return all(torch.equal(a, b) for a, b in zip(together, twins, strict=True))


CHANGES = {
    "lr": lambda parameters, one: one.param_groups[0].update(lr=0.1),
    "momentum": lambda parameters, one: one.param_groups[0].update(momentum=0.1),
    "rank": lambda parameters, one: one.param_groups[0].update(rank=2),
    "retraction": lambda parameters, one: one.param_groups[0].update(retraction="polar"),
    "maximize": lambda parameters, one: one.param_groups[0].update(maximize=True),
    "no gradient": lambda parameters, one: setattr(parameters[2], "grad", None),
    "average replaced": lambda parameters, one: one.state[parameters[0]].update(
        momentum_buffer=torch.ones(5, 5)
    ),
    "average edited": lambda parameters, one: one.state[parameters[0]]["momentum_buffer"].fill_(1),
    "average moved": lambda parameters, one: setattr(
        one.state[parameters[0]]["momentum_buffer"],
        "data",
        one.state[parameters[0]]["momentum_buffer"].clone() + 1,
    ),
    "weight edited": lambda parameters, one: parameters[1].data.copy_(torch.eye(5)),
    "weight moved": lambda parameters, one: setattr(parameters[1], "data", torch.eye(5)),
    "weight transposed": lambda parameters, one: setattr(parameters[1], "data", parameters[1].data.mT),
    "gradient of another layout": lambda parameters, one: setattr(
        parameters[1], "grad", parameters[1].grad.mT.contiguous().mT
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_between_two_steps_is_noticed(change):
    assert noticed(CHANGES[change])


def test_a_polish_comes_when_it_is_due_though_nobody_looks_in_between():
    together = [parameter("real", seed, n=8) for seed in range(4)]
    optimizer = optimizer_of("SGD", together)  # every 16 steps
    for step in range(16):
        feed(together, step)
        if step == 14:
            with torch.no_grad():
                for p in together:
                    p.mul_(1.00001)
        optimizer.step()
        if step == 14:
            assert all(unitarity_defect(w) > 1e-5 for w in weights(together))
    assert all(unitarity_defect(w) < 1e-6 for w in weights(together))


class Calls(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("rule", RULES)
def test_more_parameters_are_no_more_calls(rule):
    counted = []
    for number in (4, 40):
        together = [parameter("real", seed) for seed in range(number)]
        optimizer = optimizer_of(rule, together, polish_every=0)
        feed(together, 0)
        optimizer.step()
        with Calls() as calls:
            optimizer.step()
        counted.append(calls.count)
    assert counted[1] == counted[0] < 95


def test_no_call_has_more_matrices_than_a_grid_takes(monkeypatch):
    parameters = [parameter("bank", seed) for seed in range(5)]
    others = copy.deepcopy(parameters)
    results = []
    for most, own in ((65_535, parameters), (4, others)):
        monkeypatch.setattr("projunn.optim.together.MAX_PROGRAMS", most)
        optimizer = optimizer_of("AdamW", own)
        for number in range(3):
            feed(own, number)
            optimizer.step()
        results.append(len(optimizer._together._parts))
    assert results == [1, 3]  # of two parameters each, with two matrices, and one
    for p, q in zip(parameters, others, strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=0)
