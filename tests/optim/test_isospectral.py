"""`projunn.optim.Isospectral`: rotations of both sides of any matrix, which keep its singular values."""

import copy

import pytest
import torch
from torch import nn

import projunn
from projunn.nn import UnitaryConv1d, UnitaryLinear
from projunn.optim import Isospectral

SHAPES = {"square": (12, 12), "wide": (6, 12), "tall": (12, 6)}


def values(matrix):
    return torch.linalg.svdvals(matrix.detach().double())


def skew(matrix):
    return (matrix - matrix.mH) / 2


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("sides", ["both", "left", "right"])
def test_a_step_is_that_of_the_formula_in_float64(shape, sides):
    """Along a gradient whose tangents have rank k, with momentum."""
    m, n = shape
    start = torch.randn(shape, dtype=torch.float64)
    parameter, expected = nn.Parameter(start.clone()), start.clone()
    optimizer = Isospectral([parameter], lr=0.1, momentum=0.5, rank=6, sides=sides)
    columns, rows = torch.randn(m, 1, dtype=torch.float64), torch.randn(n, 1, dtype=torch.float64)
    right, left = (torch.zeros(size, size, dtype=torch.float64) for size in (n, m))
    for _ in range(2):  # A has rank 2 at first, and 4 then
        gradient = columns @ rows.mT
        parameter.grad = gradient.clone()
        optimizer.step()
        right = skew(expected.mH @ gradient) + 0.5 * right
        left = skew(gradient @ expected.mH) + 0.5 * left
        if sides != "left":
            expected = expected @ torch.linalg.matrix_exp(-0.1 * right)
        if sides != "right":
            expected = torch.linalg.matrix_exp(-0.1 * left) @ expected
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_singular_values_stay_in_float32(shape):
    _train_for(400, shape)


@pytest.mark.slow
def test_singular_values_stay_for_10000_steps():
    _train_for(10_000, (32, 48))


def _train_for(steps, shape):
    parameter = nn.Parameter(torch.randn(shape))
    before = values(parameter)
    optimizer = Isospectral([parameter], lr=0.02, momentum=0.9, rank=2)
    for _ in range(steps):
        parameter.grad = torch.randn(shape)
        optimizer.step()
    error = (values(parameter) - before).abs() / before[0]
    assert error.max() < 1e-6
    precise = parameter.detach().double() + optimizer.state[parameter]["rounding"]
    assert (values(precise) - before).abs().max() < 1e-10 * steps**0.5
    assert optimizer.skipped_steps() == 0


def test_it_goes_downhill_as_far_as_rotations_lead():
    """The nearest of all U W V to C has the singular vectors of C: ‖U W V - C‖ = ‖s(W) - s(C)‖."""
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(8, 8))
    target = torch.randn(8, 8)
    least = (values(parameter) - values(target)).square().sum()
    optimizer = Isospectral([parameter], lr=0.02, rank=8)
    for _ in range(600):
        optimizer.zero_grad()
        loss = (parameter - target).square().sum()
        loss.backward()
        optimizer.step()
    # The signs of two determinants may differ: then the least value costs 4 times a product.
    reflected = least + 4 * values(parameter)[-1] * values(target)[-1]
    assert min(abs(loss.item() - least), abs(loss.item() - reflected)) < 0.02 * least + 0.05


def test_other_parameters_take_torchs_step():
    options = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}
    start = nn.Linear(5, 3)
    models = [copy.deepcopy(start) for _ in range(2)]
    groups = [{"params": [models[0].weight], "isospectral": False}, {"params": [models[0].bias]}]
    ours, theirs = (
        Isospectral(groups, **options),
        torch.optim.SGD(models[1].parameters(), **options),
    )
    x = torch.randn(7, 5)
    for _ in range(4):
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("converted", [False, True])
def test_a_gradient_that_is_not_finite_changes_nothing(converted):
    """Nor where float64 has room for what rounding to float32 has taken from the weight."""
    parameter = nn.Parameter(torch.randn(8, 6))
    optimizer = Isospectral([parameter], lr=0.1, momentum=0.9)
    for _ in range(2):
        parameter.grad = torch.randn(8, 6)
        optimizer.step()
    if converted:
        parameter.grad, parameter.data = None, parameter.data.double()
        optimizer.load_state_dict(optimizer.state_dict())
    before = parameter.detach().clone(), copy.deepcopy(optimizer.state_dict()["state"][0])
    parameter.grad = torch.full_like(parameter, torch.inf)
    optimizer.step()
    assert torch.equal(parameter, before[0])
    after = optimizer.state_dict()["state"][0]
    assert all(torch.equal(after[name], before[1][name]) for name in after if name != "skipped")
    assert optimizer.skipped_steps() == 1


def test_state_that_is_saved_and_loaded_goes_on():
    parameter = nn.Parameter(torch.randn(8, 6))
    optimizer = Isospectral([parameter], lr=0.1, momentum=0.9)
    gradients = torch.randn(6, 8, 6)
    for gradient in gradients[:3]:
        parameter.grad = gradient.clone()
        optimizer.step()
    other = nn.Parameter(parameter.detach().clone())
    resumed = Isospectral([other])
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for gradient in gradients[3:]:
        for one, whose in ((parameter, optimizer), (other, resumed)):
            one.grad = gradient.clone()
            whose.step()
    assert torch.equal(parameter, other)


@pytest.mark.parametrize("ranks", [(4, 1), (1, 4), (4, 2), (2, 4)])
def test_momentum_outlives_another_rank(ranks):
    """Next to the optimizer that had the second rank from the start, on gradients of rank one."""
    torch.manual_seed(0)
    first, constant = torch.randn(8, 8), torch.outer(torch.randn(8), torch.randn(8))
    sizes = []
    for start in (ranks[0], ranks[1]):
        parameter = nn.Parameter(first.clone())
        optimizer = Isospectral([parameter], lr=1e-3, momentum=0.9, rank=start, sides="right")
        for number in range(8):
            if number == 4:
                optimizer.param_groups[0]["rank"] = ranks[1]
            parameter.grad = constant.clone()
            optimizer.step()
        state = optimizer.state[parameter]
        pulled, right = state["right_momentum_pulled"], state["right_momentum_right"]
        assert pulled.shape == right.shape == (8, ranks[1])
        half = pulled @ right.mT
        sizes.append((half - half.mT).norm() / 2)
    torch.testing.assert_close(*sizes, rtol=0.05, atol=0)


def test_what_it_cannot_turn_is_refused_in_words():
    half = nn.Parameter(torch.eye(4, dtype=torch.bfloat16))
    half.grad = torch.zeros_like(half)
    with pytest.raises(TypeError, match=r"is torch\.bfloat16, wanted one of"):
        Isospectral([half]).step()
    with pytest.raises(ValueError, match="sides: got 'top'"):
        Isospectral([half], sides="top")
    with pytest.raises(ValueError, match="rank: got 0"):
        Isospectral([half], rank=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_unitary_parameters_that_are_no_single_matrix_are_refused(dtype):
    """They took the step of SGD, which stretches them: those of complex layers, stored as pairs, too."""
    layer = UnitaryLinear(4, 4, dtype=dtype) if dtype.is_complex else UnitaryConv1d(2, 2, 3)
    layer(torch.randn(3, 2, 3) if dtype is torch.float32 else torch.randn(3, 4)).abs().sum().backward()
    with pytest.raises(TypeError, match="holds more than one real matrix"):
        Isospectral(layer.parameters(), lr=0.1).step()
    assert projunn.unitarity_defect(layer.weight).max() < 1e-5
