"""`projunn.optim.SGDG`: Cayley steps of plain parameters, orthogonal by their user's word."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

import projunn
from projunn.optim import SGD, SGDG, sgdg

FULL = {"square": (24, 24), "wide": (10, 24), "tall": (24, 10)}


@pytest.fixture
def small_parts(monkeypatch):
    """Steps of rank k of small matrices too, which take the whole tangent otherwise."""
    monkeypatch.setattr(sgdg, "_SMALL", 0)
    monkeypatch.setattr(sgdg, "_RANKS", 2)


def defect(matrix):
    matrix = matrix.detach().double().flatten(1)
    return projunn.unitarity_defect(matrix).item()


def orthogonal(m, n, dtype=torch.float32):
    return projunn.init.haar_(torch.empty(m, n, dtype=dtype))


def formula(matrix, gradient, kept, lr, momentum):
    """One step of a wide or square matrix in float64, as arXiv 2002.01113 has it: new R and V."""
    pulled = gradient.mH @ matrix  # -V X^T of the paper, X = R^T
    hat = pulled - matrix.mH @ (matrix @ pulled) / 2
    v = hat.mH - hat + momentum * kept
    rate = min(1 / (v.abs().sum(0).max().item() + 1e-8), lr)
    identity = torch.eye(len(v), dtype=v.dtype)
    return matrix @ torch.linalg.inv(identity + rate / 2 * v) @ (identity - rate / 2 * v), v


@pytest.mark.parametrize("shape", FULL.values(), ids=FULL)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("lr", [0.01, 100.0], ids=["lr", "clipped"])
def test_a_whole_step_is_the_papers_in_float64(shape, momentum, lr):
    if momentum and shape[0] != shape[1]:
        pytest.skip("the momentum of rectangular matrices is kept at rank 2k")
    parameter = nn.Parameter(orthogonal(*shape, torch.float64))
    tall = shape[0] > shape[1]
    expected = (parameter.mT if tall else parameter).detach().clone()
    kept = torch.zeros(expected.shape[1], expected.shape[1], dtype=torch.float64)
    optimizer = SGDG([parameter], lr=lr, momentum=momentum, stiefel=True, rank=None)
    for _ in range(8):
        gradient = torch.randn(expected.shape, dtype=torch.float64)
        parameter.grad = (gradient.mT if tall else gradient).contiguous()
        optimizer.step()
        expected, kept = formula(expected, gradient, kept, lr, momentum)
        found = (parameter.mT if tall else parameter).detach()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("lr", [0.01, 100.0], ids=["lr", "clipped"])
def test_a_tangent_of_rank_k_is_taken_whole(small_parts, momentum, lr):
    n, k = 40, 4
    parameter = nn.Parameter(orthogonal(n, n, torch.float64))
    expected, kept = parameter.detach().clone(), torch.zeros(n, n, dtype=torch.float64)
    span = orthogonal(n, k, torch.float64)
    optimizer = SGDG([parameter], lr=lr, momentum=momentum, stiefel=True, rank=k)
    for _ in range(8):
        small = torch.randn(k, k, dtype=torch.float64)
        gradient = expected @ span @ (small - small.mT) @ span.mT
        parameter.grad = gradient.clone()
        optimizer.step()
        expected, kept = formula(expected, gradient, kept, lr, momentum)
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("n", "rank", "whole"), [(192, 1, True), (200, 25, True), (200, 24, False)])
def test_a_matrix_whose_whole_tangent_costs_no_more_than_a_part_takes_the_whole(n, rank, whole):
    parameter = nn.Parameter(orthogonal(n, n, torch.float64))
    gradient = torch.randn(n, n, dtype=torch.float64)
    expected, _ = formula(parameter.detach(), gradient, torch.zeros_like(gradient), 1.0, 0.0)
    parameter.grad = gradient
    SGDG([parameter], lr=1.0, stiefel=True, rank=rank).step()
    assert torch.allclose(parameter.detach(), expected, rtol=0, atol=1e-10) == whole


def test_momentum_of_rank_k_is_kept_where_steps_become_whole(small_parts, monkeypatch):
    n, k = 32, 4
    parameter = nn.Parameter(orthogonal(n, n, torch.float64))
    optimizer = SGDG([parameter], lr=0.01, momentum=0.9, stiefel=True, rank=k)
    kept = torch.zeros(n, n, dtype=torch.float64)
    span = orthogonal(n, k, torch.float64)
    for step in range(4):
        if step == 2:
            monkeypatch.undo()
        small = torch.randn(k, k, dtype=torch.float64)
        gradient = parameter.detach() @ span @ (small - small.mT) @ span.mT
        parameter.grad = gradient.clone()
        expected, kept = formula(parameter.detach().clone(), gradient, kept, 0.01, 0.9)
        optimizer.step()
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-9)
    assert "momentum_pulled" not in optimizer.state[parameter]


@pytest.mark.parametrize(("before", "after"), [(4, 6), (6, 4), (None, 4), (4, None)])
def test_momentum_is_kept_where_the_rank_is_changed(small_parts, before, after):
    """Of matrices whose tangent has fewer directions than either rank."""
    n = 32
    parameter = nn.Parameter(orthogonal(n, n, torch.float64))
    optimizer = SGDG([parameter], lr=0.01, momentum=0.9, stiefel=True, rank=before)
    kept = torch.zeros(n, n, dtype=torch.float64)
    span = orthogonal(n, 4, torch.float64)
    for step in range(5):
        if step == 2:
            optimizer.param_groups[0]["rank"] = after
        small = torch.randn(4, 4, dtype=torch.float64)
        gradient = parameter.detach() @ span @ (small - small.mT) @ span.mT
        parameter.grad = gradient.clone()
        if step == 3:  # not taken
            parameter.grad[0, 0] = torch.nan
            optimizer.step()
            continue
        expected, kept = formula(parameter.detach().clone(), gradient, kept, 0.01, 0.9)
        optimizer.step()
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-9)
    assert optimizer.skipped_steps() == 1


def test_a_step_of_low_rank_goes_downhill_as_far_as_its_share_of_the_tangent(small_parts):
    n = 64
    parameter = nn.Parameter(orthogonal(n, n))
    target = orthogonal(n, n)
    losses = []
    optimizer = SGDG([parameter], lr=0.1, stiefel=True, rank=4)
    for _ in range(30):
        optimizer.zero_grad()
        loss = -(target * parameter).sum()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert all(after < before for before, after in pairwise(losses))


def test_to_first_order_the_loss_falls_as_along_the_whole_tangent(small_parts):
    n, rank = 64, 4
    parameter = nn.Parameter(orthogonal(n, n, torch.float64))
    flat = torch.randn(n, n, dtype=torch.float64)
    columns = orthogonal(n, 2 * rank, torch.float64)
    left, right = columns.chunk(2, dim=-1)
    a = (flat - flat.mT) / 2 + 20 * (left @ right.mT - right @ left.mT)
    wanted = a.square().sum().item()
    optimizer = SGDG([parameter], lr=0.0, stiefel=True, rank=rank)
    for step in range(30):
        optimizer.param_groups[0]["lr"] = 1e-6 if step == 29 else 0.0
        before = parameter.detach().clone()
        gradient = before @ a
        parameter.grad = gradient.clone()
        optimizer.step()
    found = -((parameter.detach() - before) * gradient).sum().item() / 1e-6
    assert found == pytest.approx(wanted, rel=0.1)
    energies = torch.linalg.svdvals(a).square()
    assert energies[: 2 * rank].sum() < 0.8 * wanted  # what a step of this rank has without more length


@pytest.mark.parametrize("rank", [1, 8, None])
@pytest.mark.parametrize("shape", FULL.values(), ids=FULL)
def test_matrices_stay_orthogonal(small_parts, shape, rank):
    parameter = nn.Parameter(orthogonal(*shape))
    optimizer = SGDG([parameter], lr=1.5, momentum=0.5, stiefel=True, rank=rank)
    for _ in range(600):
        parameter.grad = torch.randn(shape) * 10 ** (4 * torch.rand(()) - 3)
        optimizer.step()
    assert defect(parameter) < 1.5e-6
    assert optimizer.skipped_steps() == 0


@pytest.mark.parametrize("rank", [2, None])
def test_a_gradient_that_is_not_finite_changes_nothing(small_parts, rank):
    parameter = nn.Parameter(orthogonal(32, 32))
    optimizer = SGDG([parameter], lr=0.1, momentum=0.9, stiefel=True, rank=rank)
    for _ in range(3):
        parameter.grad = torch.randn(32, 32)
        optimizer.step()
    twin = copy.deepcopy(optimizer), copy.deepcopy(parameter)
    before = parameter.detach().clone()
    parameter.grad = torch.full((32, 32), torch.nan)
    optimizer.step()
    assert torch.equal(parameter, before)
    assert optimizer.skipped_steps() == 1
    gradient = torch.randn(32, 32)
    parameter.grad = gradient.clone()
    optimizer.step()
    other = twin[0].param_groups[0]["params"][0]
    other.grad = gradient.clone()
    twin[0].step()
    torch.testing.assert_close(other, parameter, rtol=0, atol=1e-6)


@pytest.mark.parametrize("stiefel", [False, True])
def test_vectors_and_other_groups_take_torchs_step(stiefel):
    start = torch.randn(5) if stiefel else torch.randn(5, 4)
    options = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}
    parameters = [nn.Parameter(start.clone()) for _ in range(2)]
    ours = SGDG([parameters[0]], stiefel=stiefel, **options)
    theirs = torch.optim.SGD([parameters[1]], **options)
    for _ in range(4):
        gradient = torch.randn_like(start)
        for parameter, optimizer in zip(parameters, (ours, theirs), strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(*parameters)


def test_filters_are_flattened_in_any_layout_of_memory():
    filters = [nn.Parameter(orthogonal(6, 45).view(6, 5, 3, 3)) for _ in range(2)]
    filters[1].data.copy_(filters[0].data)
    filters[1].data = filters[1].data.contiguous(memory_format=torch.channels_last)
    gradient = torch.randn(6, 5, 3, 3)
    for one in filters:
        one.grad = gradient.clone()
        optimizer = SGDG([one], lr=0.1, stiefel=True)
        before = one.detach().clone()
        optimizer.step()
        assert not torch.equal(one, before)
        assert defect(one.detach().contiguous()) < 1e-6
    torch.testing.assert_close(*filters, rtol=0, atol=1e-5)


def test_state_that_is_saved_and_loaded_goes_on(small_parts):
    parameter = nn.Parameter(orthogonal(32, 32))
    optimizer = SGDG([parameter], lr=0.1, momentum=0.9, stiefel=True, rank=2)
    gradients = torch.randn(6, 32, 32)
    for gradient in gradients[:3]:
        parameter.grad = gradient.clone()
        optimizer.step()
    other = nn.Parameter(parameter.detach().clone())
    resumed = SGDG([other], lr=1.0, stiefel=False)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for gradient in gradients[3:]:
        for one, whose in ((parameter, optimizer), (other, resumed)):
            one.grad = gradient.clone()
            whose.step()
    assert torch.equal(parameter, other)


def test_a_closure_and_a_schedule_work_as_in_torch(small_parts):
    parameter = nn.Parameter(orthogonal(16, 16))
    optimizer = SGDG([parameter], lr=1.0, stiefel=True, rank=2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 2)
    target = orthogonal(16, 16)

    def closure():
        optimizer.zero_grad()
        loss = -(target * parameter).sum()
        loss.backward()
        return loss

    values = []
    for _ in range(3):
        values.append(optimizer.step(closure).item())
        schedule.step()
    before = parameter.detach().clone()
    optimizer.step(closure)
    torch.testing.assert_close(parameter.detach(), before)  # at a rate of zero
    assert values[0] > values[1] > values[2]


def test_the_users_word_is_checked_at_the_first_step():
    wrong = nn.Parameter(torch.randn(8, 8))
    wrong.grad = torch.randn(8, 8)
    optimizer = SGDG([wrong], lr=0.1, stiefel=True)
    with pytest.raises(ValueError, match="stiefel=True is not orthogonal"):
        optimizer.step()
    near = nn.Parameter(orthogonal(512, 512).bfloat16().float())
    assert defect(near) > 1e-3
    near.grad = torch.randn(512, 512)
    SGDG([near], lr=0.1, stiefel=True).step()
    assert defect(near) < 1e-6


def test_what_it_cannot_step_is_refused_in_words():
    half = nn.Parameter(torch.eye(4, dtype=torch.bfloat16))
    bank = projunn.UnitaryParameter(projunn.init.haar_(torch.empty(3, 4, 4)))
    for parameter, word in ((half, "bfloat16"), (bank, r"projunn\.optim\.SGD")):
        parameter.grad = torch.zeros_like(parameter)
        with pytest.raises(TypeError, match=word):
            SGDG([parameter], lr=0.1, stiefel=True).step()
    sparse = nn.Parameter(torch.eye(4))
    sparse.grad = torch.eye(4).to_sparse()
    with pytest.raises(TypeError, match="wanted a dense one"):
        SGDG([sparse], lr=0.1, stiefel=True).step()
    with pytest.raises(ValueError, match="rank: got 0"):
        SGDG([half], lr=0.1, stiefel=True, rank=0)
    with pytest.raises(ValueError, match="learning rate"):
        SGDG([half], lr=-0.1)


def test_a_unitary_parameter_is_stepped_without_a_warning(recwarn):
    layer = projunn.nn.UnitaryLinear(16, 16, bias=False)
    optimizer = SGDG(layer.parameters(), lr=0.1, stiefel=True)
    for _ in range(4):
        layer.weight.grad = torch.randn(16, 16)
        optimizer.step()
    assert defect(layer.weight) < 1e-6
    assert not [w for w in recwarn if issubclass(w.category, projunn.OffManifoldWarning)]


def test_small_steps_are_those_of_sgd_along_the_whole_tangent():
    start, gradient = orthogonal(12, 12, torch.float64), torch.randn(12, 12, dtype=torch.float64)
    plain, ours = nn.Parameter(start.clone()), projunn.UnitaryParameter(start.clone())
    for parameter in (plain, ours):
        parameter.grad = gradient.clone()
    SGDG([plain], lr=1e-3, stiefel=True, rank=None).step()
    SGD([ours], lr=1.0, unitary_lr=1e-3, rank=12, factorization="tangent", retraction="cayley").step()
    torch.testing.assert_close(plain.detach(), ours.detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("shape", "rank"), [((12, 12), None), ((8, 12), 2), ((12, 8), 2)])
def test_a_matrix_that_is_edited_in_the_course_of_a_training_is_said_and_brought_back(shape, rank):
    parameter = nn.Parameter(nn.init.orthogonal_(torch.empty(shape)))
    optimizer = SGDG([parameter], lr=0.1, stiefel=True, rank=rank)

    def train(steps):
        for _ in range(steps):
            parameter.grad = torch.randn(shape)
            optimizer.step()

    train(2)
    parameter.data.mul_(30)
    with pytest.warns(
        projunn.OffManifoldWarning, match=r"After \d+ steps .* parameter of shape"
    ) as said:
        train(40)
    assert len(said) == 1
    assert projunn.unitarity_defect(parameter) < 2e-6
