"""`projunn.to_plain`: PyTorch's own layers, with the output of ours."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from projunn import constrain, init, to_plain, unitary_parameters
from projunn.nn import (
    BlockUnitaryLinear,
    LocalUnitaryConv1d,
    LocalUnitaryConv2d,
    LocalUnitaryConv3d,
    MaxMin,
    OrthogonalFinetuning,
    UnitaryConv1d,
    UnitaryConv2d,
    UnitaryConv3d,
    UnitaryConvTranspose2d,
    UnitaryLinear,
    UnitaryRNN,
    UnitaryRNNCell,
)

COMPLEX = {"dtype": torch.complex128}
LAYERS = {
    "linear": (lambda **o: UnitaryLinear(5, 7, **o), (5,), nn.Linear),
    "linear, complex": (lambda **o: UnitaryLinear(5, 3, **COMPLEX), (5,), nn.Linear),
    "linear, no bias": (lambda **o: UnitaryLinear(5, 5, False, sketch_rank=1, **o), (5,), nn.Linear),
    "block": (lambda **o: BlockUnitaryLinear(3, 4, num_factors=3, **o), (12,), nn.Linear),
    "block, complex": (lambda **o: BlockUnitaryLinear(3, 4, False, **COMPLEX), (12,), nn.Linear),
    "conv, odd": (lambda **o: UnitaryConv2d(3, 4, (5, 7), **o), (3, 5, 7), nn.Sequential),
    "conv, even": (lambda **o: UnitaryConv2d(3, 4, (6, 5), **o), (3, 6, 5), nn.Sequential),
    "conv, strides": (lambda **o: UnitaryConv2d(2, 9, (6, 8), (3, 2), **o), (2, 6, 8), nn.Sequential),
    "conv, one stride": (lambda **o: UnitaryConv2d(2, 4, (6, 4), (1, 2), **o), (2, 6, 4), nn.Sequential),
    "conv, complex": (lambda **o: UnitaryConv1d(3, 4, 6, **COMPLEX), (3, 6), nn.Sequential),
    "conv 1d": (lambda **o: UnitaryConv1d(3, 4, 8, 4, **o), (3, 8), nn.Sequential),
    "conv 3d": (lambda **o: UnitaryConv3d(2, 4, (2, 3, 4), **o), (2, 2, 3, 4), nn.Sequential),
    "conv, transposed": (
        lambda **o: UnitaryConvTranspose2d(8, 3, (3, 4), 2, **o),
        (8, 3, 4),
        nn.Sequential,
    ),
    "local": (lambda **o: LocalUnitaryConv2d(3, 4, (3, 2), **o), (3, 5, 4), nn.Sequential),
    "local, stride": (lambda **o: LocalUnitaryConv2d(2, 9, 3, 2, **o), (2, 6, 8), nn.Sequential),
    "local, zeros": (
        lambda **o: LocalUnitaryConv2d(4, 3, (4, 1), 1, False, "zeros", **o),
        (4, 5, 3),
        nn.Sequential,
    ),
    "local, complex": (lambda **o: LocalUnitaryConv1d(3, 4, 4, **COMPLEX), (3, 6), nn.Sequential),
    "local 3d": (lambda **o: LocalUnitaryConv3d(2, 4, (1, 3, 2), **o), (2, 2, 3, 4), nn.Sequential),
    "rnn": (lambda **o: UnitaryRNN(3, 6, 2, "tanh", bidirectional=True, **o), (4, 3), nn.RNN),
    "rnn, no bias": (lambda **o: UnitaryRNN(3, 6, 1, "relu", False, True, **o), (4, 3), nn.RNN),
    "fine-tuned": (lambda **o: OrthogonalFinetuning(nn.Linear(6, 5, **o), 3), (6,), nn.Linear),
    "cell": (lambda **o: UnitaryRNNCell(3, 6, nonlinearity="tanh", **o), (3,), nn.RNNCell),
}


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
@pytest.mark.parametrize("name", [name for name in LAYERS if "complex" in name])
def test_plain_complex_layers_take_complex_input_alone(name):
    make, shape, _ = LAYERS[name]
    layer, x = make(), torch.randn(3, *shape, dtype=torch.float64)
    expected = layer(x)
    plain = to_plain(layer)
    assert torch.allclose(plain(x.to(torch.complex128)), expected)
    with pytest.raises((RuntimeError, NotImplementedError)):
        plain(x)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_has_a_plain_one_with_the_same_output(name):
    make, shape, kind = LAYERS[name]
    torch.manual_seed(0)
    layer = make(dtype=torch.float64)
    if name.startswith("local"):
        init.haar_(layer.directions)  # a new kernel has one tap only
    for p in layer.parameters():
        if p.ndim == 1:
            nn.init.normal_(p)
    dtype = torch.complex128 if layer.is_complex else torch.float64
    x = torch.randn(3, *shape, dtype=dtype)
    expected = layer(x)
    plain = to_plain(layer)
    assert type(plain) is kind
    assert unitary_parameters(plain) == []
    torch.testing.assert_close(plain(x), expected, atol=1e-12, rtol=0)


def test_a_model_is_changed_in_place():
    torch.manual_seed(0)
    shared = UnitaryLinear(8, 8)
    model = nn.Sequential(
        UnitaryConv2d(1, 4, 4, stride=2), MaxMin(), nn.Flatten(1), nn.Linear(16, 8), shared, shared
    )
    constrain(model[3])
    model[4].weight.requires_grad_(False)
    model.eval()
    x = torch.randn(2, 1, 4, 4)
    expected = model(x)
    assert to_plain(model) is model
    torch.testing.assert_close(model(x), expected, atol=1e-6, rtol=0)
    assert type(model[3].weight) is nn.Parameter
    assert model[4] is model[5]
    assert not model[4].weight.requires_grad
    assert not any(m.training for m in model.modules())
    kinds = {type(m).__module__.split(".")[0] for m in model.modules() if not isinstance(m, MaxMin)}
    assert kinds == {"torch"}


class Own(UnitaryLinear):
    pass


@pytest.mark.parametrize(
    "make",
    [
        lambda: UnitaryRNN(3, 4),
        lambda: UnitaryRNN(3, 4, nonlinearity="identity"),
        lambda: UnitaryRNNCell(3, 4, nonlinearity="tanh", dtype=torch.complex64),
        lambda: Own(3, 4),
        lambda: LocalUnitaryConv1d(1, 4, 3, 2),
        lambda: LocalUnitaryConv2d(1, 4, 3, (1, 2)),
    ],
)
def test_a_layer_without_a_plain_one_is_refused_by_name(make):
    model = nn.Sequential(UnitaryLinear(3, 3), make())
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=r"module: there is no plain layer for '1'.*unconstrain"):
        to_plain(model)
    assert [type(m) for m in model] == [type(m) for m in before]
    assert len(unitary_parameters(model)) == len(unitary_parameters(before))
    with pytest.raises(TypeError, match="module"):
        to_plain(3)


def test_a_recurrent_class_of_your_own_is_not_told_to_be_real():
    with pytest.raises(ValueError, match=r"bias=True\); projunn\.unconstrain"):
        to_plain(type("OwnRNN", (UnitaryRNN,), {})(3, 4, nonlinearity="tanh"))


def test_shared_weights_stay_shared():
    options = {"nonlinearity": "tanh"}
    linear = nn.ModuleList([UnitaryLinear(4, 4), UnitaryLinear(4, 4), constrain(nn.Linear(4, 4))])
    linear[1].weight = linear[2].weight = linear[0].weight
    recurrent = nn.ModuleList([UnitaryRNN(4, 4, **options), UnitaryRNN(4, 4, **options)])
    recurrent[1].weight_hh_l0 = recurrent[0].weight_hh_l0
    complex_ = nn.ModuleList([UnitaryConv2d(2, 2, 3, dtype=torch.complex64) for _ in range(2)])
    complex_[1].weight, complex_[1].bias = complex_[0].weight, complex_[0].bias
    plain = to_plain(nn.ModuleList([linear, recurrent, complex_]))
    for layers, count in zip(plain, (4, 7, 2), strict=True):
        assert len([*layers.parameters()]) == count
    x = torch.randn(3, 2, 4)
    recurrent[0](x)[0].sum().backward()
    assert recurrent[1].weight_hh_l0.grad is not None


@pytest.mark.parametrize(
    "make", [nn.utils.spectral_norm, lambda m: prune.random_unstructured(m, "weight", 0.3)]
)
def test_a_weight_that_is_computed_is_that_of_now(make):
    layer = make(UnitaryLinear(4, 4)).eval()
    with torch.no_grad():
        layer.weight_orig.mul_(3).add_(1)  # as a step does
        plain, x = to_plain(nn.Sequential(layer)), torch.randn(2, 4)
        torch.testing.assert_close(plain(x), layer(x))
