"""What training scripts do around an optimizer and its gradients."""

import copy
import gc
import io
import pickle
import sys
import threading
import weakref

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from projunn import FactoredTensor, optim, unitarity_defect
from projunn.nn import (
    BlockUnitaryLinear,
    UnitaryConv1d,
    UnitaryConv2d,
    UnitaryLinear,
    UnitaryRNN,
    UnitaryRNNCell,
)
from projunn.parameter import declarations
from tests.dense import defect

RULES = ("SGD", "RMSprop", "AdamW", "Lion")
SKETCHES = pytest.mark.parametrize("sketch_rank", [None, 2], ids=["dense", "sketched"])
LAYERS = {
    "linear": (lambda **o: UnitaryLinear(6, 6, **o), (9, 6)),
    "blocks": (lambda **o: BlockUnitaryLinear(2, 3, num_factors=2, **o), (9, 6)),
    "rnn": (lambda **o: UnitaryRNN(6, 5, 2, **o), (4, 9, 6)),
    "cell": (lambda **o: UnitaryRNNCell(6, 5, **o), (9, 6)),
    "conv1d": (lambda **o: UnitaryConv1d(2, 3, 6, **o), (9, 2, 6)),
    "conv2d": (lambda **o: UnitaryConv2d(3, 2, (4, 6), stride=2, **o), (9, 3, 4, 6)),
}
EVERY_LAYER = pytest.mark.parametrize("name", LAYERS)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)


def loss_of(layer, x):
    output = layer(x)
    output = output[0] if isinstance(output, tuple) else output
    return (output.abs().square() * torch.linspace(0, 1, output.shape[-1])).sum()


@EVERY_LAYER
@SKETCHES
@DTYPES
def test_an_empty_batch_is_a_step_along_zero(name, sketch_rank, dtype):
    make, shape = LAYERS[name]
    layer = make(sketch_rank=sketch_rank, dtype=dtype)
    optimizer = optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0)
    batch = 1 if name == "rnn" else 0
    empty = torch.empty(*shape[:batch], 0, *shape[batch + 1 :], dtype=dtype, requires_grad=True)
    before = copy.deepcopy(layer)
    for x in (empty, empty):
        optimizer.zero_grad()
        loss_of(layer, x).backward()
        assert x.grad.shape == x.shape
        optimizer.step()
        for p, old in zip(layer.parameters(), before.parameters(), strict=True):
            torch.testing.assert_close(p.detach(), old.detach())
    optimizer.zero_grad()
    loss_of(layer, torch.randn(shape, dtype=dtype)).backward()
    optimizer.step()
    assert optimizer.skipped_steps() == 0
    assert all(p.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("name", ["linear", "blocks", "rnn", "conv2d"])
def test_validation_of_a_compiled_layer_while_gradients_are_there(name):
    """Also with another batch size, which compiles anew, and in a loop that accumulates."""
    torch._dynamo.reset()
    make, shape = LAYERS[name]
    layer = make(sketch_rank=2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for batch, mode in ((9, torch.no_grad), (7, torch.enable_grad), (7, torch.inference_mode)):
        loss_of(compiled, torch.randn(tuple(batch if s == 9 else s for s in shape))).backward()
        x = torch.randn(tuple(5 if s == 9 else s for s in shape))
        with mode():
            torch.testing.assert_close(loss_of(compiled, x), loss_of(layer, x))


@EVERY_LAYER
@pytest.mark.parametrize("check_nan", [True, False])
def test_anomaly_detection(name, check_nan):
    make, shape = LAYERS[name]
    layer = make(sketch_rank=2)
    with torch.autograd.detect_anomaly(check_nan):
        loss_of(layer, torch.randn(shape)).backward()
        if check_nan:
            with pytest.raises(RuntimeError, match="nan values"):
                loss_of(layer, torch.full(shape, torch.nan)).backward()


@pytest.mark.parametrize("frozen", ["weight", "own_weight"])
@SKETCHES
def test_freezing_one_of_a_convolutions_weights_does_not_stop_the_other(frozen, sketch_rank):
    layer = UnitaryConv2d(3, 3, 4, sketch_rank=sketch_rank)
    other = copy.deepcopy(layer)
    getattr(layer, frozen).requires_grad_(False)
    optimizer = optim.SGD(layer.parameters(), lr=0.1)
    x = torch.randn(5, 3, 4, 4)
    for one in (layer, other):
        loss_of(one, x).backward()
    still = copy.deepcopy(layer)
    optimizer.step()
    trained = {"weight": "own_weight", "own_weight": "weight"}[frozen]
    assert getattr(layer, frozen).grad is None
    grads = [getattr(m, trained).grad for m in (layer, other)]
    dense = [g.to_dense() if isinstance(g, FactoredTensor) else g for g in grads]
    torch.testing.assert_close(*dense)
    assert torch.equal(getattr(layer, frozen), getattr(still, frozen))
    assert not torch.equal(getattr(layer, trained), getattr(still, trained))


@pytest.mark.parametrize("momentum", [0, 0.9])
def test_a_penalty_on_a_sketched_weight(momentum):
    """The gradient is then dense; the step is that of its sketch, and state stays of one kind."""
    layer = UnitaryLinear(6, 6, bias=False, sketch_rank=6)
    dense = UnitaryLinear(6, 6, bias=False)
    dense.load_state_dict(layer.state_dict())
    optimizers = [
        optim.SGD(m.parameters(), lr=1.0, unitary_lr=0.02, momentum=momentum, rank=6)
        for m in (layer, dense)
    ]
    target = torch.randn(6, 6)
    for step in range(4):
        x = torch.randn(9, 6)
        for m, optimizer in zip((layer, dense), optimizers, strict=True):
            optimizer.zero_grad()
            penalty = (m.weight * target).sum() if step % 2 else 0.0
            (loss_of(m, x) + penalty).backward()
            optimizer.step()
        torch.testing.assert_close(layer.weight, dense.weight, atol=1e-5, rtol=0)
    assert isinstance(layer.weight.grad, torch.Tensor)
    assert not isinstance(layer.weight.grad, FactoredTensor)


@pytest.mark.parametrize("rule", RULES)
def test_hooks_on_all_optimizers_run_once_a_step(rule):
    model = nn.Sequential(UnitaryLinear(4, 4), nn.Linear(4, 2))
    optimizer = getattr(optim, rule)(model.parameters(), lr=0.1)
    seen = []
    handles = [
        register_optimizer_step_pre_hook(lambda o, *_: seen.append(("pre", o))),
        register_optimizer_step_post_hook(lambda o, *_: seen.append(("post", o))),
    ]
    try:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(3, 4)).sum().backward()
            optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    assert seen == [("pre", optimizer), ("post", optimizer)] * 2


@pytest.mark.parametrize("rule", ["SGD", "RMSprop", "AdamW"])
def test_a_differentiable_optimizer_stays_one_in_a_copy(rule):
    def gradient_through_a_step(copies):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(3))
        optimizer = getattr(optim, rule)([weight], lr=0.1, differentiable=True)
        held = {"weight": weight, "optimizer": optimizer}
        for _ in range(copies):
            held = copy.deepcopy(held)
        scale = torch.ones(3, requires_grad=True)
        weight = held["weight"].detach().requires_grad_() * scale
        held["optimizer"].param_groups[0]["params"] = [weight]
        weight.grad = weight.detach().clone() * scale
        held["optimizer"].step()
        return torch.autograd.grad(weight.square().sum(), scale)[0]

    torch.testing.assert_close(gradient_through_a_step(1), gradient_through_a_step(0))


def saved(model, optimizer):
    states = get_state_dict(model, optimizer)
    return {"model": states[0], "optimizer": states[1]}


@pytest.mark.parametrize(
    ("rule", "momentum"),
    [("SGD", {}), ("SGD", {"momentum": 0.9}), ("RMSprop", {"momentum": 0.9}), ("AdamW", {})],
)
@pytest.mark.parametrize("unitary_lr", [None, 0.01])
@SKETCHES
def test_a_distributed_checkpoint_loads_into_a_fresh_optimizer(
    rule, momentum, unitary_lr, sketch_rank, tmp_path
):
    options = {"lr": 0.05, "unitary_lr": unitary_lr, "rank": 2, **momentum}

    def fresh():
        model = nn.Sequential(UnitaryLinear(6, 6, sketch_rank=sketch_rank), nn.Linear(6, 3))
        return model, getattr(optim, rule)(model.parameters(), **options)

    def train(model, optimizer):
        torch.manual_seed(7)
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model, torch.randn(9, 6)).backward()
            optimizer.step()

    model, optimizer = fresh()
    train(model, optimizer)
    dcp.save(saved(model, optimizer), checkpoint_id=tmp_path)
    other, other_optimizer = fresh()
    weight = other[0].weight.detach().clone()
    content = saved(other, other_optimizer)
    assert torch.equal(weight, other[0].weight)  # a fresh optimizer's state is asked of it by a step
    dcp.load(content, checkpoint_id=tmp_path)
    set_state_dict(
        other,
        other_optimizer,
        model_state_dict=content["model"],
        optim_state_dict=content["optimizer"],
    )
    train(model, optimizer)
    train(other, other_optimizer)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    assert defect(other[0].weight.detach()) < 1e-6


def test_a_histogram_of_gradients_is_drawn_as_tensorboard_does():
    layer = UnitaryLinear(6, 6, sketch_rank=2)
    loss_of(layer, torch.randn(3, 6)).backward()
    entries = layer.weight.grad.to_dense()
    for p in layer.parameters():
        assert p.grad.clone().cpu().data.numpy().reshape(-1).size == p.numel()
    torch.testing.assert_close(torch.histc(layer.weight.grad, 10), torch.histc(entries, 10))
    file = io.BytesIO()
    torch.save({"gradient": layer.weight.grad}, file)
    file.seek(0)
    gradient = torch.load(file, weights_only=True)["gradient"]
    torch.testing.assert_close(gradient.to_dense(), entries)


@pytest.mark.parametrize("rule", RULES)
@SKETCHES
def test_weights_and_state_are_freed_without_the_garbage_collector(rule, sketch_rank):
    """Else searches for hyperparameters, which make many models, run out of memory on a GPU."""
    layer = UnitaryLinear(6, 6, sketch_rank=None if rule == "Lion" else sketch_rank)
    optimizer = getattr(optim, rule)(layer.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(layer, torch.randn(3, 6)).backward()
        optimizer.step()
    held = [weakref.ref(layer.weight.untyped_storage())]
    held += [weakref.ref(t) for state in optimizer.state.values() for t in state.values()]
    gc.disable()
    try:
        del layer, optimizer
        assert not [one for one in held if one() is not None]
    finally:
        gc.enable()


@pytest.mark.parametrize("other", ["vector", "emptied", "copy", "head", "bias"])
def test_other_tensors_in_the_place_of_unitary_ones_are_refused(other):
    """DeepSpeed's ZeRO puts vectors there (stage 3 empties the parameters), mixed precision copies."""
    model = nn.Sequential(UnitaryLinear(6, 6, bias=False), nn.Linear(6, 2))
    optimizer = optim.AdamW(model.parameters(), lr=0.1)
    (group,), weight = optimizer.param_groups, model[0].weight
    if other == "head":  # the weight is no longer trained, which is fine
        group["params"] = list(model[1].parameters())
    elif other == "bias":  # a vector too, and not a short one
        group["params"] = [nn.Parameter(torch.rand(100))]
    elif other == "copy":
        model.bfloat16()
        group["params"] = [p.detach().float().requires_grad_() for p in model.parameters()]
    else:
        vector = torch.cat([p.detach().flatten() for p in model.parameters()])
        group["params"] = [vector.requires_grad_()]
        if other == "emptied":
            weight.data = torch.empty(0)
    for p in group["params"]:
        p.grad = torch.ones_like(p)
    if other in ("head", "bias"):
        optimizer.step()
        return
    with pytest.raises(ValueError, match="in the place of weight of UnitaryLinear"):
        optimizer.step()


def test_modules_are_made_in_other_threads_meanwhile():
    """As optuna makes them with ``n_jobs``: each optimizer looks at the modules of all threads."""
    held, done = [UnitaryLinear(1, 1) for _ in range(200)], threading.Event()
    interval = sys.getswitchinterval()

    def make():
        while not done.is_set():
            held[0] = UnitaryLinear(1, 1)

    other = threading.Thread(target=make)
    sys.setswitchinterval(1e-6)
    other.start()
    try:
        for _ in range(2000):
            assert len(declarations()) >= 199
    finally:
        done.set()
        other.join()
        sys.setswitchinterval(interval)


def test_a_layer_is_made_and_measured_without_a_look_at_all_modules(monkeypatch):
    """With 10,000 layers alive it took 0.04 s each."""
    file = pickle.dumps(UnitaryLinear(3, 5, dtype=torch.complex64))
    monkeypatch.setattr("projunn.parameter._unclear", set())  # as in a new process
    layer = pickle.loads(file)
    layer._parameters["weight"] = type(layer.weight)(layer.weight.data.clone(), pairs=False)
    assert unitarity_defect(layer.weight) < 1e-6  # found in its module, which knows of the pairs
    monkeypatch.setattr("projunn.parameter.recognise", pytest.fail)
    assert unitarity_defect(UnitaryLinear(5, 4).weight) < 1e-6
