"""Layers whose backward hands on factors: right gradients, wherever training loops take them."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from projunn import FactoredTensor
from projunn.nn import (
    BlockUnitaryLinear,
    UnitaryConv2d,
    UnitaryLinear,
    UnitaryRNN,
    UnitaryRNNCell,
)
from projunn.optim import SGD, AdamW, RMSprop
from tests.dense import defect

REAL_AND_COMPLEX = pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)


def twins(dtype, rank=6, make=UnitaryLinear, sizes=(6, 6), **options):
    """A sketched layer and a dense one of the same parameters."""
    sketched = make(*sizes, dtype=dtype, sketch_rank=rank, **options)
    dense = make(*sizes, dtype=dtype, **options)
    dense.load_state_dict(sketched.state_dict())
    return sketched, dense


def loss(output):
    return (output.abs().square() * torch.linspace(0, 1, output.shape[-1])).mean()


def assert_same_gradients(sketched, dense, atol=1e-6):
    for own, other in zip(sketched.parameters(), dense.parameters(), strict=True):
        grad = own.grad.to_dense() if isinstance(own.grad, FactoredTensor) else own.grad
        torch.testing.assert_close(grad, other.grad, atol=atol, rtol=1e-4)


LAYERS = {
    "square": (UnitaryLinear, (6, 6), {}),
    "wide": (UnitaryLinear, (6, 4), {}),
    "tall": (UnitaryLinear, (4, 6), {"bias": False}),
    "blocks": (BlockUnitaryLinear, (3, 4), {"num_factors": 2}),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_gradient_at_full_rank_is_the_dense_one(dtype, kind):
    make, sizes, options = LAYERS[kind]
    sketched, dense = twins(dtype, 6, make, sizes, **options)
    features = sizes[0] if make is UnitaryLinear else 12
    for shape in ((9, features), (3, 5, features), (features,), (0, features)):
        sketched.zero_grad()
        dense.zero_grad()
        inputs = [torch.randn(*shape, dtype=dtype, requires_grad=True)]
        inputs.append(inputs[0].detach().clone().requires_grad_())
        for layer, x in zip((sketched, dense), inputs, strict=True):
            layer(x).abs().square().sum().backward()
        assert isinstance(sketched.weight.grad, FactoredTensor)
        assert_same_gradients(sketched, dense, 1e-4)
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


@pytest.mark.parametrize("nonlinearity", ["modrelu", "relu", "tanh", "identity"])
@pytest.mark.parametrize("steps", [1, 5])
def test_recurrent_gradients_are_the_dense_ones(dtype, nonlinearity, steps):
    if dtype.is_complex and nonlinearity == "relu":
        pytest.skip("relu has no meaning for complex numbers")
    n = 6
    sketched, dense = twins(dtype, n, UnitaryRNN, (3, n, 2), nonlinearity=nonlinearity)
    # States this small stay away from the poles of the complex tanh, near which rounding decides.
    x = 0.1 * torch.randn(steps, 7, 3, dtype=dtype.to_real())
    h = 0.1 * torch.randn(2, 7, n, dtype=dtype)
    starts = []
    for layer in (sketched, dense):
        starts.append(h.clone().requires_grad_())
        output, _ = layer(x, starts[-1])
        (output.abs().square() * torch.linspace(0, 1, n)).mean().backward()
    torch.testing.assert_close(starts[0].grad, starts[1].grad)
    assert isinstance(sketched.weight_hh_l1.grad, FactoredTensor)
    assert_same_gradients(sketched, dense, 1e-5)


@pytest.mark.parametrize("size", [(4, 6), (3, 5), (1, 1)])
@pytest.mark.parametrize(("channels", "stride"), [((2, 3), 1), ((3, 3), 1), ((3, 2), 1), ((2, 3), None)])
def test_convolution_gradients_are_the_dense_ones(dtype, size, channels, stride):
    options = {"stride": stride or size}
    sketched, dense = twins(dtype, 40, UnitaryConv2d, (*channels, size), **options)
    x = torch.randn(5, channels[0], *size, dtype=dtype)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for layer, own in zip((sketched, dense), inputs, strict=True):
        output = layer(own)
        (output.abs().square() * torch.linspace(0, 1, channels[1])[:, None, None]).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    assert isinstance(sketched.weight.grad, FactoredTensor)
    assert_same_gradients(sketched, dense, 1e-4)
    with pytest.raises(TypeError, match="sketch_rank"):
        sketched.project_gradient_(1)


def test_compiled_convolution_trains_like_the_eager_one():
    torch._dynamo.reset()
    layer = UnitaryConv2d(3, 3, 4, bias=False, sketch_rank=1)
    other = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    optimizers = [SGD(m.parameters(), lr=1.0, unitary_lr=0.1) for m in (layer, other)]
    x, weights = torch.randn(6, 3, 4, 4), torch.linspace(0, 1, 3)[:, None, None]
    losses = []
    for _ in range(5):
        for run, optimizer in zip((compiled, other), optimizers, strict=True):
            optimizer.zero_grad()
            value = (run(x).square() * weights).mean()
            value.backward()
            optimizer.step()
        losses.append(value.item())
    torch.testing.assert_close(layer.weight, other.weight)
    assert losses[-1] < losses[0]
    torch.testing.assert_close(layer(x).norm(), x.norm())


def test_a_cell_sums_its_steps():
    sketched, dense = twins(torch.float32, 6, UnitaryRNNCell, (3, 6), nonlinearity="tanh")
    inputs = torch.randn(3, 7, 3)
    for layer in (sketched, dense):
        h = None
        for x in inputs:
            h = layer(x, h)
        loss(h).backward()
    assert sketched.weight_hh.grad.rank == 18
    assert_same_gradients(sketched, dense)


def test_compiled_recurrence_hands_on_factors():
    torch._dynamo.reset()
    layer = UnitaryRNN(3, 6, sketch_rank=1)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(9, 4, 3)
    grads = []
    for run in (layer, compiled):
        layer.zero_grad()
        run(x)[0].square().mean().backward()
        grads.append(layer.weight_hh_l0.grad)
    assert isinstance(grads[1], FactoredTensor)
    torch.testing.assert_close(grads[0].to_dense(), grads[1].to_dense())


def test_a_layer_is_one_node_of_the_graph():
    """A view beside it would cost the host as much as a launch, forward and backward."""
    layer, x = UnitaryLinear(6, 6, sketch_rank=1), torch.randn(2, 3, 6, requires_grad=True)
    inputs = [node for node, _ in layer(x).grad_fn.next_functions if node is not None]
    assert {getattr(node, "variable", None) for node in inputs} == {x, layer.weight, layer.bias}


@REAL_AND_COMPLEX
def test_low_rank_gradient_has_the_right_step(dtype):
    """The whole step is that of the dense gradient, factored from the same basis."""
    sketched, dense = twins(dtype, 2, bias=False)
    optimizers = [SGD(m.parameters(), lr=1.0, unitary_lr=0.3, rank=2) for m in (sketched, dense)]
    x = torch.randn(50, 6, dtype=dtype)
    for step in range(20):
        for layer, optimizer in zip((sketched, dense), optimizers, strict=True):
            optimizer.zero_grad()
            loss(layer(x)).backward()
            if step == 0 and layer is dense:  # both start from the sketched layer's basis
                optimizer.step()
                start = optimizers[0].state[sketched.weight]
                own = optimizer.state[layer.weight]
                own["probe"].copy_(start["probe"])
                own["basis"].copy_(start["basis"])
                layer.load_state_dict(sketched.state_dict())
            else:
                optimizer.step()
    torch.testing.assert_close(sketched.matrix, dense.matrix, atol=2e-4, rtol=0)
    assert defect(sketched.matrix.detach()) < 1e-6


@REAL_AND_COMPLEX
def test_accumulation_double_use_and_checkpointing(dtype):
    sketched, dense = twins(dtype)
    inputs = [torch.randn(8, 6, dtype=dtype) for _ in range(3)]
    for layer in (sketched, dense):
        for x in inputs:
            h = checkpoint(layer, x, use_reentrant=False) if layer is sketched else layer(x)
            loss(layer(h)).backward()
    assert sketched.weight.grad.rank == 6 * 2 * 3
    assert_same_gradients(sketched, dense)
    rank = SGD(sketched.parameters(), lr=1.0, rank=2)
    rank.step()
    assert defect(sketched.matrix.detach()) < 1e-6


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none):
    layer, _ = twins(torch.float32, 1)
    optimizer = SGD(layer.parameters(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=set_to_none)
        if not set_to_none and layer.weight.grad is not None:
            assert layer.weight.grad.to_dense().count_nonzero() == 0
        loss(layer(torch.randn(4, 6))).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    before = layer.weight.detach().clone()
    optimizer.step()  # a zero gradient is no step
    torch.testing.assert_close(layer.weight.detach(), before)


def test_autocast_and_grad_scaler():
    layer, dense = twins(torch.float32, 6)
    optimizer = SGD(layer.parameters(), lr=1.0, rank=6)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x = torch.randn(32, 6)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    scaler.scale(loss(output.float())).backward()
    scaler.unscale_(optimizer)
    loss(dense(x)).backward()
    difference = layer.weight.grad.to_dense() - dense.weight.grad
    assert difference.norm() < 0.02 * dense.weight.grad.norm()
    before = layer.weight.detach().clone()
    scaler.step(optimizer)
    assert not torch.equal(before, layer.weight)
    optimizer.zero_grad()
    scaler.update()
    scaler.scale(loss(layer(x)) * torch.inf).backward()
    before = layer.weight.detach().clone()
    scaler.step(optimizer)  # skipped
    assert torch.equal(before, layer.weight)


@REAL_AND_COMPLEX
def test_compiled_without_a_graph_break_and_with_a_warm_basis(dtype):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    layer, _ = twins(dtype, 2)
    model = nn.Sequential(layer, UnitaryLinear(6, 6, dtype=dtype, sketch_rank=1), layer)
    other = copy.deepcopy(model)
    assert other[0] is other[2]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    optimizers = [SGD(m.parameters(), lr=1.0, unitary_lr=0.2, rank=2) for m in (model, other)]
    for _ in range(4):
        x = torch.randn(9, 6, dtype=dtype)
        for run, optimizer in zip((compiled, other), optimizers, strict=True):
            optimizer.zero_grad()
            loss(run(x)).backward()
        assert model[0].weight.grad.rank == 4
        for own, eager in zip(model.parameters(), other.parameters(), strict=True):
            both = [g.to_dense() if isinstance(g, FactoredTensor) else g for g in (own.grad, eager.grad)]
            torch.testing.assert_close(*both)
        for optimizer in optimizers:
            optimizer.step()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


class _Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation returned anew."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        result = operation(*arguments, **(options or {}))
        known = {
            t.untyped_storage().data_ptr()
            for t in tree_leaves((arguments, options))
            if isinstance(t, torch.Tensor) and not isinstance(t, FactoredTensor)
        }
        for t in tree_leaves(result):
            plain = isinstance(t, torch.Tensor) and not isinstance(t, FactoredTensor)
            if plain and t.untyped_storage().data_ptr() not in known:
                self.elements = max(self.elements, t.numel())
        return result


@pytest.mark.parametrize("rule", [SGD, RMSprop, AdamW])
@pytest.mark.parametrize("retraction", ["exp", "polar", "cayley"])
def test_nothing_of_the_size_of_the_weight_is_made(rule, retraction):
    n = 200
    layer = UnitaryLinear(n, n, sketch_rank=1)
    options = {"momentum": 0.9} if rule is not AdamW else {}
    optimizer = rule(layer.parameters(), lr=0.1, retraction=retraction, polish_every=0, **options)
    x = torch.randn(8, n, requires_grad=True)
    for _ in range(2):
        with _Largest() as largest:
            optimizer.zero_grad()
            loss(layer(x)).backward()
            nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
            optimizer.step()
        assert 0 < largest.elements <= 20 * n
    held = [t.numel() for t in optimizer.state[layer.weight].values()]
    assert max(held) <= 8 * n


def test_copies_keep_the_sketch():
    layer = nn.Sequential(UnitaryLinear(6, 6, sketch_rank=2), BlockUnitaryLinear(2, 3, sketch_rank=1))
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.double()):
        for own, other in zip(layer, copied, strict=True):
            torch.testing.assert_close(
                own.weight.sketch.left, other.weight.sketch.left, check_dtype=False
            )
        copied(torch.randn(3, 6, dtype=copied[0].bias.dtype)).sum().backward()
        assert all(isinstance(m.weight.grad, FactoredTensor) for m in copied)
    assert layer[0].weight.sketch.left.dtype == torch.float64
    bare = UnitaryLinear(6, 6, sketch_rank=2, device="meta").to_empty(device="cpu")
    bare.reset_parameters()
    torch.testing.assert_close(
        bare.weight.sketch.left, UnitaryLinear(6, 6, sketch_rank=2).weight.sketch.left
    )
    assert "sketch_rank=2" in repr(bare)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [UnitaryLinear, UnitaryRNN])
def test_gradients_in_half_precision_are_dense_and_refused_by_name(kind, dtype):
    layer = kind(6, 6, sketch_rank=2).to(dtype)
    output = layer(torch.randn(3, 2, 6, dtype=dtype))
    (output if kind is UnitaryLinear else output[0]).float().square().sum().backward()
    (weight,) = (p for p in layer.parameters() if getattr(p, "sketch", None) is not None)
    assert not isinstance(weight.grad, FactoredTensor)
    with pytest.raises(TypeError, match="use autocast for layers in lower precision"):
        SGD(layer.parameters(), lr=0.1).step()


@pytest.mark.parametrize("rank", [0, -1, 1.5, True])
def test_bad_ranks(rank):
    for make in (UnitaryLinear, BlockUnitaryLinear):
        with pytest.raises(ValueError, match="sketch_rank"):
            make(4, 4, sketch_rank=rank)
    assert UnitaryLinear(4, 3, sketch_rank=9).weight.sketch.rank == 3
