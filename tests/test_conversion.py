"""Models of torch's parametrization, geotorch and geoopt made ours: the same function, kept orthogonal.

The expected outputs are those of the other library.  geotorch and geoopt are not needed; where they are
missing, their tests are skipped.
"""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, weight_norm

import projunn
from projunn import OffManifoldWarning, UnitaryParameter, convert, unitary_parameters
from tests.dense import defect

NEAR = 1e-6  # of outputs and weights of size 1, in float32


def trained(module, x, optimizer=torch.optim.SGD, steps=3, **options):
    """A model after some steps of another library, so that no parametrization is at its start."""
    held = optimizer(module.parameters(), lr=0.05, **options)
    for _ in range(steps):
        held.zero_grad()
        out = module(x)
        out = out[0] if isinstance(out, tuple) else out
        (out - out.detach().roll(1, -1)).abs().square().mean().backward()
        held.step()
    return module


def check(module, x, count=1):
    """Converts, and looks at what must hold: function, identity, names, and training."""
    inputs = x if isinstance(x, tuple) else (x,)

    def run():
        out = module(*inputs)
        return out[0] if isinstance(out, tuple) else out

    module.eval()
    with torch.no_grad():
        before = run()
    held = [id(p) for p in module.parameters()]
    assert convert(module) is module
    with torch.no_grad():
        torch.testing.assert_close(run(), before, atol=NEAR, rtol=NEAR)
    assert {id(p) for p in module.parameters()} == set(held)
    assert not [name for name in module.state_dict() if "parametrizations" in name or "base" in name]
    weights = unitary_parameters(module)
    assert len(weights) == count
    start = [p.detach().clone() for p in weights]
    optimizer = projunn.optim.SGD(module.parameters(), lr=0.5, rank=2)
    for _ in range(3):
        optimizer.zero_grad()
        (run() - before.roll(1, -1)).abs().square().mean().backward()
        optimizer.step()
    for p, old in zip(weights, start, strict=True):
        assert not torch.equal(p, old)
        assert defect(p.detach()) < 1e-5
    return weights


class Bank(nn.Module):
    """y = W_b x_b for a bank of matrices."""

    def __init__(self, *shape, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape, dtype=dtype))

    def forward(self, x):
        return (self.weight @ x.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("use_trivialization", [True, False])
@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)], ids=["square", "tall", "wide"])
@pytest.mark.parametrize(
    ("orthogonal_map", "dtype"),
    [
        *[(name, torch.float32) for name in ("matrix_exp", "cayley", "householder")],
        *[(name, torch.float64) for name in ("matrix_exp", "cayley", "householder")],
        *[(name, torch.complex64) for name in ("matrix_exp", "cayley")],  # all that torch has
    ],
)
def test_torchs_parametrization_of_a_linear_layer(orthogonal_map, dtype, shape, use_trivialization):
    layer = nn.Linear(shape[1], shape[0], dtype=dtype)
    orthogonal(layer, "weight", orthogonal_map, use_trivialization=use_trivialization)
    x = torch.randn(5, shape[1], dtype=dtype)
    check(trained(layer, x), x)
    assert type(layer) is nn.Linear


@pytest.mark.parametrize("use_trivialization", [True, False])
@pytest.mark.parametrize("shape", [(3, 6, 6), (2, 3, 7, 4), (3, 4, 7)])
@pytest.mark.parametrize("orthogonal_map", ["matrix_exp", "cayley", "householder"])
def test_torchs_parametrization_of_a_bank(orthogonal_map, shape, use_trivialization):
    bank = Bank(*shape)
    orthogonal(bank, "weight", orthogonal_map, use_trivialization=use_trivialization)
    x = torch.randn(*shape[:-2], shape[-1])
    (weight,) = check(trained(bank, x), x)
    assert weight.shape == shape


def test_recurrent_weights_and_a_whole_model():
    torch.manual_seed(0)
    rnn = orthogonal(nn.RNN(3, 8), "weight_hh_l0")
    check(rnn, torch.randn(4, 2, 3))
    attention = orthogonal(nn.MultiheadAttention(8, 2), "in_proj_weight")
    x = torch.randn(4, 2, 8)
    (weight,) = check(attention, (x, x, x))
    assert projunn.matrix_view(weight).shape == (24, 8)  # one tall matrix, as it was
    model = nn.Sequential(
        orthogonal(nn.Linear(6, 6)), nn.Tanh(), nn.Sequential(weight_norm(nn.Linear(6, 6)), nn.Tanh())
    )
    model.append(orthogonal(nn.Linear(6, 6), orthogonal_map="cayley"))
    x = torch.randn(5, 6)
    before = model(x)
    convert(model, "3.*")
    assert [type(m) is nn.Linear for m in (model[0], model[3])] == [False, True]
    convert(model)
    torch.testing.assert_close(model(x), before, atol=NEAR, rtol=NEAR)
    assert isinstance(model[0].weight, UnitaryParameter)
    assert parametrize.is_parametrized(model[2][0])  # not a matter of orthogonality


def test_what_is_converted_is_saved_loaded_and_let_go_like_any_other():
    layer = trained(orthogonal(nn.Linear(5, 5)), torch.randn(4, 5))
    convert(layer)
    plain = nn.Linear(5, 5)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(3, 5)
    assert torch.equal(plain(x), layer(x))
    assert type(copy.deepcopy(layer).weight) is UnitaryParameter
    projunn.unconstrain(layer)
    assert type(layer.weight) is nn.Parameter
    assert torch.equal(plain(x), layer(x))


def test_the_original_of_a_copy_that_is_converted_goes_on_working():
    """Both have the same class, whose property PyTorch removes with a parametrization."""
    model = nn.Sequential(orthogonal(nn.Linear(4, 4)), nn.Tanh())
    x = torch.randn(3, 4)
    expected, other = model(x), copy.deepcopy(model)
    convert(other)
    assert torch.equal(model(x), expected)
    torch.testing.assert_close(other(x), expected, atol=NEAR, rtol=NEAR)
    again = copy.deepcopy(model)
    convert(model)
    torch.testing.assert_close(again(x), expected, atol=NEAR, rtol=NEAR)
    assert [type(m[0]) is nn.Linear for m in (model, other, again)] == [True, True, False]


def test_frozen_weights_stay_frozen_and_old_gradients_go():
    layer = orthogonal(nn.Linear(4, 4))
    layer(torch.ones(1, 4)).sum().backward()
    layer.parametrizations.weight.original.requires_grad_(False)
    convert(layer)
    assert layer.weight.grad is None
    assert not layer.weight.requires_grad


def test_a_weight_off_the_manifold_is_said_with_its_defect():
    layer = orthogonal(nn.Linear(4, 4))
    layer.parametrizations.weight[0].base.mul_(1.01)
    with pytest.warns(OffManifoldWarning, match=r"'?weight'? \(0\.02"):
        convert(layer)
    assert defect(layer.weight.detach()) < 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(orthogonal(nn.Linear(4, 4)))


def two_parametrizations():
    layer = orthogonal(nn.Linear(4, 4))
    return parametrize.register_parametrization(layer, "weight", nn.Identity())


def shared_original():
    pair = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    pair[1].weight = pair[0].weight
    orthogonal(pair[0])
    return pair


def not_finite():
    layer = orthogonal(nn.Linear(4, 4))
    with torch.no_grad():
        layer.parametrizations.weight.original[1, 0] = torch.nan
    return layer


def layer_of_peft():
    layer = nn.Linear(4, 4)
    layer.oft_R = nn.ModuleDict()
    return layer


@pytest.mark.parametrize(
    ("make", "name", "error", "words"),
    [
        (lambda: nn.Linear(4, 4), "*", ValueError, ["module", "orthogonal", "none", "constrain"]),
        (layer_of_peft, "*", ValueError, ["PEFT's OFT", "projunn.nn.rotation_from_skew"]),
        (lambda: orthogonal(nn.Linear(4, 4)), "1.*", ValueError, ["'1.*'", "weight"]),
        (two_parametrizations, "*", ValueError, ["'weight'", "2 parametrizations"]),
        (shared_original, "*", ValueError, ["'0.weight'", "shared"]),
        (not_finite, "*", ValueError, ["'weight'", "not finite"]),
        (lambda: orthogonal(nn.Linear(4, 4)).bfloat16(), "*", (TypeError, RuntimeError), ["16"]),
        (lambda: orthogonal(nn.Linear(4, 4)), 3, TypeError, ["name", "3"]),
        (lambda: 3, "*", TypeError, ["module"]),
    ],
)
def test_what_cannot_be_converted_is_refused_in_words(make, name, error, words):
    module = make()
    with pytest.raises(error) as caught:
        convert(module, name)
    assert all(word in str(caught.value) for word in words), caught.value
    if isinstance(module, nn.Module):
        assert unitary_parameters(module) == []


# ---- geotorch and geoopt


@pytest.mark.requires("geotorch")
@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)], ids=["square", "tall", "wide"])
@pytest.mark.parametrize("triv", ["expm", "cayley"])
def test_geotorch(triv, shape):
    import geotorch

    layer = geotorch.orthogonal(nn.Linear(shape[1], shape[0]), "weight", triv=triv)
    x = torch.randn(5, shape[1])
    check(trained(layer, x), x)
    filters = geotorch.orthogonal(nn.Conv2d(2, 3, (3, 2)), "weight", triv=triv)
    x = torch.randn(2, 2, 6, 6)
    (weight,) = check(trained(filters, x), x)
    assert weight.shape == (3, 2, 3, 2)  # a bank of 3 x 2 matrices, as geotorch reads it


@pytest.mark.requires("geotorch")
def test_other_manifolds_of_geotorch_are_refused_by_name():
    import geotorch

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    geotorch.orthogonal(model[0], "weight")
    geotorch.sphere(model[1], "weight")
    geotorch.grassmannian(model[2], "weight")
    with pytest.raises(ValueError, match=r"'1.weight' is kept by geotorch.Sphere.*Grassmannian"):
        convert(model)
    assert unitary_parameters(model) == []
    assert len(unitary_parameters(convert(model, "0.weight"))) == 1


@pytest.mark.requires("geoopt")
@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (3, 5, 5)])
@pytest.mark.parametrize("kind", ["Stiefel", "EuclideanStiefel", "CanonicalStiefel", "scaled"])
def test_geoopt(kind, shape):
    import geoopt

    manifold = geoopt.Scaled(geoopt.Stiefel()) if kind == "scaled" else getattr(geoopt, kind)()
    bank = Bank(*shape)
    data = projunn.init.haar_(torch.empty(shape))
    bank.weight = geoopt.ManifoldParameter(data, manifold=manifold)
    x = torch.randn(*shape[:-2], shape[-1])
    weight = trained(bank, x, geoopt.optim.RiemannianSGD).weight
    check(bank, x)
    assert bank.weight is weight
    assert type(weight) is UnitaryParameter
    assert not hasattr(weight, "manifold")
    assert type(copy.deepcopy(bank).weight) is UnitaryParameter


@pytest.mark.requires("geoopt")
def test_other_manifolds_of_geoopt_are_refused_by_name():
    import geoopt

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].weight = geoopt.ManifoldParameter(torch.eye(4), manifold=geoopt.Sphere())
    model[1].weight = geoopt.ManifoldParameter(torch.eye(4), manifold=geoopt.Stiefel())
    model[1].bias = geoopt.ManifoldParameter(model[1].bias.data)  # Euclidean
    with pytest.raises(ValueError, match=r"'0.weight' is kept by geoopt on Sphere"):
        convert(model)
    assert unitary_parameters(model) == []
    assert unitary_parameters(convert(model, ["1.weight"])) == [model[1].weight]
    bank = Bank(4, 4)
    bank.weight = geoopt.ManifoldParameter(torch.eye(4) + 0j, manifold=geoopt.Stiefel())
    with pytest.raises(ValueError, match="without conjugation"):
        convert(bank)
