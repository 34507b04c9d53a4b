"""Factors that follow the direction do not stop where its leading part is normal to the manifold.

Maximise Re <C, W>, with C of singular values from 1 to 3: the optimum is their sum, 32 for n = 16.
"""

import copy

import pytest
import torch

from projunn import UnitaryParameter, init, matrix_view, unitarity_defect
from projunn.nn import UnitaryLinear
from projunn.optim import SGD, AdamW, stopping, together
from projunn.optim.member import Member

STEPS = 300


def problem(shape=(16, 16), dtype=torch.float32, seed=0):
    """C, and a start of the same sign of the determinant."""
    source = torch.Generator().manual_seed(seed)
    m, n = shape
    u, v, start = (
        init.haar_(torch.empty(size, dtype=dtype), source) for size in ((m, m), (n, n), (m, n))
    )
    if not dtype.is_complex and m == n:
        for matrix in (u, v, start):
            matrix[0] *= torch.linalg.det(matrix).sign()
    values = torch.linspace(1, 3, min(m, n)).to(dtype)
    return (u[:, : len(values)] * values) @ v[: len(values)], start


def climb(optimizer, weight, matrix, steps):
    """Take steps up the hill; Re <C, W> of each matrix."""
    for _ in range(steps):
        optimizer.zero_grad()
        (-(matrix.conj() * matrix_view(weight)).real.sum()).backward()
        optimizer.step()
    return (matrix.conj() * matrix_view(weight.detach())).real.sum((-2, -1))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("factorization", ["subspace", "single_pass"])
def test_a_square_weight_reaches_the_optimum(factorization, dtype, rank, seed):
    matrix, start = problem(dtype=dtype, seed=seed)
    weight = UnitaryParameter(start)
    optimizer = SGD([weight], lr=3.2, rank=rank, factorization=factorization)
    found = climb(optimizer, weight, matrix, STEPS)
    assert found > 31.5
    assert unitarity_defect(weight.detach()) < 2e-6


@pytest.mark.parametrize("shape", [(20, 12), (12, 20)], ids=str)
def test_so_does_a_rectangular_one(shape):
    matrix, start = problem(shape)
    weight = UnitaryParameter(start)
    assert climb(SGD([weight], lr=3.2), weight, matrix, 600) > 0.95 * 24


def test_one_matrix_of_a_bank_that_has_stopped_goes_on():
    matrix, start = problem()
    u, _, vh = torch.linalg.svd(matrix)
    weight = UnitaryParameter(torch.stack([u @ vh, start]))  # the first is at its optimum
    assert (climb(SGD([weight], lr=3.2), weight, matrix, STEPS) > 31.5).all()


def test_one_of_several_small_parameters_that_has_stopped_goes_on():
    """They step as one bank until then."""
    matrix, start = problem()
    weights = [UnitaryParameter(start.clone()) for _ in range(3)]
    optimizer = SGD(weights, lr=3.2)
    source = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        for weight in weights[:2]:
            weight.grad = torch.randn(16, 16, generator=source)
        weights[2].grad = -matrix
        optimizer.step()
    assert ["tangent_basis" in optimizer.state[weight] for weight in weights] == [False, False, True]
    assert (matrix * weights[2].detach()).sum() > 31.5


def noisy_steps(optimizer, layer, steps, seed=0):
    """Steps along gradients of random batches."""
    source = torch.Generator().manual_seed(seed)
    target = init.haar_(torch.empty(12, 12), source)
    for _ in range(steps):
        x = torch.randn(8, 12, generator=source)
        optimizer.zero_grad()
        (layer(x) - x @ target.T).square().mean().backward()
        optimizer.step()


def test_random_batches_never_meet_it(monkeypatch):
    """The steps are bit for bit those of `subspace` alone."""
    layer = UnitaryLinear(12, 12, bias=False)
    twin = copy.deepcopy(layer)
    optimizer = AdamW(layer.parameters(), lr=0.1)
    noisy_steps(optimizer, layer, 200)
    assert "tangent_basis" not in optimizer.state[layer.weight]
    monkeypatch.setattr(stopping, "_EVERY", 10**9)
    noisy_steps(AdamW(twin.parameters(), lr=0.1), twin, 200)
    assert torch.equal(layer.weight, twin.weight)


@pytest.mark.parametrize(("copied", "looks"), [(1 << 22, 1), (4 * 24 * 24, 2), (1, 8)])
def test_parameters_that_are_alike_are_looked_at_together(monkeypatch, copied, looks):
    """Of eight one has a gradient that is normal to the manifold."""
    monkeypatch.setattr(stopping, "_COPIED", copied)
    monkeypatch.setattr(together, "_LARGE", 1)  # none is copied into a bank
    seen, look = [], stopping._are_normal
    monkeypatch.setattr(stopping, "_are_normal", lambda *given: seen.append(1) or look(*given))
    source = torch.Generator().manual_seed(0)
    starts = [init.haar_(torch.empty(24, 24), source) for _ in range(8)]
    weights = [UnitaryParameter(start) for start in starts]
    optimizer = SGD(weights, lr=0.32, polish_every=0)
    for _ in range(64):
        for i, weight in enumerate(weights):
            v = torch.randn(24, 1, generator=torch.Generator().manual_seed(i))
            noise = torch.randn(24, 24, generator=source)
            weight.grad = -(starts[i] @ v) @ v.T if i == 5 else noise
        optimizer.step()
    assert [i for i in range(8) if "tangent_basis" in optimizer.state[weights[i]]] == [5]
    assert len(seen) == looks


@pytest.mark.parametrize("gradient", ["zero", "nan"])
def test_a_gradient_that_is_zero_or_not_finite_has_not_stopped(gradient):
    weight = UnitaryParameter(init.haar_(torch.empty(6, 6)))
    optimizer = SGD([weight], lr=1.0)
    for _ in range(130):
        weight.grad = torch.zeros(6, 6) if gradient == "zero" else torch.full((6, 6), torch.nan)
        optimizer.step()
    assert "tangent_basis" not in optimizer.state[weight]


def test_signs_have_no_tangent_to_step_along():
    weight = UnitaryParameter(torch.ones(3, 1, 1))
    optimizer = SGD([weight], lr=1.0)
    for _ in range(70):
        weight.grad = torch.ones(3, 1, 1)
        optimizer.step()
    assert "tangent_basis" not in optimizer.state[weight]


@pytest.mark.parametrize("saved", [50, 64, 100])
def test_a_resumed_run_takes_the_same_steps(saved):
    """Saved before the look that finds the weight at rest, right after it, and later."""
    matrix, start = problem()
    weight = UnitaryParameter(start)
    optimizer = SGD([weight], lr=3.2)
    climb(optimizer, weight, matrix, saved)
    twin = UnitaryParameter(weight.detach().clone())
    resumed = SGD([twin], lr=3.2)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for optimizer_, w in ((optimizer, weight), (resumed, twin)):
        climb(optimizer_, w, matrix, 100)
    assert "tangent_basis" in optimizer.state[weight]
    assert torch.equal(weight, twin)


@pytest.mark.parametrize("stored", ["pairs", "blocks"])
def test_however_the_parameter_is_stored(stored):
    """Complex numbers as pairs, and matrices stacked on each other."""
    matrix, start = problem(dtype=torch.complex64 if stored == "pairs" else torch.float32)
    if stored == "pairs":
        weight = UnitaryParameter(torch.view_as_real(start), pairs=True)
    else:
        weight = UnitaryParameter(torch.cat([start, start]), blocks=2)
    assert (climb(SGD([weight], lr=3.2), weight, matrix, STEPS) > 31.5).all()


def test_a_rank_that_is_changed_afterwards_changes_both_bases():
    matrix, start = problem()
    weight = UnitaryParameter(start)
    optimizer = SGD([weight], lr=3.2)
    climb(optimizer, weight, matrix, 70)
    optimizer.param_groups[0]["rank"] = 3
    climb(optimizer, weight, matrix, 1)
    assert {optimizer.state[weight][name].shape[-1] for name in ("basis", "tangent_basis")} == {3}


@pytest.mark.parametrize(("dtype", "sketch_rank"), [(torch.float32, 1), (torch.complex64, 4)], ids=str)
def test_a_sketched_layer_goes_on_too(dtype, sketch_rank):
    matrix, start = problem(dtype=dtype)
    layer = UnitaryLinear(16, 16, bias=False, sketch_rank=sketch_rank, dtype=dtype)
    with torch.no_grad():
        matrix_view(layer.weight).copy_(start)
    optimizer = SGD(layer.parameters(), lr=3.2)
    x = torch.eye(16, dtype=dtype)
    for step in range(1500):
        if step == 70:
            saved = copy.deepcopy((layer.state_dict(), optimizer.state_dict()))
        optimizer.zero_grad()
        (-(matrix.conj() * layer(x).mT).real.sum()).backward()
        optimizer.step()
        if step == 100:
            later = layer.weight.detach().clone()
    assert (matrix.conj() * matrix_view(layer.weight.detach())).real.sum() > 31
    assert unitarity_defect(layer.weight.detach()) < 2e-6
    # and a resumed run draws the same columns
    layer.load_state_dict(saved[0])
    resumed = SGD(layer.parameters(), lr=3.2)
    resumed.load_state_dict(saved[1])
    for _ in range(70, 101):
        resumed.zero_grad()
        (-(matrix.conj() * layer(x).mT).real.sum()).backward()
        resumed.step()
    assert torch.equal(later, layer.weight)


def test_nobody_looks_where_the_members_of_a_step_do_not_last():
    """As in a trace, whose state has entries of its own."""
    matrix, start = problem()
    weight, state = UnitaryParameter(start), {}
    optimizer = SGD([weight], lr=3.2)
    for _ in range(130):
        with torch.no_grad():
            optimizer._unitary_step([Member(0, weight, -matrix, state, optimizer.param_groups[0])])
    assert state["step"] == 130
    assert "tangent_basis" not in state
