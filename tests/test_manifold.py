"""Unitary parameters: recognised, and still recognised after everything a module goes through."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import projunn
from projunn import UnitaryParameter, constrain, matrix_view, unitary_parameters
from projunn.nn import BlockUnitaryLinear, UnitaryLinear, UnitaryRNN
from tests.dense import defect, polar


def modules():
    torch.manual_seed(0)
    return {
        "linear": UnitaryLinear(4, 4),
        "complex linear": UnitaryLinear(4, 6, dtype=torch.complex64),
        "block": BlockUnitaryLinear(2, 3, num_factors=2),
        "rnn": UnitaryRNN(2, 4, num_layers=2, dtype=torch.complex64),
        "constrained linear": constrain(nn.Linear(5, 4)),
        "constrained complex linear": constrain(nn.Linear(5, 4, dtype=torch.complex64)),
        "constrained lstm": constrain(nn.LSTM(3, 4), "weight_hh_l0"),
        "nested": nn.Sequential(nn.Linear(3, 4), constrain(nn.Linear(4, 4)), UnitaryLinear(4, 4)),
    }


def torch_saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def state_loaded(module, assign):
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    other = copy.deepcopy(module)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load_state_dict(state, assign=assign)
    return other


JOURNEYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": torch_saved,
    "state_dict": lambda m: state_loaded(m, assign=False),
    "state_dict, assign": lambda m: state_loaded(m, assign=True),
    "deepcopy, then state_dict, assign": lambda m: state_loaded(copy.deepcopy(m), assign=True),
    "to": lambda m: copy.deepcopy(m).to("cpu"),
    "train and eval": lambda m: copy.deepcopy(m).eval().requires_grad_(False).train(),
}


@pytest.mark.parametrize("journey", JOURNEYS)
@pytest.mark.parametrize("name", modules())
def test_marks_survive(name, journey):
    module = modules()[name]
    other = JOURNEYS[journey](module)
    before, after = unitary_parameters(module), unitary_parameters(other)
    assert len(after) == len(before) > 0
    for p, q in zip(before, after, strict=True):
        assert (q.pairs, q.blocks) == (p.pairs, p.blocks)
        assert torch.equal(matrix_view(q), matrix_view(p))
        assert defect(matrix_view(q)) < 1e-6


def test_layers_made_on_the_meta_device_keep_their_marks():
    with torch.device("meta"):
        layer = UnitaryRNN(2, 4, dtype=torch.complex64)
    assert len(unitary_parameters(layer)) == 1
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    (weight,) = unitary_parameters(layer)
    assert weight.pairs
    assert defect(matrix_view(weight)) < 1e-6


def test_a_copy_has_no_gradient_as_one_of_a_plain_parameter():
    layer = UnitaryLinear(3, 3)
    layer(torch.ones(1, 3)).sum().backward()
    assert all(p.grad is None for p in copy.deepcopy(layer).parameters())


def test_tied_weights_stay_tied():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    constrain(first)
    assert second.weight is first.weight
    assert isinstance(second.weight, UnitaryParameter)
    pair = copy.deepcopy(nn.ModuleList([first, second]))
    assert pair[0].weight is pair[1].weight
    assert len(unitary_parameters(pair)) == 1


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5)])
def test_constrain_takes_the_nearest_matrix(kind, shape):
    layer = nn.Linear(shape[1], shape[0], dtype=kind)
    weight, identity = layer.weight.detach().clone(), id(layer.weight)
    assert constrain(layer) is layer
    assert id(layer.weight) == identity
    u, _, vh = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(layer.weight.detach(), u @ vh, atol=1e-5, rtol=0)
    assert defect(layer.weight.detach()) < 1e-6
    before = layer.weight.detach().clone()
    assert constrain(layer) is layer  # twice is once
    torch.testing.assert_close(layer.weight.detach(), before, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("cls", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1), (nn.LSTMCell, 4)])
def test_recurrent_weights_are_one_matrix_a_gate(cls, gates):
    cell = cls is nn.LSTMCell
    module, name = cls(3, 4), "weight_hh" if cell else "weight_hh_l0"
    before = getattr(module, name).detach().clone()
    constrain(module, name)
    (weight,) = unitary_parameters(module)
    assert weight.shape == (gates * 4, 4)
    assert matrix_view(weight).shape == ((gates, 4, 4) if gates > 1 else (4, 4))
    for gate, old in zip(weight.detach().view(gates, 4, 4), before.view(gates, 4, 4), strict=True):
        torch.testing.assert_close(gate, polar(old), atol=1e-5, rtol=0)
    optimizer = projunn.optim.AdamW(module.parameters(), lr=0.1)
    for _ in range(5):
        output = module(torch.randn(2, 3)) if cell else module(torch.randn(5, 2, 3))
        optimizer.zero_grad()
        output[0].square().sum().backward()
        optimizer.step()
    assert not torch.equal(weight, before)
    assert defect(matrix_view(weight).detach()) < 1e-6


def test_projection_weight_of_an_lstm_is_one_matrix():
    module = constrain(nn.LSTM(3, 6, proj_size=4), "weight_hr_l0")
    assert matrix_view(unitary_parameters(module)[0]).shape == (4, 6)


def test_matrix_view_of_anything_else_is_itself():
    tensor = torch.ones(3, 3)
    assert matrix_view(tensor) is tensor


@pytest.mark.parametrize(
    ("module", "name", "options", "error", "words"),
    [
        (nn.Linear(3, 3), "weights", {}, ValueError, ["name", "'weights'", "weight, bias"]),
        (nn.Linear(3, 3), "bias", {}, ValueError, ["name", "(3,)"]),
        (nn.Conv2d(3, 3, 3), "weight", {}, ValueError, ["module", "Conv2d"]),
        (nn.Linear(3, 4), "weight", {"blocks": 3}, ValueError, ["blocks", "3", "4 rows"]),
        (nn.Linear(3, 3).half(), "weight", {}, TypeError, ["name", "float16", "float32"]),
        (nn.ReLU(), "weight", {}, ValueError, ["name", "none"]),
    ],
)
def test_constrain_names_what_is_wrong(module, name, options, error, words):
    with pytest.raises(error) as caught:
        constrain(module, name, **options)
    assert all(word in str(caught.value) for word in words), caught.value


def test_constrain_refuses_what_is_not_finite_and_changes_nothing():
    layer = nn.Linear(3, 3)
    with torch.no_grad():
        layer.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        constrain(layer)
    assert type(layer.weight) is nn.Parameter


def test_an_expanded_tensor_is_refused_and_nothing_has_changed():
    layer, expanded = nn.Linear(3, 3), torch.ones(1, 3).expand(3, 3)
    layer.weight = nn.Parameter(expanded)
    with pytest.raises(ValueError, match="name: got an expanded tensor"):
        constrain(layer)
    assert type(layer.weight) is nn.Parameter
    with pytest.raises(ValueError, match="target: got an expanded tensor"):
        projunn.project_(expanded)


def test_what_was_unconstrained_stays_plain_after_a_compiled_step():
    """Whose graph is a module that holds the parameters, too."""
    layer = UnitaryLinear(4, 4, bias=False)
    optimizer = projunn.optim.SGD(layer.parameters(), lr=0.5)
    step = torch.compile(optimizer.step, backend="eager")
    layer.weight.grad = torch.randn(4, 4)
    step()
    projunn.unconstrain(layer)
    try:
        with pytest.raises(RuntimeError, match=r"made a plain one.*make the optimizer anew"):
            step()
    finally:
        torch.set_grad_enabled(True)  # which PyTorch forgets where a graph ends in an error
    before = layer.weight.detach().clone()
    optimizer = projunn.optim.SGD(layer.parameters(), lr=0.5)
    torch.compile(optimizer.step, backend="eager")()
    torch.testing.assert_close(layer.weight.detach(), before - 0.5 * layer.weight.grad)


def test_a_parameter_of_two_modules_is_unconstrained_in_both():
    one, other = UnitaryLinear(4, 4), UnitaryLinear(4, 4)
    other.weight = one.weight
    projunn.unconstrain(one)
    projunn.optim.SGD(other.parameters(), lr=0.5)  # which asks all modules
    assert type(other.weight) is nn.Parameter


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
@pytest.mark.parametrize("shape", [(5, 5), (3, 7, 4), (4, 7), (0, 3, 3)])
def test_products_find_the_nearest_matrix_as_an_svd_does(shape, dtype, monkeypatch):
    start = projunn.init.haar_(torch.empty(shape, dtype=dtype))
    precise = torch.complex128 if dtype.is_complex else torch.float64
    for size in (0.0, 1e-9, 1e-3, 0.02):
        near = start + size * torch.randn(shape, dtype=dtype)
        u, _, vh = torch.linalg.svd(near.to(precise), full_matrices=False)
        wanted = (u @ vh).to(dtype)
        with monkeypatch.context() as patch:
            patch.delattr(torch.linalg, "svd")
            found = projunn.project_(near)
        torch.testing.assert_close(found, wanted, rtol=0, atol=20 * torch.finfo(dtype).eps)


def test_other_rows_in_the_place_of_blocks_are_refused_until_their_number_is_given():
    layer = projunn.constrain(nn.Linear(3, 4), blocks=4)
    layer.weight = nn.Parameter(torch.randn(6, 3))
    with pytest.raises(ValueError, match=r"blocks: got 4 for a tensor of shape \(6, 3\).*constrain"):
        projunn.project_(layer)
    projunn.constrain(layer, blocks=6)
    assert projunn.unitarity_defect(layer.weight).shape == (6,)
