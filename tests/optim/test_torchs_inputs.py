"""PyTorch's own inputs of tests of optimizers: with each, ours does what `torch.optim`'s does.

Real, complex and, beside them, unitary parameters; those that are not unitary end bit for bit equal.
"""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

from projunn import optim
from projunn.nn import UnitaryLinear
from tests.dense import defect
from tests.torch_internals import internal

common = internal("common_optimizers")

INFOS = {
    i.optim_cls.__name__: i
    for i in common.optim_db
    if i.optim_cls.__name__ in ("SGD", "RMSprop", "AdamW")
}


def inputs():
    for name, info in INFOS.items():
        # A differentiable step refuses leaves that require gradients.
        skip = ("differentiable",)
        for one in common._get_optim_inputs_including_global_cliquey_kwargs(
            "cpu", torch.float32, info, skip
        ):
            yield pytest.param(name, one.kwargs, id=f"{name}: {one.desc}")


EVERY_INPUT = pytest.mark.parametrize(("name", "options"), list(inputs()))


def parameters():
    """Plain parameters, and a unitary one."""
    torch.manual_seed(0)
    plain = [
        torch.randn(5, 3),
        torch.randn(3, dtype=torch.complex64),
        torch.randn(4, dtype=torch.float64),
    ]
    return [nn.Parameter(p) for p in plain], UnitaryLinear(4, 4, bias=False).weight


def fill_gradients(parameters, seed):
    source = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.grad = torch.randn(p.shape, dtype=p.dtype, generator=source)


def optimizers(name, options):
    """Ours, its plain and its unitary parameters; torch's, and the same plain parameters."""
    plain, unitary = parameters()
    same, _ = parameters()
    if options.get("fused"):  # fused rules take no complex numbers
        plain, same = ([p for p in each if not p.is_complex()] for each in (plain, same))
    ours = getattr(optim, name)([*plain, unitary], **copy.deepcopy(options))
    theirs = getattr(torch.optim, name)(same, **copy.deepcopy(options))
    return ours, plain, unitary, theirs, same


def train(pairs, steps):
    for step in range(steps):
        for optimizer, own in pairs:
            fill_gradients(own, step)
            optimizer.step()


def assert_equal(own, others):
    assert all(torch.equal(p, q) for p, q in zip(own, others, strict=True))


@EVERY_INPUT
def test_plain_parameters_step_as_torchs_do_and_unitary_ones_stay_unitary(name, options):
    ours, plain, unitary, theirs, same = optimizers(name, options)
    before = unitary.detach().clone()
    train([(ours, [*plain, unitary]), (theirs, same)], 4)
    assert_equal(plain, same)
    assert not torch.equal(before, unitary)
    assert defect(unitary.detach()) < 1e-6


@EVERY_INPUT
def test_state_goes_on_after_deepcopy_pickle_and_load(name, options):
    ours, plain, unitary, theirs, same = optimizers(name, options)
    train([(ours, [*plain, unitary]), (theirs, same)], 2)
    for way in ("deepcopy", "pickle", "state_dict", "torch.save", "torch's state_dict"):
        if way in ("deepcopy", "pickle"):
            again = copy.deepcopy if way == "deepcopy" else lambda x: pickle.loads(pickle.dumps(x))
            own, optimizer = again(([*plain, unitary], ours))
        else:
            own = [copy.deepcopy(p) for p in (*plain, unitary)]
            if way == "torch's state_dict":
                own = own[:-1]
            optimizer = getattr(optim, name)(own, **copy.deepcopy(options))
            state = (theirs if len(own) == len(plain) else ours).state_dict()
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            optimizer.load_state_dict(
                torch.load(file, weights_only=True) if way == "torch.save" else copy.deepcopy(state)
            )
        reference, others = copy.deepcopy((theirs, same))
        train([(optimizer, own), (reference, others)], 2)
        assert_equal(own[: len(plain)], others)
        assert len(own) == len(plain) or defect(own[-1].detach()) < 1e-6


@EVERY_INPUT
def test_a_step_without_gradients_or_along_zero_moves_nothing_unitary(name, options):
    ours, plain, unitary, *_ = optimizers(name, options)
    before = [p.detach().clone() for p in (*plain, unitary)]
    ours.step()
    assert_equal([*plain, unitary], before)
    unitary.grad = torch.zeros_like(unitary)
    ours.step()
    torch.testing.assert_close(unitary.detach(), before[-1], atol=2e-7, rtol=0)
    assert ours.step(lambda: 3.5) == 3.5
    assert name in repr(ours)


def errors():
    for name, info in INFOS.items():
        for one in info.optim_error_inputs_func("cpu", torch.float32):
            id_ = f"{name}: {one.optimizer_error_input.desc}"
            yield pytest.param(name, one, id=id_)


@pytest.mark.parametrize(("name", "case"), list(errors()))
def test_invalid_arguments_are_refused_as_torch_refuses_them(name, case):
    one = case.optimizer_error_input
    given = [nn.Parameter(torch.randn(2, 3))] if one.params is None else one.params
    if case.error_type is UserWarning:
        with pytest.warns(UserWarning, match=case.error_regex):
            getattr(optim, name)(given, **one.kwargs)
        return
    with pytest.raises(case.error_type, match=case.error_regex):
        getattr(optim, name)(given, **one.kwargs)


@pytest.mark.parametrize("name", INFOS)
def test_named_parameters_and_their_checkpoints(name):
    model = nn.Sequential(UnitaryLinear(4, 4), nn.Linear(4, 2))
    optimizer = getattr(optim, name)(model.named_parameters(), lr=0.1)
    unnamed = getattr(optim, name)(model.parameters(), lr=0.1)
    assert optimizer.param_groups[0]["param_names"] == [n for n, _ in model.named_parameters()]
    fill_gradients(model.parameters(), 0)
    optimizer.step()
    unnamed.load_state_dict(optimizer.state_dict())
    optimizer.load_state_dict(unnamed.state_dict())
    fill_gradients(model.parameters(), 1)
    unnamed.step()
    assert defect(model[0].weight.detach()) < 1e-6


@pytest.mark.parametrize(
    ("rule", "misspelt", "meant"),
    [
        (optim.SGD, "ranks", "rank"),
        (optim.AdamW, "unitarylr", "unitary_lr"),
        (optim.RMSprop, "retracton", "retraction"),
        (optim.Lion, "weight_deca", "weight_decay"),
        (optim.SGDG, "momentun", "momentum"),
        (optim.Isospectral, "side", "sides"),
    ],
)
def test_a_misspelt_option_of_a_group_is_named(rule, misspelt, meant):
    weight = nn.Linear(4, 4).weight
    with pytest.warns(UserWarning, match=f"'{misspelt}'.*did you mean '{meant}'") as caught:
        optimizer = rule([{"params": [weight], misspelt: 2}], lr=0.1)
    assert [w.filename for w in caught] == [__file__]
    assert optimizer.param_groups[0][misspelt] == 2  # taken all the same, as by torch.optim


def test_keys_of_schedulers_and_of_users_are_taken_without_a_word():
    weights = [nn.Linear(4, 4).weight for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = {"name": "first", "lr_scale": 0.5, "layer_decay": 0.9, "steps": 3, "group": 1, 7: None}
        optimizer = optim.SGD([{"params": weights[:1], **own}], lr=0.1, momentum=0.9)
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=10)
        scheduled = {**optimizer.param_groups[0], "params": weights[1:]}
        assert {"initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum"} <= scheduled.keys()
        optimizer.add_param_group(scheduled)
        optim.AdamW([*nn.Linear(2, 2).named_parameters()])


@pytest.mark.parametrize("rule", [optim.SGDG, optim.Isospectral])
def test_a_group_that_maximizes_is_the_group_that_minimizes_the_negative(rule):
    found = []
    for sign in (1, -1):
        weight = torch.nn.Parameter(torch.eye(6))
        group = {"params": [weight], "maximize": sign < 0}
        optimizer = rule([{**group, "stiefel": True} if rule is optim.SGDG else group], lr=0.1)
        weight.grad = sign * torch.arange(36.0).view(6, 6)
        optimizer.step()
        found.append(weight.detach())
    assert torch.equal(*found)
    assert not torch.equal(found[0], torch.eye(6))


@pytest.mark.parametrize("rule", [optim.SGDG, optim.Isospectral])
def test_the_state_of_another_sgd_is_loaded_and_options_that_it_lacks_stay(rule):
    ours = {"stiefel": True, "rank": None} if rule is optim.SGDG else {"sides": "left"}
    weight = torch.nn.Parameter(torch.eye(6))
    weight.grad = torch.randn(6, 6)
    other = torch.optim.SGD([weight], lr=0.2, momentum=0.5)
    other.step()
    weight.data.copy_(torch.eye(6))
    optimizer = rule([{"params": [weight], **ours}], lr=0.1)
    optimizer.load_state_dict(other.state_dict())
    optimizer.step()
    assert defect(weight.detach()) < 1e-6
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"]) == (0.2, 0.5)
    assert {name: group[name] for name in ours} == ours
