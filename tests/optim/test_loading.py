"""Checkpoints of other ranks, dense runs, torch.optim and older versions load, or refuse in words."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

from projunn import constrain, matrix_view, optim
from projunn.nn import BlockUnitaryLinear, UnitaryLinear
from tests.dense import defect

RULES = {
    "SGD": {"momentum": 0.9},
    "RMSprop": {"momentum": 0.5},
    "AdamW": {},
}
SQUARES = {"square_avg", "exp_avg_sq"}


@pytest.fixture(params=RULES)
def rule(request):
    return request.param


def trained(rule, sketch_rank, steps=3, dtype=torch.float32, make=UnitaryLinear, sizes=(6, 5)):
    torch.manual_seed(3)
    layer = make(*sizes, dtype=dtype, sketch_rank=sketch_rank)
    optimizer = getattr(optim, rule)(layer.parameters(), lr=0.05, **RULES[rule])
    train(layer, optimizer, steps)
    return layer, optimizer


def train(layer, optimizer, steps):
    features = 6
    for _ in range(steps):
        optimizer.zero_grad()
        output = layer(torch.randn(9, features))
        (output.abs().square() * torch.linspace(0, 1, output.shape[-1])).mean().backward()
        optimizer.step()


def resumed(rule, sketch_rank, state, **options):
    layer, optimizer = trained(rule, sketch_rank, 0, **options)
    optimizer.load_state_dict(copy.deepcopy(state))
    return layer, optimizer


def dense(state, name, pairs):
    """An average as a matrix, however it is held."""
    numbers = torch.view_as_complex if pairs else lambda t: t
    if name in state:
        return state[name] if name in SQUARES else numbers(state[name])
    if f"{name}_left" in state:
        return numbers(state[f"{name}_left"]) @ numbers(state[f"{name}_right"]).mH
    row, column = state[f"{name}_row"], state[f"{name}_column"]
    return row * column.mT / row.mean(-2, keepdim=True)


KINDS = pytest.mark.parametrize(
    ("make", "sizes"), [(UnitaryLinear, (6, 5)), (BlockUnitaryLinear, (2, 3))], ids=["linear", "blocks"]
)


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (1, 3), (None, 2), (2, None)], ids=str)
def test_state_of_another_sketch_rank_or_of_a_dense_run_is_converted(
    rule, before, after, dtype, make, sizes
):
    kind = {"dtype": dtype, "make": make, "sizes": sizes}
    old, optimizer = trained(rule, before, **kind)
    layer, other = resumed(rule, after, optimizer.state_dict(), **kind)
    state, held = optimizer.state[old.weight], other.state[layer.weight]
    fresh, reference = trained(rule, after, 2, **kind)
    wanted = reference.state[fresh.weight]
    for name, value in wanted.items():
        if name not in ("basis", "probe") or after is not None:
            assert held[name].shape == value.shape, name
    for name in ("momentum_buffer", "exp_avg", *SQUARES):
        if any(key.startswith(name) for key in state):
            close = {"rtol": 1e-4, "atol": 1e-6}
            expected = dense(state, name, layer.weight.pairs)
            if name in SQUARES and before is None:  # what a product of means can hold of it
                rows, columns = expected.mean(-1, keepdim=True), expected.mean(-2, keepdim=True)
                expected = rows * columns / rows.mean(-2, keepdim=True)
            torch.testing.assert_close(dense(held, name, layer.weight.pairs), expected, **close)
    if after is not None:
        start = layer.weight.sketch.stored_left
        assert torch.equal(start, held["basis"])
        columns = torch.linalg.svdvals(layer.weight.sketch.left)
        assert columns.min() > 0.1  # columns that do not repeat each other
    train(layer, other, 3)
    assert other.skipped_steps() == 0
    assert defect(matrix_view(layer.weight).detach()) < 1e-6
    if after is not None:
        assert layer.weight.grad.rank % after == 0


def test_state_of_other_sizes_is_refused(rule):
    for before, after in ((2, 2), (None, None), (2, None), (None, 2)):
        _, optimizer = trained(rule, before, make=BlockUnitaryLinear, sizes=(2, 3))
        with pytest.raises(ValueError, match=r"state_dict: '\w+' has shape"):
            resumed(rule, after, optimizer.state_dict(), make=BlockUnitaryLinear, sizes=(3, 2))


def models(kind):
    """A model with unitary weights, and the same one that torch.optim trains."""
    torch.manual_seed(0)
    if kind == "gates":
        ours = constrain(nn.GRU(6, 4), "weight_hh_l0")
    elif kind == "complex":
        ours = constrain(nn.Linear(6, 6, dtype=torch.complex64))
    else:
        ours = UnitaryLinear(6, 6, dtype=torch.complex64 if kind == "pairs" else None)
    plain = copy.deepcopy(ours)
    for name, parameter in list(plain._parameters.items()):
        plain._parameters[name] = nn.Parameter(parameter.detach().clone())
    return ours, plain


@pytest.mark.parametrize("kind", ["real", "pairs", "complex", "gates"])
@pytest.mark.parametrize("momentum", [True, False])
def test_a_checkpoint_of_torch_optim_loads_and_trains_on(rule, kind, momentum):
    """Its averages go on, its options are kept, and those that it lacks are those of our optimizer."""
    ours, plain = models(kind)
    options = {} if rule == "AdamW" else {"momentum": 0.9 if momentum else 0}
    theirs = getattr(torch.optim, rule)(plain.parameters(), lr=0.02, **options)
    for _ in range(3):
        for p in plain.parameters():
            p.grad = torch.randn_like(p)
        theirs.step()
    optimizer = getattr(optim, rule)(ours.parameters(), lr=0.1, rank=2, unitary_lr=0.01)
    optimizer.load_state_dict(theirs.state_dict())
    group = optimizer.param_groups[0]
    assert (group["lr"], group["rank"], group["unitary_lr"]) == (0.02, 2, 0.01)
    assert group["base_lr"] == 0.1
    names = [n for n in ("weight", "weight_hh_l0") if n in ours._parameters]
    weight, reference = getattr(ours, names[0]), getattr(plain, names[0])
    before, given = matrix_view(weight).detach().clone(), theirs.state[reference]
    for name, value in optimizer.state[weight].items():
        if name in SQUARES:
            whole = torch.view_as_real(given[name]).sum(-1) if kind == "complex" else given[name]
            whole = whole.sum(-1) if kind == "pairs" else whole
            assert torch.equal(value.flatten(), whole.flatten())
        elif name not in ("step", "missed"):
            assert torch.equal(value.flatten(), given[name].flatten())
    for p in ours.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert not torch.equal(before, matrix_view(weight))
    assert defect(matrix_view(weight).detach()) < 1e-5
    assert optimizer.skipped_steps() == 0


@pytest.mark.parametrize(("sketch_rank", "times"), [(None, 1), (2, 1), (None, 2)])
def test_averages_of_torch_optim_that_maximizes_keep_their_direction(rule, sketch_rank, times):
    """It averages the negative gradient: to maximise f is to minimise -f.

    They are turned once, also if they are saved and loaded again before a step.
    """
    gradients, ends = torch.randn(4, 6, 6), []
    for sign in (1, -1):
        torch.manual_seed(0)
        options = {"lr": 0.01, "maximize": sign < 0, **RULES[rule]}
        theirs = nn.Parameter(torch.eye(6))
        first = getattr(torch.optim, rule)([theirs], **options)
        for theirs.grad in sign * gradients[:3]:
            first.step()
        layer = UnitaryLinear(6, 6, bias=False, sketch_rank=sketch_rank)
        second = first
        for _ in range(times):
            first, second = second, getattr(optim, rule)(layer.parameters(), **options)
            second.load_state_dict(first.state_dict())
        layer.weight.grad = sign * gradients[3]
        second.step()
        ends.append(layer.weight.detach())
    torch.testing.assert_close(ends[0], ends[1])


@pytest.mark.parametrize("momentum", [0, 0.9])
def test_momentum_that_is_turned_on_after_loading(momentum):
    """torch.optim.SGD saves None for a buffer that it does not have."""
    ours, plain = models("real")
    theirs = torch.optim.SGD(plain.parameters(), lr=0.02)
    plain(torch.randn(3, 6)).square().sum().backward()
    theirs.step()
    optimizer = optim.SGD(ours.parameters(), lr=0.1)
    optimizer.load_state_dict(theirs.state_dict())
    optimizer.param_groups[0]["momentum"] = momentum
    ours(torch.randn(3, 6)).square().sum().backward()
    optimizer.step()
    assert optimizer.skipped_steps() == 0


NEWER = ("rank", "retraction", "factorization", "unitary_lr", "polish_every", "capturable", "base_lr")


@pytest.mark.parametrize("lacking", NEWER)
def test_a_checkpoint_without_an_option_keeps_ours(rule, lacking):
    layer, optimizer = trained(rule, None)
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["param_groups"][0][lacking]
    _, other = resumed(rule, None, saved)
    assert other.param_groups[0][lacking] == optimizer.param_groups[0][lacking]
    train(layer, other, 1)


@pytest.mark.parametrize("lacking", NEWER)
def test_a_pickle_of_a_version_without_an_option(rule, lacking):
    layer, optimizer = trained(rule, None)
    for group in optimizer.param_groups:
        del group[lacking]
    optimizer.defaults.pop(lacking, None)
    layer, other = pickle.loads(pickle.dumps((layer, optimizer)))
    assert lacking in other.param_groups[0]
    train(layer, other, 1)
    assert other.skipped_steps() == 0


def test_a_state_without_a_counter_of_skipped_steps(rule):
    layer, optimizer = trained(rule, None)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state.pop("skipped", None)
    layer, other = resumed(rule, None, saved)
    train(layer, other, 1)
    assert other.skipped_steps() == 0


@pytest.mark.parametrize("sketch_rank", [None, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_everything_that_torch_save_writes_is_read_without_running_code(rule, sketch_rank, dtype):
    layer, optimizer = trained(rule, sketch_rank, dtype=dtype)
    content = {
        "state": layer.state_dict(),
        "parameters": list(layer.parameters()),
        "gradients": [p.grad for p in layer.parameters()],
        "optimizer": optimizer.state_dict(),
    }
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert [type(p) for p in loaded["parameters"]] == [type(p) for p in content["parameters"]]
    assert [type(g) for g in loaded["gradients"]] == [type(g) for g in content["gradients"]]
    other, resumed_optimizer = trained(rule, sketch_rank, 0, dtype=dtype)
    other.load_state_dict(loaded["state"])
    resumed_optimizer.load_state_dict(loaded["optimizer"])
    torch.manual_seed(5)
    train(layer, optimizer, 3)
    torch.manual_seed(5)
    train(other, resumed_optimizer, 3)
    assert torch.equal(layer.weight, other.weight)


@pytest.mark.parametrize("sketch_rank", [None, 2], ids=["dense", "sketched"])
def test_a_module_converted_between_steps_takes_its_state_along(rule, sketch_rank):
    """PyTorch converts the parameters alone; its own rules raise as their kernels happen to."""
    layer, late = UnitaryLinear(6, 5, sketch_rank=sketch_rank), UnitaryLinear(3, 3, bias=False)
    both = [*late.parameters(), *layer.parameters()]
    optimizer = getattr(optim, rule)(both, lr=0.1, **RULES[rule])

    def step(late_gradient=None):
        optimizer.zero_grad()
        late.weight.grad = late_gradient
        layer(torch.randn(4, 6, dtype=layer.weight.dtype)).square().sum().backward()
        optimizer.step()

    step()
    layer.double()
    with pytest.raises(TypeError, match=r"params: .*float64.*float32.*load_state_dict"):
        step(torch.ones(3, 3))
    assert not optimizer.state[late.weight]  # nor does a refused step make state of others
    optimizer.load_state_dict(optimizer.state_dict())
    step()
    assert defect(layer.weight) < 1e-6


def test_state_of_a_unitary_parameter_for_one_that_is_plain_now(rule):
    """As in a program that resumes, and does not call `constrain` again."""

    def made(constrained):
        linear = constrain(nn.Linear(6, 6)) if constrained else nn.Linear(6, 6)
        return linear, getattr(optim, rule)(linear.named_parameters(), lr=0.05, **RULES[rule])

    linear, optimizer = made(True)
    train(linear, optimizer, 1)
    again = made(True)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.load_state_dict(optimizer.state_dict())
    with pytest.warns(UserWarning, match=r"nothing keeps them so now: weight\. .*projunn\.constrain"):
        made(False)[1].load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("sketch_rank", [None, 2])
@pytest.mark.parametrize("saved", RULES)
def test_state_of_another_rule_is_refused(rule, saved, sketch_rank):
    _, optimizer = trained(saved, sketch_rank)
    _, other = trained(rule, sketch_rank)
    before = other.state_dict()["state"]
    if saved == rule:
        other.load_state_dict(optimizer.state_dict())
        return
    with pytest.raises(ValueError, match=f"state_dict: got the averages .*not those of {rule} "):
        other.load_state_dict(optimizer.state_dict())
    for index, own in other.state_dict()["state"].items():
        assert all(value is before[index][name] for name, value in own.items())
