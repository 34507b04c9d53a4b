"""Orthogonal fine-tuning: rotations of the input of a pretrained layer."""

import copy

import pytest
import torch
from torch import nn

import projunn
from projunn.nn import (
    OrthogonalFinetuning,
    finetune,
    merge,
    rotation_from_skew,
    skew_from_rotation,
)
from projunn.optim import AdamW


def trained(layer, steps=20, seed=0):
    """The layer, after some steps towards random outputs."""
    optimizer = AdamW(layer.parameters(), lr=0.3, rank=2)
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(32, layer.in_features, generator=source)
    y = torch.randn(32, layer.out_features, generator=source)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (layer(x) - y).square().mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return losses


@pytest.mark.parametrize("bias", [True, False])
def test_it_starts_as_the_pretrained_layer_learns_and_merges_into_one(bias):
    linear = nn.Linear(24, 10, bias=bias)
    before = copy.deepcopy(linear)
    layer = OrthogonalFinetuning(linear, 8)
    x = torch.randn(5, 3, 24)
    torch.testing.assert_close(layer(x), before(x), rtol=0, atol=1e-6)
    losses = trained(layer)
    assert losses[-1] < losses[0]
    assert projunn.unitarity_defect(layer.rotation).max() < 1e-6
    assert torch.equal(linear.weight, before.weight)
    plain = layer.merge()
    assert type(plain) is nn.Linear
    assert not torch.allclose(plain(x), before(x), atol=1e-2)
    torch.testing.assert_close(plain(x), layer(x), rtol=0, atol=2e-6)


def test_the_merged_weight_is_that_of_the_formula_and_keeps_singular_values():
    layer = OrthogonalFinetuning(nn.Linear(24, 10), 6)
    trained(layer)
    w, r = layer.linear.weight.double(), layer.rotation.detach().double()
    expected = w @ torch.block_diag(*r).mT
    found = layer.merge().weight.double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    values = [torch.linalg.svdvals(m) for m in (w, found)]
    torch.testing.assert_close(*values, rtol=1e-6, atol=0)


def test_a_whole_model_is_wrapped_by_name_trained_and_merged():
    model = nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))
    )
    model.append(model[2][1])  # not of the pattern, and shared
    assert finetune(model, "2.*", 4) is model
    kinds = [type(model[0]), type(model[2][0]), type(model[2][1])]
    assert kinds == [nn.Linear, OrthogonalFinetuning, OrthogonalFinetuning]
    learned = [name for name, p in model.named_parameters() if p.requires_grad]
    assert learned == ["2.0.rotation", "2.1.rotation"]
    assert [p.shape for p in projunn.unitary_parameters(model)] == [(4, 4, 4), (4, 4, 4)]
    optimizer = AdamW(model.parameters(), lr=0.1)
    x = torch.randn(7, 8)
    head = nn.Sequential(*model[:3])
    for _ in range(5):
        optimizer.zero_grad()
        head(x).square().sum().backward()
        optimizer.step()
    after = head(x)
    assert merge(model) is model
    assert not [m for m in model.modules() if isinstance(m, OrthogonalFinetuning)]
    learned = [name for name, p in model.named_parameters() if p.requires_grad]
    assert learned == ["2.0.weight", "2.0.bias", "2.1.weight", "2.1.bias"]
    torch.testing.assert_close(nn.Sequential(*model[:3])(x), after, rtol=0, atol=1e-5)


def test_each_call_may_have_its_own_pattern_and_the_rotations_of_earlier_ones_stay_as_they_were():
    model = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("q", "k", "mlp")})
    finetune(finetune(model, "q", 4), "k", 8)
    model["k"].rotation.requires_grad_(False)
    finetune(model, "mlp", 2)
    learned = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    assert learned == {"q.rotation": (2, 4, 4), "mlp.rotation": (4, 2, 2)}
    with pytest.raises(ValueError, match="there are none inside the model without rotations"):
        finetune(model, "*", 4)


def test_a_merge_that_finds_nothing_says_so():
    model = finetune(nn.Sequential(nn.Linear(8, 8)), "*", 4)
    merged = copy.deepcopy(merge(model))
    with pytest.warns(UserWarning, match="Sequential has no projunn.nn.OrthogonalFinetuning"):
        assert merge(model) is model
    x = torch.randn(3, 8)
    assert torch.equal(model(x), merged(x))


def test_a_shared_layer_is_wrapped_and_merged_once():
    shared = nn.Linear(8, 8)
    model = finetune(nn.ModuleDict({"a": shared, "b": shared}), "*", 4)
    assert model["a"] is model["b"]
    merge(model)
    assert model["a"] is model["b"]
    assert type(model["a"]) is nn.Linear


@pytest.mark.parametrize("blocks", [1, 2])
def test_what_was_constrained_below_its_rotations_is_so_when_they_are_merged(blocks):
    model = nn.Sequential(projunn.constrain(nn.Linear(8, 16), "weight", blocks=blocks))
    projunn.init.haar_(finetune(model, "*", 4)[0].rotation)
    merge(model)
    assert projunn.unitary_parameters(model) == [model[0].weight]
    assert model[0].weight.blocks == blocks
    optimizer = AdamW(model.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(7, 8)).square().sum().backward()
        optimizer.step()
    assert projunn.unitarity_defect(model[0].weight).max() < 1e-6


def test_wrapped_and_merged_layers_are_in_the_mode_of_their_model():
    model = finetune(nn.Sequential(nn.Linear(8, 8)).eval(), block_size=4)
    assert not any(module.training for module in model.modules())
    assert not merge(model)[0].training
    assert merge(finetune(model.train(), block_size=4))[0].training


def test_a_model_that_cannot_be_wrapped_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 3))
    with pytest.raises(ValueError, match="block_size: 4 does not divide in_features = 6"):
        finetune(model, "*", 4)
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(
        ValueError, match=r"pattern: 'head' is the name of no nn\.Linear; there are '0', '1'"
    ):
        finetune(model, "head", 4)
    with pytest.raises(ValueError, match="there are none inside the model without"):
        finetune(nn.Sequential(), "*", 4)
    with pytest.raises(ValueError, match=r"wanted OrthogonalFinetuning\(model, 4\)"):
        finetune(nn.Linear(8, 8), "*", 4)


def test_a_layer_in_half_precision_has_rotations_in_float32():
    layer = OrthogonalFinetuning(nn.Linear(8, 4).bfloat16(), 4)
    assert layer.rotation.dtype == torch.float32
    x = torch.randn(3, 8).bfloat16()
    assert torch.equal(layer(x), layer.linear(x))
    assert layer.merge().weight.dtype == torch.bfloat16


def test_a_state_dict_makes_the_round_trip():
    layer = OrthogonalFinetuning(nn.Linear(8, 4), 4)
    trained(layer)
    other = OrthogonalFinetuning(nn.Linear(8, 4), 4)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(3, 8)
    assert torch.equal(other(x), layer(x))
    assert projunn.unitary_parameters(other) == [other.rotation]


def test_it_compiles_without_a_break():
    layer = OrthogonalFinetuning(nn.Linear(8, 4), 4)
    x = torch.randn(3, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


def skew_of(vectors, size):
    """The skew-symmetric matrices of vectors, row by row above the diagonal, entry by entry."""
    q = torch.zeros(*vectors.shape[:-1], size, size, dtype=torch.float64)
    entries = iter(range(vectors.shape[-1]))
    for i in range(size):
        for j in range(i + 1, size):
            q[..., i, j] = vectors[..., next(entries)]
            q[..., j, i] = -q[..., i, j]
    return q


@pytest.mark.parametrize("size", [1, 2, 5, 16])
@pytest.mark.parametrize("scale", [1e-3, 0.3, 10.0])
def test_skew_parameters_become_exact_rotations_and_come_back(size, scale):
    vectors = scale * torch.randn(3, size * (size - 1) // 2)
    rotation = rotation_from_skew(vectors)
    assert projunn.unitarity_defect(rotation).max() < 1e-6
    q, identity = skew_of(vectors, size), torch.eye(size, dtype=torch.float64)
    expected = (identity + q) @ torch.linalg.inv(identity - q)
    torch.testing.assert_close(rotation.double(), expected, rtol=0, atol=1e-6)
    inverse = rotation_from_skew(vectors, transposed=True)
    torch.testing.assert_close(inverse, rotation.mT, rtol=0, atol=1e-6)
    for transposed in (False, True):
        exact = rotation_from_skew(vectors.double(), transposed=transposed)
        back = skew_from_rotation(exact, transposed=transposed)
        torch.testing.assert_close(back, vectors.double(), rtol=1e-9, atol=1e-9)


def test_small_parameters_give_what_the_truncated_series_gives():
    q = skew_of(vectors := 0.01 * torch.randn(4, 28, dtype=torch.float64), 8)
    series = torch.eye(8) + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q
    torch.testing.assert_close(rotation_from_skew(vectors), series, rtol=0, atol=1e-5)


def test_rotations_that_no_skew_parameters_reach_are_refused():
    half_turn = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    for matrix in (half_turn, torch.diag(torch.tensor([1.0, 1.0, -1.0]))):
        with pytest.raises(ValueError, match="rotation: a matrix has an eigenvalue -1"):
            skew_from_rotation(matrix)


def test_programs_that_read_a_weight_find_that_of_the_merged_layer():
    """As `nn.TransformerEncoder` does in evaluation, without gradients."""
    encoder = nn.TransformerEncoderLayer(16, 2, 24, dropout=0, batch_first=True)
    model, x = finetune(nn.TransformerEncoder(encoder, 2), "*.linear?", 8), torch.randn(3, 5, 16)
    for layer in model.modules():
        if isinstance(layer, OrthogonalFinetuning):
            projunn.init.haar_(layer.rotation)
            torch.testing.assert_close(layer.weight, layer.merge().weight, rtol=0, atol=0)
            assert layer.bias is layer.linear.bias
            assert layer.weight.requires_grad
    expected = model(x)
    with torch.no_grad():
        found = model.eval()(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: OrthogonalFinetuning(nn.Conv1d(2, 2, 1), 2), "linear: got"),
        (lambda: OrthogonalFinetuning(nn.Linear(4, 4), 0), "block_size: got 0"),
        (lambda: OrthogonalFinetuning(nn.Linear(4, 4, dtype=torch.complex64), 2), "linear: is torch.c"),
        (lambda: OrthogonalFinetuning(nn.Linear(4, 4), 2)(torch.randn(3)), "input: got shape"),
        (lambda: finetune(nn.Sequential(), ["0", "1"]), "pattern: got .* wanted one name or pattern"),
        (lambda: rotation_from_skew(torch.randn(3, 4)), "vectors: got shape"),
        (lambda: rotation_from_skew(torch.full((1, 3), torch.nan)), "vectors: has entries"),
        (lambda: skew_from_rotation(torch.randn(3, 4)), "rotation: got shape"),
        (lambda: skew_from_rotation(torch.eye(3).half()), "rotation: is torch.float16"),
    ],
)
def test_bad_arguments_are_named(call, word):
    with pytest.raises((TypeError, ValueError), match=word):
        call()
