"""`projunn.constrain` by dotted names and patterns, and of the filters of 1 x 1 convolutions."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import projunn
from projunn import UnitaryParameter, constrain, matrix_view, unitarity_defect, unitary_parameters
from projunn.optim import SGD, AdamW


def transformer():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.Sequential(nn.Embedding(5, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 5))


def unitary_names(model):
    return [name for name, p in model.named_parameters() if isinstance(p, UnitaryParameter)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("2.weight", ["2.weight"]),
        ("1.layers.0.linear1.weight", ["1.layers.0.linear1.weight"]),
        (
            "1.layers.*.linear?.weight",
            [f"1.layers.{i}.linear{j}.weight" for i in "01" for j in "12"],
        ),
        ("1.layers.[1]*.out_proj.*", ["1.layers.1.self_attn.out_proj.weight"]),
        (["2.weight", "1.layers.0.*.out_proj.*"], ["1.layers.0.self_attn.out_proj.weight", "2.weight"]),
    ],
)
def test_names_and_patterns_select_matrices(name, expected):
    model = transformer()
    assert constrain(model, name) is model
    assert unitary_names(model) == expected
    for p in unitary_parameters(model):
        assert unitarity_defect(p).max() < 1e-6
    model(torch.zeros(2, 3, dtype=torch.int64)).square().sum().backward()
    SGD(model.parameters(), lr=0.1).step()


def test_in_proj_weight_is_three_matrices_by_a_pattern_too():
    model = constrain(transformer(), "*.in_proj_weight")
    assert [matrix_view(p).shape for p in unitary_parameters(model)] == [(3, 8, 8)] * 2


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("*", ValueError, ["'0.weight'", "Embedding", "looked up"]),
        ("0.weight", ValueError, ["'0.weight'", "Embedding"]),
        ("1.layers.2.*", ValueError, ["'1.layers.2.*'", "0.weight, 1.layers.0"]),
        ("1.layers.0.linear1.bias", ValueError, ["'1.layers.0.linear1.bias'", "(16,)"]),
        ([], ValueError, ["name"]),
        (["2.weight", 3], TypeError, ["name", "pattern"]),
        (3, TypeError, ["name", "3"]),
    ],
)
def test_what_a_name_cannot_mean_is_said_and_nothing_changes(name, error, words):
    model = transformer()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error) as caught:
        constrain(model, name)
    assert all(word in str(caught.value) for word in words), caught.value
    assert unitary_parameters(model) == []
    assert all(torch.equal(before[n], value) for n, value in model.state_dict().items())


def test_weights_of_norms_are_no_matrices_even_with_two_axes():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm([4, 4]), nn.RMSNorm([4, 4]))
    constrain(model, "*")
    assert unitary_names(model) == ["0.weight"]
    with pytest.raises(ValueError, match=r"'1\.weight' of LayerNorm"):
        constrain(model, "1.weight")


def test_a_table_that_is_tied_to_another_layer_is_refused_there_too():
    model = transformer()
    model[2].weight = model[0].weight
    with pytest.raises(ValueError, match="Embedding"):
        constrain(model, "2.weight")


def test_a_tied_weight_is_projected_once_and_stays_tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    constrain(model, "*.weight")
    assert model[1].weight is model[0].weight
    assert len(unitary_parameters(model)) == 1


CONVOLUTIONS = {
    "1d": (lambda: nn.Conv1d(6, 4, 1), (4, 6)),
    "2d": (lambda: nn.Conv2d(5, 5, 1), (5, 5)),
    "2d, channels last": (lambda: nn.Conv2d(5, 8, 1).to(memory_format=torch.channels_last), (8, 5)),
    "3d": (lambda: nn.Conv3d(2, 3, 1), (3, 2)),
    "groups": (lambda: nn.Conv2d(6, 9, 1, groups=3), (3, 3, 2)),
    "complex": (lambda: nn.Conv2d(3, 3, 1, dtype=torch.complex64), (3, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 4, 1), (4, 4)),
}


def image(conv):
    axes = len(conv.kernel_size)
    return torch.randn(2, conv.in_channels, *[3] * axes, dtype=conv.weight.dtype)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("rule", [SGD, AdamW])
def test_a_1_x_1_filter_is_a_matrix(name, rule):
    make, shape = CONVOLUTIONS[name]
    torch.manual_seed(0)
    conv = make()
    matrices = conv.weight.detach().reshape(shape).clone()
    constrain(conv)
    assert matrix_view(conv.weight).shape == shape
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    torch.testing.assert_close(matrix_view(conv.weight).detach(), u @ vh, atol=1e-5, rtol=0)
    # the same steps as a parameter that holds the matrices alone takes
    plain = UnitaryParameter(matrix_view(conv.weight).detach().clone())
    ours = rule([conv.weight], lr=0.3, rank=1, **({"momentum": 0.9} if rule is SGD else {}))
    theirs = rule([plain], lr=0.3, rank=1, **({"momentum": 0.9} if rule is SGD else {}))
    for _ in range(4):
        ours.zero_grad()
        conv(image(conv)).abs().square().mean().backward()
        plain.grad = conv.weight.grad.reshape(shape).clone()
        ours.step()
        theirs.step()
        assert torch.equal(matrix_view(conv.weight), plain)
    for tensor in (conv.weight, conv.weight.data, conv.weight.detach(), conv.state_dict()["weight"]):
        assert unitarity_defect(tensor).max() < 1e-6
        assert unitarity_defect(matrix_view(tensor)).max() < 1e-6


def test_a_1_x_1_convolution_of_as_many_channels_keeps_the_norm():
    conv = constrain(nn.Conv2d(6, 6, 1, bias=False))
    x = torch.randn(2, 6, 5, 4)
    torch.testing.assert_close(conv(x).norm(), x.norm(), rtol=1e-5, atol=0)


def saved_and_loaded(conv):
    file = io.BytesIO()
    torch.save(conv.state_dict(), file)
    other = constrain(nn.Conv2d(4, 6, 1))
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue())), assign=True)
    return other


@pytest.mark.parametrize(
    "journey",
    [
        copy.deepcopy,
        lambda conv: pickle.loads(pickle.dumps(conv)),
        saved_and_loaded,
        lambda conv: copy.deepcopy(conv).double().float(),
        lambda conv: projunn.project_(copy.deepcopy(conv)),
        lambda conv: constrain(copy.deepcopy(conv)),
    ],
    ids=["deepcopy", "pickle", "assign", "conversion", "project_", "constrain again"],
)
def test_a_1_x_1_filter_is_remembered(journey):
    conv = constrain(nn.Conv2d(4, 6, 1))
    other = journey(conv)
    (weight,) = unitary_parameters(other)
    assert weight.shape == (6, 4, 1, 1)
    torch.testing.assert_close(matrix_view(weight), matrix_view(conv.weight), atol=1e-6, rtol=0)
    projunn.unconstrain(other)
    assert type(other.weight) is nn.Parameter
    assert matrix_view(other.weight).shape == (6, 4, 1, 1)


def test_state_of_torchs_optimizer_loads_for_a_1_x_1_filter():
    conv = nn.Conv2d(4, 6, 1, groups=2)
    theirs = torch.optim.AdamW(conv.parameters(), lr=0.1)
    conv(image(conv)).square().mean().backward()
    theirs.step()
    constrain(conv)
    ours = AdamW(conv.parameters(), lr=0.1)
    ours.load_state_dict(theirs.state_dict())
    expected = theirs.state_dict()["state"][0]["exp_avg_sq"].reshape(2, 3, 2)
    assert torch.equal(ours.state[conv.weight]["exp_avg_sq"], expected)
    ours.step()


def test_larger_filters_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, (1, 3)))
    with pytest.raises(ValueError, match=r"not one matrix.*'1\.weight'"):
        constrain(model, "*.weight")
    assert unitary_names(constrain(model, "0.*")) == ["0.weight"]


def test_a_compiled_step_of_a_1_x_1_filter_is_the_eager_one():
    torch.manual_seed(0)
    conv = constrain(nn.Conv2d(4, 6, 1))
    other = copy.deepcopy(conv)
    eager, traced = (AdamW(m.parameters(), lr=torch.tensor(0.1)) for m in (conv, other))
    step = torch.compile(traced.step, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        for p, q in zip(conv.parameters(), other.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        eager.step()
        step()
        assert torch.equal(conv.weight, other.weight)


@pytest.mark.parametrize("name", ["shared.weight", "other.weight", "tied.weight"])
def test_a_shared_weight_is_unitary_under_each_of_its_names(name):
    model = nn.Module()
    model.shared, model.tied = nn.Linear(4, 4), nn.Linear(4, 4)
    model.other, model.tied.weight = model.shared, model.shared.weight
    with pytest.raises(ValueError, match=f"3 does not divide the 4 rows of '{name}'"):
        constrain(model, name, blocks=3)
    constrain(model, name)
    saved = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(saved, assign=True)  # makes a parameter for each module
    assert unitary_parameters(model) == [model.shared.weight, model.tied.weight]
