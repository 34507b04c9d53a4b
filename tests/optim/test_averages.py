"""``averages="tangent"``: a rule whose averages are of the tangent part, in the frame of each matrix."""

import copy

import pytest
import torch

import projunn
from projunn import UnitaryParameter, init, matrix_view, optim
from projunn.nn import UnitaryConv2d, UnitaryLinear
from tests.dense import defect

RULES = {
    "SGD": {"momentum": 0.9},
    "RMSprop": {"alpha": 0.8},
    "RMSprop, centered": {"alpha": 0.8, "centered": True, "momentum": 0.5},
    "AdamW": {"amsgrad": True},
    "Lion": {"betas": (0.8, 0.9)},
}
PLAIN = {"SGD": torch.optim.SGD, "RMSprop": torch.optim.RMSprop, "AdamW": torch.optim.AdamW}
KINDS = (torch.float64, torch.complex128)


def unitary(*batch, n=6, kind=torch.float64):
    return init.haar_(torch.empty(*batch, n, n, dtype=kind))


def tangent(weight, gradient):
    pulled = weight.mH @ gradient
    return (pulled - pulled.mH) / 2


def made(rule, parameters, **options):
    given = {"lr": 0.01, "unitary_lr": 0.01, "averages": "tangent", "rank": 6, "polish_every": 0}
    return getattr(optim, rule.split(",")[0])(parameters, **{**given, **RULES[rule], **options})


@pytest.mark.parametrize("rule", ["SGD", "RMSprop", "RMSprop, centered", "AdamW"])
def test_a_step_of_full_rank_is_torchs_rule_on_the_tangent(rule):
    """W exp(-rate D), where D is what torch.optim makes of the tangents so far."""
    weight = UnitaryParameter(unitary())
    optimizer = made(rule, [weight])
    coordinates = torch.zeros(6, 6, dtype=torch.float64, requires_grad=True)
    plain = PLAIN[rule.split(",")[0]]([coordinates], lr=0.01, weight_decay=0, **RULES[rule])
    wanted = weight.detach().clone()
    for _ in range(5):
        gradient = torch.randn(6, 6, dtype=torch.float64)
        weight.grad, coordinates.grad = gradient.clone(), tangent(wanted, gradient)
        before = coordinates.detach().clone()
        optimizer.step()
        plain.step()
        wanted = wanted @ torch.linalg.matrix_exp(coordinates.detach() - before)
        torch.testing.assert_close(weight.detach(), wanted, atol=1e-9, rtol=0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_directions_are_tangent_and_weights_stay_unitary(rule, kind):
    weight = UnitaryParameter(unitary(3, kind=kind))
    optimizer = made(rule, [weight], rank=2)
    for _ in range(19):
        weight.grad = torch.randn_like(weight)
        optimizer.step()
    (part,) = optimizer._together._parts
    gradient, take, directions = part.gradients[0], part.take, []
    part.take = lambda: (directions.append(gradient.direction), take())
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    (direction,) = directions
    held = matrix_view(weight.detach())
    inner = held.mH @ direction
    # the weight has moved along it since, by a small step
    assert (inner + inner.mH).abs().max() < 0.3 * inner.abs().max()
    assert defect(held) < 1e-12


def test_the_kernels_follow_the_same_rule(kernels):
    results = []
    for backend, device in (
        (kernels.backend, kernels.device),
        (lambda: projunn.backend("torch"), "cpu"),
    ):
        torch.manual_seed(0)
        weight = UnitaryParameter(init.haar_(torch.empty(2, 24, 24)).to(device))
        optimizer = made("RMSprop", [weight], rank=1)
        with backend():
            for _ in range(4):
                weight.grad = torch.randn(2, 24, 24).to(device)
                optimizer.step()
        results.append(weight.detach().cpu())
    torch.testing.assert_close(*results, atol=1e-5, rtol=0)


def test_small_parameters_of_a_bank_see_their_weights():
    """Those of one shape step as one bank on a CPU: as each does alone."""
    starts, gradients = unitary(4), torch.randn(3, 4, 6, 6, dtype=torch.float64)
    together = [UnitaryParameter(start.clone()) for start in starts]
    alone = [UnitaryParameter(start.clone()) for start in starts]
    first, others = made("RMSprop", together), [made("RMSprop", [p]) for p in alone]
    for each in gradients:
        for ours, own, gradient in zip(together, alone, each, strict=True):
            ours.grad, own.grad = gradient.clone(), gradient.clone()
        first.step()
        for other in others:
            other.step()
    for ours, own in zip(together, alone, strict=True):
        torch.testing.assert_close(ours.detach(), own.detach(), atol=1e-10, rtol=0)


@pytest.mark.parametrize(("m", "n"), [(3, 5), (5, 3)])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_rectangular_matrix_has_the_tangent_part_itself(m, n, kind):
    """A step without averages is that of the gradient: a rule sees the part of it that moves W."""
    start = init.haar_(torch.empty(2, m, n, dtype=kind))
    gradient = torch.randn_like(start)
    mirrored = start @ gradient.mH @ start
    weight = UnitaryParameter(start.clone())
    weight.grad = gradient
    optimizer = made("RMSprop", [weight], alpha=0.5, eps=0)
    optimizer.step()
    part = (gradient - mirrored) / 2
    step = -0.01 * 2**0.5 * part / part.abs()
    ones = torch.eye(min(m, n), dtype=kind).expand(2, -1, -1)
    wanted = projunn.retract(start, *((step, ones) if m > n else (ones, step.mH)))
    torch.testing.assert_close(weight.detach(), wanted, atol=1e-9, rtol=0)


@pytest.mark.parametrize("shape", [(8, 3), (1, 8)])
def test_only_tangent_averages_end_at_the_optimum(shape):
    """The leading eigenvectors of a matrix, where the gradient is normal to the manifold but not zero.

    Divided by the root of second moments it is not normal, so that the usual averages end elsewhere.
    """
    torch.manual_seed(0)
    factor, few = torch.randn(8, 8, dtype=torch.float64), min(shape)
    matrix, weights = factor @ factor.mT, torch.arange(few, 0, -1, dtype=torch.float64)
    best = torch.linalg.eigvalsh(matrix).flip(0)[:few] @ weights
    gaps = {}
    for averages in ("gradient", "tangent"):
        torch.manual_seed(1)
        weight = UnitaryParameter(init.haar_(torch.empty(shape, dtype=torch.float64)))
        optimizer = optim.AdamW([weight], lr=1e-2, rank=3, averages=averages)
        for _ in range(250):
            optimizer.zero_grad()
            columns = weight if shape[0] >= shape[1] else weight.mT
            loss = -torch.einsum("ik,ij,jk,k->", columns, matrix, columns, weights)
            loss.backward()
            optimizer.step()
        gaps[averages] = float(1 + loss.detach() / best)
    assert abs(gaps["tangent"]) < 1e-4
    assert gaps["gradient"] > 1e-2


def test_some_matrices_of_a_bank():
    bank = UnitaryParameter(unitary(5))
    optimizer = made("RMSprop", [bank])
    before = bank.detach().clone()
    projunn.nn.select_blocks(bank, torch.tensor([3, 1])).square().mul(torch.arange(6.0)).sum().backward()
    optimizer.step()
    moved = (bank.detach() != before).flatten(1).any(1)
    assert moved.tolist() == [False, True, False, True, False]


def test_a_gradient_that_is_not_finite_changes_nothing():
    bank = UnitaryParameter(unitary(3))
    optimizer = made("RMSprop", [bank])
    bank.grad = torch.randn_like(bank)
    optimizer.step()
    before, state = bank.detach().clone(), copy.deepcopy(optimizer.state[bank])
    bank.grad = torch.randn_like(bank)
    bank.grad[1, 2, 3] = torch.inf
    optimizer.step()
    assert torch.equal(bank[1], before[1])
    assert torch.equal(optimizer.state[bank]["square_avg"][1], state["square_avg"][1])
    assert not torch.equal(bank[0], before[0])
    assert optimizer.skipped_steps() == 1


def test_a_convolution_learns():
    layer = UnitaryConv2d(3, 3, 4)
    optimizer = optim.RMSprop(layer.parameters(), lr=0.01, averages="tangent")
    x = torch.randn(8, 3, 4, 4)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (layer(x) - x.roll(1, -1)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_checkpoint_goes_on():
    layer = UnitaryLinear(6, 6, bias=False)
    optimizer = made("AdamW", layer.parameters(), rank=2)

    def step(layer, optimizer, seed):
        torch.manual_seed(seed)
        layer.weight.grad = torch.randn(6, 6)
        optimizer.step()

    step(layer, optimizer, 0)
    twin = copy.deepcopy(layer)
    loaded = optim.AdamW(twin.parameters())
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert loaded.param_groups[0]["averages"] == "tangent"
    for own, rule in ((layer, optimizer), (twin, loaded)):
        step(own, rule, 1)
    assert torch.equal(layer.weight, twin.weight)


def test_what_it_cannot_do_is_refused_in_words():
    with pytest.raises(ValueError, match="averages: got 'body'"):
        optim.RMSprop([UnitaryParameter(unitary())], averages="body")
    sketched = UnitaryLinear(5, 5, bias=False, sketch_rank=2)
    sketched(torch.randn(3, 5)).square().sum().backward()
    with pytest.raises(ValueError, match=r'averages: got "tangent".*sketch_rank'):
        optim.RMSprop(sketched.parameters(), averages="tangent").step()
    square = UnitaryParameter(unitary())
    optimizer = optim.RMSprop([square])
    square.grad = torch.randn_like(square)
    optimizer.step()
    optimizer.param_groups[0]["averages"] = "tangent"
    with pytest.raises(ValueError, match="which has averages of the other kind; wanted 'gradient'"):
        optimizer.step()


@pytest.mark.parametrize("how", ["set after it was loaded", "not in what is loaded"])
def test_averages_of_the_other_kind_that_were_loaded_are_refused(how):
    square = UnitaryParameter(unitary())
    before = optim.SGD([square], lr=0.1, momentum=0.9)
    square.grad = torch.randn_like(square)
    before.step()
    saved, weight = copy.deepcopy(before.state_dict()), square.detach().clone()
    if how == "not in what is loaded":  # of torch.optim, or an older version
        del saved["param_groups"][0]["averages"]
        optimizer = optim.SGD([square], lr=0.1, momentum=0.9, averages="tangent")
        optimizer.load_state_dict(saved)
    else:
        optimizer = optim.SGD([square], lr=0.1, momentum=0.9)
        optimizer.load_state_dict(saved)
        optimizer.param_groups[0]["averages"] = "tangent"
    with pytest.raises(ValueError, match="which has averages of the other kind; wanted 'gradient'"):
        optimizer.step()
    assert torch.equal(square, weight)
    optimizer.param_groups[0]["averages"] = "gradient"
    optimizer.step()
    assert not torch.equal(square, weight)
