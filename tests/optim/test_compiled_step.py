"""The optimizer step under torch.compile(fullgraph=True): what the eager step does, in one graph."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.optim import lr_scheduler

import projunn
from projunn import matrix_view, optim
from projunn.manifold import UnitaryParameter
from projunn.nn import BlockUnitaryLinear, ModReLU, UnitaryLinear
from projunn.optim import compiled as traced
from projunn.optim.member import Member
from tests.dense import defect

RULES = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "RMSprop": {"lr": 0.01, "momentum": 0.5, "centered": True},
    "AdamW": {"lr": 0.01, "amsgrad": True},
    "Lion": {"lr": 0.01, "weight_decay": 0.01},
}


def rule_named(name):
    cls, options = getattr(optim, name), RULES[name]
    return lambda parameters, **more: cls(parameters, **{"polish_every": 7, **options, **more})


@pytest.fixture(params=RULES)
def rule(request):
    return rule_named(request.param)


@pytest.fixture(params=["SGD", "AdamW"])
def one_of_two(request):
    """Rules of one average and of three, where what is tested is the same code for all rules."""
    return rule_named(request.param)


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def network():
    """Real, complex (as pairs, and natively), tall and batched unitary weights, and plain ones."""
    torch.manual_seed(0)
    return nn.ModuleList(
        [
            UnitaryLinear(5, 5),
            UnitaryLinear(5, 5, dtype=torch.complex64),
            projunn.constrain(nn.Linear(4, 4, dtype=torch.complex64)),
            projunn.constrain(nn.GRU(3, 4), "weight_hh_l0"),
            BlockUnitaryLinear(3, 4, bias=False),
            UnitaryLinear(4, 7, bias=False),
        ]
    )


def groups(model):
    half = list(model.parameters())
    return [{"params": half[:5]}, {"params": half[5:], "rank": 2, "retraction": "cayley"}]


def compiled(optimizer, backend="eager", fullgraph=True):
    @torch.compile(fullgraph=fullgraph, backend=backend)
    def step():
        optimizer.step()

    return step


def graphs():
    return counters["stats"]["unique_graphs"]


def feed(*models, seed=0):
    """The same gradients for all of them; none for one plain and one unitary parameter."""
    source = torch.Generator().manual_seed(seed)
    for i, same in enumerate(zip(*(m.parameters() for m in models), strict=True)):
        gradient = torch.randn(same[0].shape, dtype=same[0].dtype, generator=source)
        for p in same:
            p.grad = None if i in (1, 2) else gradient.clone()


def assert_alike(mine, reference):
    """Unitary parameters bit for bit, the others (which are traced) to rounding; and their state."""
    (model, optimizer), (other, expected) = mine, reference
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        state, wanted = optimizer.state.get(p, {}), expected.state.get(q, {})
        assert state.keys() == wanted.keys()
        pairs = [(p, q), *((state[name], wanted[name]) for name in state)]
        for value, other_value in pairs:
            if isinstance(p, UnitaryParameter):
                assert torch.equal(value, other_value)
            else:
                torch.testing.assert_close(value, other_value)


def twins(rule, **options):
    models = network(), network()
    return [(m, rule(groups(m), **options)) for m in models]


def run(mine, reference, step, count, start=0):
    for t in range(start, start + count):
        feed(mine[0], reference[0], seed=t)
        step()
        reference[1].step()
        for _, optimizer in (mine, reference):
            optimizer.zero_grad(set_to_none=True)
    assert_alike(mine, reference)


def test_equals_the_eager_step_in_one_graph(rule):
    mine, reference = twins(rule)
    before = copy.deepcopy(mine[0])
    run(mine, reference, compiled(mine[1], "aot_eager"), 20)
    assert graphs() == 1
    assert not counters["graph_break"]
    moved = [
        not torch.equal(p, q) for p, q in zip(mine[0].parameters(), before.parameters(), strict=True)
    ]
    assert moved == [i not in (1, 2) for i in range(len(moved))]
    steps = {
        int(mine[1].state[p]["step"]) for p in projunn.unitary_parameters(mine[0]) if mine[1].state[p]
    }
    assert steps == {20}


@pytest.mark.requires_cpp
def test_compiles_with_inductor(one_of_two):
    """The weight of a complex dtype, too, for which Inductor has no operators that work in place."""
    mine, reference = twins(one_of_two)
    run(mine, reference, compiled(mine[1], "inductor"), 8)
    assert graphs() == 1


def test_mixes_with_eager_steps_and_loaded_state(one_of_two):
    mine, reference = twins(one_of_two)
    run(mine, reference, mine[1].step, 3)
    run(mine, reference, compiled(mine[1]), 3, start=3)
    run(mine, reference, mine[1].step, 3, start=6)
    # Compiled to eager, and on in the same compiled function after a load.
    saved = copy.deepcopy((mine[0].state_dict(), mine[1].state_dict()))
    other = network()
    resumed = one_of_two(groups(other))
    other.load_state_dict(saved[0])
    resumed.load_state_dict(copy.deepcopy(saved[1]))  # which the optimizer shares from now on
    assert_alike((other, resumed), reference)
    step = compiled(resumed)
    run((other, resumed), reference, step, 3, start=9)
    other.load_state_dict(saved[0])
    kept_alive = resumed.state_dict()  # the tensors that the graph has known so far
    resumed.load_state_dict(copy.deepcopy(saved[1]))
    mine[1].zero_grad()
    for t in range(9, 12):
        feed(other, mine[0], seed=t)
        step()
        mine[1].step()
    assert_alike((other, resumed), mine)
    assert kept_alive["state"]


@pytest.mark.parametrize("factorization", ["lsi", "column", "svd", "tangent"])
def test_every_factorization(rule, factorization):
    mine, reference = twins(rule, factorization=factorization)
    run(mine, reference, compiled(mine[1]), 4)
    assert graphs() == 1


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "AdamW"])
def test_capturable(name):
    cls = getattr(optim, name)
    mine, reference = twins(lambda parameters, **o: cls(parameters, **RULES[name], **o), polish_every=3)
    for group in mine[1].param_groups:
        group["capturable"] = True
    run(mine, reference, compiled(mine[1]), 8)
    assert graphs() == 1


def test_dampened_momentum_starts_undampened():
    def rule(parameters, **options):
        return optim.SGD(parameters, lr=0.1, momentum=0.9, dampening=0.5, **options)

    mine, reference = twins(rule)
    run(mine, reference, compiled(mine[1]), 6)
    assert graphs() <= 2  # torch traces the first step of the plain parameters for itself


# A scheduler of torch wraps optimizer.step in a function that Dynamo skips, for torch's optimizers as
# for ours: the step is one graph still, but not the function that calls it.
@pytest.mark.parametrize("unitary_lr", [None, 0.02])
def test_a_schedule_of_a_number_traces_again_and_is_followed(one_of_two, unitary_lr):
    mine, reference = twins(one_of_two, unitary_lr=unitary_lr)
    schedules = [lr_scheduler.StepLR(o, 3, 0.1) for _, o in (mine, reference)]
    step = compiled(mine[1], fullgraph=False)
    for t in range(9):
        run(mine, reference, step, 1, start=t)
        for schedule in schedules:
            schedule.step()
    assert graphs() <= 3


@pytest.mark.parametrize("unitary_lr", [None, 0.02])
def test_a_schedule_of_a_tensor_does_not_trace_again(one_of_two, unitary_lr):
    mine, reference = twins(one_of_two, unitary_lr=unitary_lr, lr=torch.tensor(0.05))
    schedules = [lr_scheduler.ExponentialLR(o, 0.8) for _, o in (mine, reference)]
    step = compiled(mine[1], fullgraph=False)
    for t in range(8):
        run(mine, reference, step, 1, start=t)
        for schedule in schedules:
            schedule.step()
    assert graphs() == 1
    assert mine[1].param_groups[0]["lr"] < 0.01


def test_other_gradients_and_options_are_noticed(one_of_two):
    mine, reference = twins(one_of_two)
    step = compiled(mine[1])
    run(mine, reference, step, 2)
    for model, optimizer in (mine, reference):
        optimizer.param_groups[0]["rank"] = 3
        model[0].weight.requires_grad_(False)
    for t in range(4):
        feed(mine[0], reference[0], seed=t)
        if t % 2:
            mine[0][0].weight.grad = reference[0][0].weight.grad = None
        step()
        reference[1].step()
    assert_alike(mine, reference)


def test_bad_gradient_changes_nothing_and_is_counted(rule):
    layer = UnitaryLinear(5, 5, bias=False)
    optimizer = rule(layer.parameters())
    step = compiled(optimizer)
    for bad in (False, True, False):
        layer.weight.grad = torch.randn(5, 5)
        before = layer.weight.detach().clone()
        if bad:
            layer.weight.grad[1, 2] = torch.nan
        step()
        assert torch.equal(layer.weight, before) == bad
    assert optimizer.skipped_steps() == 1
    assert defect(layer.weight.detach()) < 1e-6
    assert graphs() == 1


def test_whole_training_step(rule):
    def make():
        torch.manual_seed(0)
        layers = UnitaryLinear(6, 6), ModReLU(6), UnitaryLinear(6, 6), nn.Linear(6, 3)
        return nn.Sequential(*layers)

    source = torch.Generator().manual_seed(1)
    x, y = torch.randn(16, 6, generator=source), torch.randn(16, 3, generator=source)
    losses = []
    for compile_it in (True, False):
        model = make()
        optimizer = rule(model.parameters(), unitary_lr=0.02)
        forward = torch.compile(model, fullgraph=True, backend="aot_eager") if compile_it else model
        step = compiled(optimizer) if compile_it else optimizer.step
        losses.append([])
        for _ in range(25):
            optimizer.zero_grad()
            loss = (forward(x) - y).square().mean()
            loss.backward()
            step()
            losses[-1].append(loss.item())
        assert all(defect(matrix_view(p).detach()) < 1e-6 for p in projunn.unitary_parameters(model))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][-1] < 0.9 * losses[0][0]


def test_copies_are_traced_for_themselves(one_of_two):
    mine, reference = twins(one_of_two)
    run(mine, reference, compiled(mine[1]), 2)
    other = copy.deepcopy(mine)
    run(other, reference, compiled(other[1]), 2, start=2)


def test_sparse_gradients_are_refused_by_name():
    layer = BlockUnitaryLinear(3, 4, bias=False)
    optimizer = optim.SGD(layer.parameters(), lr=0.1)
    layer.weight.grad = torch.randn(1, 3, 4, 4).to_sparse(2)
    with pytest.raises(Exception, match=r"wanted a dense one under torch\.compile|sparse"):
        compiled(optimizer)()


def test_the_operator_passes_opcheck(rule):
    layer = BlockUnitaryLinear(2, 3, bias=False, dtype=torch.complex64)
    optimizer = rule(layer.parameters())
    layer.weight.grad = torch.randn_like(layer.weight)
    gradients, states = [], []
    plan = optimizer._init_group(optimizer.param_groups[0], [], gradients, states, unitary="real")
    arguments = (plan, [layer.weight.detach()], gradients, states, [])
    torch.library.opcheck(torch.ops.projunn.optimizer_step_.default, arguments)
    assert len(traced._plans) >= 1


def test_the_operator_on_copies_passes_opcheck_and_changes_nothing(rule):
    start = torch.linalg.qr(torch.randn(2, 3, 3, dtype=torch.complex64))[0]
    weight = UnitaryParameter(start.contiguous())  # as the operator's copies are
    optimizer = rule([weight])
    weight.grad = torch.randn_like(weight)
    weights, gradients, states = [], [], []
    plan = optimizer._init_group(
        optimizer.param_groups[0], weights, gradients, states, unitary="complex"
    )
    lists = [
        [torch.view_as_real(t.detach()) if t.is_complex() else t for t in tensors]
        for tensors in (weights, gradients, states)
    ]
    before = copy.deepcopy(lists)
    torch.library.opcheck(torch.ops.projunn.optimizer_step.default, (plan, *lists, []))
    torch.testing.assert_close(lists, before, atol=0, rtol=0)
    first, *_ = torch.ops.projunn.optimizer_step(plan, *lists, [])
    optimizer.step()
    torch.testing.assert_close(torch.view_as_complex(first), weight.detach(), atol=0, rtol=0)


@pytest.mark.requires_cpp
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_complex_weights_that_are_not_contiguous(rule, backend):
    """In place, in their own layout; and a gradient that is a lazy conjugate."""
    start = torch.linalg.qr(torch.randn(5, 5, dtype=torch.complex64))[0]
    assert not start.is_contiguous()
    weights = [UnitaryParameter(start.clone()) for _ in range(2)]
    optimizers = [rule([w]) for w in weights]
    step = compiled(optimizers[0], backend)
    for _ in range(3):
        gradient = torch.randn(5, 5, dtype=torch.complex64)
        for w in weights:
            w.grad = gradient.conj()
        step()
        optimizers[1].step()
    torch.testing.assert_close(*weights, atol=1e-6, rtol=0)  # BLAS may round by the layout
    assert weights[0].stride() == start.stride()
    assert (weights[0] - start).abs().max() > 1e-4


def test_parameters_of_two_groups_with_one_tensor_rate_keep_their_own():
    layers = [UnitaryLinear(4, 4, bias=False) for _ in range(3)]
    for layer in layers:
        layer.load_state_dict(layers[0].state_dict())
        layer.weight.grad = torch.ones(4, 4)
    options = [{"unitary_lr": 0.1}, {"unitary_lr": 0.2}]
    members = [{"params": [m.weight], **o} for m, o in zip(layers, options, strict=False)]
    optim.SGD(members, lr=torch.tensor(0.5)).step()
    optim.SGD([layers[2].weight], lr=0.5, unitary_lr=0.2).step()
    torch.testing.assert_close(layers[1].weight, layers[2].weight)
    assert (layers[0].weight - layers[2].weight).abs().max() > 1e-3


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("kind", [torch.float32, torch.complex64])
@pytest.mark.parametrize("unitary_lr", [None, 0.02])
def test_nothing_waits_for_a_gpu(name, kind, unitary_lr):
    """A fake GPU has no numbers to read: whatever the host would wait for raises."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    optimizer = getattr(optim, name)([nn.Parameter(torch.empty(1))], **RULES[name])
    group, state = optimizer.param_groups[0], {}
    with FakeTensorMode():
        weight = torch.empty(3, 4, 4, dtype=kind, device="cuda")
        # A fake tensor cannot change its class.
        weight.pairs, weight.blocks, weight.singletons = False, 1, 0
        rates = {rate: torch.full((), 0.05, device="cuda") for rate in ("lr", "base_lr")}
        group |= {**rates, "unitary_lr": unitary_lr, "capturable": True}
        for _ in range(2):
            optimizer._unitary_step([Member(0, weight, torch.empty_like(weight), state, group)])
        assert {tensor.device.type for tensor in state.values()} == {"cuda"}
        with pytest.raises(RuntimeError):
            state["step"].item()
