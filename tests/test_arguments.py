"""A wrong argument is refused by an error that names it, at every layer, function and optimizer.

Each argument of each layer gets each of a set of wrong values, and each forward wrong inputs.  A value
is refused with a ValueError or TypeError whose first word is the argument, or it works.
"""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

import projunn
from projunn import UnitaryParameter, diagnostics, init, models, optim
from projunn import nn as unn
from projunn.optim.base import UnitaryOptimizer

pytestmark = pytest.mark.requires("numpy")
NAN = float("nan")
COMMON = {"bias": True, "device": None, "dtype": None, "sketch_rank": None}
IMAGES = {"in_channels": 1, "num_classes": 2, "image_size": 4, "conv": "unitary", "width": 2}
CONV = {"in_channels": 2, "out_channels": 3, "spatial_size": 4, "stride": 1}
KINDS = {"dilation": 1, "groups": 1}
RECURRENT = {"input_size": 3, "hidden_size": 4, "nonlinearity": "modrelu"}
STACKED = {"num_layers": 1, "batch_first": False, "dropout": 0.0, "bidirectional": False}
STACKED |= {"checkpoint_every": None, "proj_size": 0}

# the arguments of the constructor, and the shape of an input
LAYERS = {
    unn.UnitaryLinear: ({"in_features": 4, "out_features": 6, **COMMON}, (3, 4)),
    unn.BlockUnitaryLinear: ({"num_blocks": 2, "block_size": 3, "num_factors": 2, **COMMON}, (3, 6)),
    unn.UnitaryConv1d: ({**CONV, **KINDS, **COMMON}, (2, 2, 4)),
    unn.UnitaryConv2d: ({**CONV, **KINDS, **COMMON}, (2, 2, 4, 4)),
    unn.UnitaryConv3d: ({**CONV, **KINDS, **COMMON}, (2, 2, 4, 4, 4)),
    unn.UnitaryConvTranspose2d: ({**CONV, **KINDS, **COMMON}, (2, 2, 4, 4)),
    unn.UnitaryRNN: (
        {**RECURRENT, **STACKED, **COMMON},
        (5, 2, 3),
    ),
    unn.UnitaryRNNCell: ({**RECURRENT, **COMMON}, (2, 3)),
    unn.ModReLU: ({"num_features": 4, "device": None, "dtype": None}, (3, 4)),
    unn.GroupSort: ({"group_size": 2, "dim": 1}, (3, 4)),
    unn.MaxMin: ({"dim": 1}, (3, 4)),
    models.ResNet9: (IMAGES, (2, 1, 4, 4)),
    models.DeepConvNet: ({**IMAGES, "depth": 2, "activation": unn.MaxMin}, (2, 1, 4, 4)),
    models.LipschitzConvNet: ({**IMAGES, "last_layer": "unitary", "mean": None}, (2, 1, 4, 4)),
    models.CayleyConv2d: ({**CONV, "bias": True, "kernel_size": 3}, (2, 2, 4, 4)),
}
NO_NUMBER = [None, "4", "a", b"4", [4], (4,), (2, 2), {}, 4j, NAN, object(), len, torch.float32]
COUNTS = [*NO_NUMBER, 0, -1, 1.5, 2.0, float("inf"), True, False, 10**30, np.float32(4)]
COUNTS += [torch.tensor(4), torch.tensor(1.5)]
OPTIONAL_COUNTS = [value for value in COUNTS if value is not None]
SIZES = [None, 0, -1, 1.5, 2.0, NAN, True, "4", "44", [4, 1.5], (4,) * 4, (), [0, 4], [[4], [4]], {}, 4j]
SIZES += [torch.tensor([4, 4]), torch.tensor(4), range(2), iter([4, 4, 4, 4]), object()]
FLAGS = [None, 2, "yes", "", 1.5, [], [1], {}, torch.tensor([1, 2]), torch.float32, "cuda"]
DEVICES = ["toaster", -1, 1.5, [], "cuda:99", {}, torch.float32]
DTYPES = ["float32", torch.int64, torch.complex32, torch.bool, float, np.float32, 3, []]
WORDS = ["zzz", "", None, 3, ["modrelu"], nn.ReLU, True, "MODRELU"]
AXES = [5, -5, 2, 1.5, "1", None, [1], (1,), True, NAN, torch.tensor(1)]
WRONG = {
    **dict.fromkeys(("spatial_size", "stride", "dilation", "image_size"), SIZES),
    **dict.fromkeys(("bias", "batch_first", "bidirectional"), FLAGS),
    **dict.fromkeys(("nonlinearity", "conv", "last_layer"), WORDS),
    "mean": [
        3,
        "x",
        1.5,
        [0.1],
        np.ones(1),
        torch.ones(1, dtype=torch.int64),
        torch.ones(3),
    ],
    "device": DEVICES,
    "dtype": DTYPES,
    "dropout": [-0.1, 1.1, NAN, "0.5", None, [0.5], True, 2, 4j],
    "dim": AXES,
    "activation": [None, 3, "MaxMin", nn.Linear, unn.MaxMin()],
    **dict.fromkeys(("sketch_rank", "checkpoint_every"), OPTIONAL_COUNTS),
    "proj_size": [*NO_NUMBER, 1, -1, 1.5, True],
}
FINE = [np.int64(4), np.bool_(True), 1, [4, 4], (4,), torch.Size([4, 4]), np.array([4, 4])]


def refused(argument, call):
    """Why a call is refused, by an error that names the argument; None if it is not."""
    try:
        call()
    except (ValueError, TypeError) as error:
        text = str(error)
        names = argument if isinstance(argument, tuple) else (argument,)
        assert any(text.startswith(f"{name}: ") for name in names), f"{argument}: {text:.200}"
        assert len(text) < 400
        return text
    return None


@pytest.mark.parametrize(
    ("cls", "argument"), [(cls, name) for cls in LAYERS for name in LAYERS[cls][0]], ids=str
)
def test_constructors_of_layers(cls, argument):
    arguments, shape = LAYERS[cls]

    def run(value):
        layer = cls(**{**arguments, argument: value})
        str(layer)
        layer(torch.randn(shape))

    for value in WRONG.get(argument, COUNTS):
        assert refused(argument, lambda value=value: run(value)), f"{argument}={value!r} was taken"
    for value in FINE:  # what is not refused works; another size is the input's mistake
        refused((argument, "input"), lambda value=value: run(value))


def wrong_inputs(shape, dtype, converted):
    """Values that no layer of a dtype takes, whose input has a shape."""
    x = torch.randn(shape, dtype=dtype)
    yield from [3, 1.5, "x", [1.0, 2.0], x.tolist(), tuple(x), {}, x.numpy(), np.ones(shape)]
    yield nn.utils.rnn.pack_sequence([torch.randn(3, 3)])
    dtypes = {torch.float64, torch.complex64, torch.complex128, torch.float32} - {dtype}
    dtypes |= {torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool}
    yield from (x.to(other) for other in dtypes if not converted(other))
    yield from (torch.randn(s, dtype=dtype) for s in [(), (0,), (1,), (2,), (*shape, 1)])
    last, second = list(shape), list(shape)
    for size in (0, 1, 5):
        last[-1] = second[1] = size
        yield torch.randn(last, dtype=dtype)
        if len(shape) > 3:
            yield torch.randn(second, dtype=dtype)
    yield torch.empty(shape, dtype=dtype, device="meta")


OURS = [cls for cls in LAYERS if issubclass(cls, unn.module.UnitaryModule)]


@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize("sketch_rank", [None, 2], ids=["dense", "sketched"])
@pytest.mark.parametrize("cls", OURS)
def test_inputs_of_unitary_layers(cls, dtype, sketch_rank):
    arguments, shape = LAYERS[cls]
    layer = cls(**{**arguments, "dtype": dtype, "sketch_rank": sketch_rank})

    def is_converted(other):  # complex layers take real numbers of any kind
        return dtype.is_complex and not other.is_complex

    for value in [None, *wrong_inputs(shape, dtype, is_converted)]:
        if cls is unn.UnitaryRNN and isinstance(value, nn.utils.rnn.PackedSequence):
            continue
        assert refused("input", lambda value=value: layer(value)), f"{value!r:.80} was taken"
    x = torch.randn(shape, dtype=dtype)
    assert refused("input", lambda: layer(x.to_sparse())) or (cls, sketch_rank) == (OURS[0], None)
    if "hidden_size" in arguments:
        state = (1, 2, 4) if cls is unn.UnitaryRNN else (2, 4)

        def state_is_converted(other):
            return dtype.is_complex or not other.is_complex

        for value in wrong_inputs(state, dtype, state_is_converted):
            assert refused("hx", lambda value=value: layer(x, value)), f"{value!r:.80} was taken"


@pytest.mark.parametrize("cls", [cls for cls in LAYERS if cls not in OURS])
def test_inputs_of_activations_and_models(cls):
    arguments, shape = LAYERS[cls]
    layer = cls(**arguments)
    sorts, any_dtype = issubclass(cls, unn.GroupSort), cls is unn.ModReLU
    for value in [None, *wrong_inputs(shape, torch.float32, lambda other: False)]:
        is_tensor = isinstance(value, torch.Tensor)
        if is_tensor and (value.shape, value.dtype, value.is_meta) == (shape, torch.float32, False):
            continue  # which is right
        if is_tensor and any_dtype and value.shape == shape and value.dtype is not torch.bool:
            assert value.is_meta or layer(value).shape == shape
        elif (
            is_tensor and sorts and not value.is_complex() and value.ndim > 1 and not value.shape[1] % 2
        ):
            torch.testing.assert_close(layer(value).sum(1), value.sum(1))
        else:
            named = ("input", "dim") if sorts else "input"
            assert refused(named, lambda value=value: layer(value)), f"{value!r:.80} was taken"


def test_half_precision_under_autocast_is_taken():
    x = torch.randn(3, 4)
    for layer in (unn.UnitaryLinear(4, 6), unn.BlockUnitaryLinear(2, 2, num_factors=2)):
        with torch.autocast("cpu", torch.bfloat16):
            for value in (x, x.bfloat16()):
                assert layer(value).dtype == torch.bfloat16
            assert refused("input", lambda layer=layer: layer(x.double()))


@pytest.mark.parametrize(
    ("own", "given"),
    [
        (torch.float32, torch.float32),
        (torch.complex64, torch.complex64),
        (torch.complex64, torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("cls", OURS)
def test_checks_are_traced_away(cls, own, given):
    arguments, shape = LAYERS[cls]
    layer, graphs = cls(**{**arguments, "dtype": own}), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    layer(torch.randn(shape, dtype=given))  # at whose first use einops notes the kind of tensors
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for _ in range(2):
        x = torch.randn(shape, dtype=given)
        torch.testing.assert_close(compiled(x), layer(x))
    assert len(graphs) == 1


WEIGHT, FACTOR = init.haar_(torch.empty(3, 3)), torch.randn(3, 1)
NO_MATRIX = [None, [[1.0]], "x", 3, torch.ones(3), torch.ones(3, 3, dtype=torch.int64)]
NO_TENSOR = NO_MATRIX[:4]
NO_WORD = ["zzz", 3, [], "", None]
NO_RANK = [0, -1, 1.5, "1", None, [1], True]
FUNCTIONS = [
    (projunn.retract, {"weight": WEIGHT, "left": FACTOR, "right": FACTOR, "retraction": "exp"}),
    (projunn.retract_, {"weight": WEIGHT.clone(), "left": FACTOR, "right": FACTOR, "retraction": "exp"}),
    (projunn.factorize, {"matrix": WEIGHT, "rank": 1, "method": "lsi", "generator": None}),
    (projunn.factorize, {"matrix": WEIGHT, "rank": 1, "method": "subspace", "basis": FACTOR}),
    (projunn.unitarity_defect, {"weight": WEIGHT}),
    (diagnostics.eigenphases, {"weight": WEIGHT}),
    (diagnostics.captured_energy, {"matrix": WEIGHT, "rank": 1}),
    *((f, {"tensor": WEIGHT, "generator": None}) for f in (init.haar_, init.henaff_, init.cayley_)),
    (init.identity_, {"tensor": torch.eye(3)}),
    (projunn.project_, {"target": torch.eye(3)}),
    (projunn.matrix_view, {"tensor": WEIGHT}),
    (projunn.constrain, {"module": nn.Linear(3, 6), "name": "weight", "blocks": 2}),
    (projunn.unconstrain, {"module": nn.Linear(3, 6)}),
    (projunn.unitary_parameters, {"module": nn.Linear(3, 6)}),
    (
        unn.select_blocks,
        {"bank": UnitaryParameter(WEIGHT.expand(4, 3, 3)), "indices": torch.tensor([1])},
    ),
    (projunn.backend, {"name": "auto"}),
]
NOT_FOR = {
    **dict.fromkeys(("weight", "left", "right", "matrix", "basis", "tensor"), NO_MATRIX),
    **dict.fromkeys(("retraction", "method", "name"), NO_WORD),
    "rank": [*NO_RANK, 4],
    "generator": [3, "x", torch.ones(2)],
    "target": [*NO_MATRIX, nn.Linear(2, 2), torch.full((2, 2), NAN)],
    "module": [None, 3, "x", torch.ones(2, 2)],
    "blocks": [0, -1, 4, 1.5, "2", True],
    "bank": [*NO_TENSOR, torch.ones(4, 3, 3), UnitaryParameter(torch.eye(3))],
    "indices": [*NO_TENSOR, torch.ones(2), torch.tensor([[1]]), torch.tensor([4]), torch.tensor([-1])],
}


@pytest.mark.parametrize(("function", "arguments"), FUNCTIONS, ids=lambda x: getattr(x, "__name__", ""))
def test_functions(function, arguments):
    before = [x.clone() for x in arguments.values() if isinstance(x, torch.Tensor)]
    for name in arguments:
        for value in NOT_FOR[name]:
            if name == "rank" and value == 4 and function is diagnostics.captured_energy:
                continue  # more than there are counts as all
            if function is projunn.matrix_view and isinstance(value, torch.Tensor):
                continue  # which takes every tensor
            if name == "basis" and value is None:
                continue
            assert refused(name, lambda n=name, v=value: function(**{**arguments, n: v})), (name, value)
    after = [x for x in arguments.values() if isinstance(x, torch.Tensor)]
    assert all(map(torch.equal, before, after))


OPTIONS = {
    "rank": NO_RANK,
    "retraction": ["zzz", 3, None, []],
    "factorization": ["zzz", 3, None, []],
    "averages": ["zzz", 3, None, []],
    "unitary_lr": [-1.0, NAN, "x", [1.0]],
    "polish_every": [-1, "x", 1.5, True],
}
RULES = [cls for cls in map(vars(optim).get, optim.__all__) if issubclass(cls, UnitaryOptimizer)]


@pytest.mark.parametrize("rule", RULES)
def test_options_of_optimizers(rule):
    layer = unn.UnitaryLinear(3, 3)
    for name, values in OPTIONS.items():
        for value in values:
            assert refused(name, lambda n=name, v=value: rule(layer.parameters(), lr=0.1, **{n: v}))
            added = {"params": list(unn.UnitaryLinear(2, 2).parameters()), name: value}
            optimizer = rule(layer.parameters(), lr=0.1)
            assert refused(name, lambda o=optimizer, a=added: o.add_param_group(a))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("rule", RULES)
def test_edited_options_are_refused_before_anything_moves(rule, compiled):
    for name, values in OPTIONS.items():
        for value in values[: 1 if compiled else None]:
            layer = unn.UnitaryLinear(3, 3)
            optimizer = rule(layer.parameters(), lr=0.1)
            for p in layer.parameters():
                p.grad = torch.ones_like(p)
            optimizer.step()
            optimizer = pickle.loads(pickle.dumps(optimizer)) if value is None else optimizer
            before = [p.clone() for p in layer.parameters()]
            optimizer.param_groups[0][name] = value
            if compiled:  # Dynamo words the error anew
                with pytest.raises(Exception, match=f"{name}: got"):
                    torch.compile(optimizer.step, backend="eager")()
            else:
                assert refused(name, optimizer.step), (name, value)
            assert all(map(torch.equal, before, layer.parameters()))


@pytest.mark.parametrize("rule", [optim.SGDG, optim.Isospectral])
def test_edited_options_of_optimizers_of_plain_parameters_are_refused(rule):
    options = {"rank": [0, -1, 1.5, "x"], "lr": [NAN, -1.0, "x", None], "momentum": [NAN, -0.5, "x"]}
    if rule is optim.Isospectral:
        options["sides"] = ["up", None]
    for name, values in options.items():
        for value in values:
            weight = nn.Parameter(torch.eye(3))
            optimizer = rule([weight], lr=0.1, **({"stiefel": True} if rule is optim.SGDG else {}))
            weight.grad = torch.randn(3, 3)
            optimizer.step()
            before = weight.clone()
            optimizer.param_groups[0][name] = value
            assert refused(name, optimizer.step), (name, value)
            assert torch.equal(weight, before)


def test_edited_options_that_fit_are_followed():
    layer = unn.UnitaryLinear(4, 4, bias=False)
    optimizer = optim.SGD(layer.parameters(), lr=0.1)
    for rank in (np.int64(2), 1):
        optimizer.param_groups[0].update(rank=rank, retraction="polar", polish_every=np.int64(3))
        layer.weight.grad = torch.randn(4, 4)
        optimizer.step()
        assert optimizer.state[layer.weight]["basis"].shape == (4, rank)
        assert type(optimizer.param_groups[0]["rank"]) is int
