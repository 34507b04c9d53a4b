"""Drift control decided on the device."""

import pytest
import torch

import projunn
from projunn import init
from projunn_kernels import polish_, polish_when_due_
from projunn_kernels.configs.problem import device_of
from projunn_kernels.polish.launch import polish
from tests.launches import watched


def polish_all(weight, step, period):
    """The kernels on all matrices of a tensor, which have missed nothing."""
    missed = torch.zeros(len(weight), dtype=torch.int64, device=weight.device)
    polish([weight], [step], period, [missed], torch.ones_like(missed, dtype=torch.int8))


@pytest.mark.parametrize("kind", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize(("m", "n"), [(40, 40), (20, 50), (50, 20)])
def test_polish_kernels(kernels, kind, m, n):
    weight = init.haar_(torch.empty(4, m, n, dtype=kind))
    weight[:2] += 1e-4 * torch.randn(2, m, n, dtype=kind)
    weight[2] *= 1.5  # far away: part of the step
    weight[3, 1, 1] = torch.nan  # left alone
    wanted, weight = polish_(weight.clone()), weight.to(kernels.device)
    waits = weight.clone()
    polish_all(waits, torch.tensor(7, device=kernels.device), 3)
    assert torch.equal(waits.nan_to_num(7), weight.nan_to_num(7))
    polish_all(weight, torch.tensor(6, device=kernels.device), 3)
    torch.testing.assert_close(weight.cpu(), wanted, atol=2e-6, rtol=0, equal_nan=True)
    assert projunn.unitarity_defect(weight)[:2].max() < 2e-6
    far = torch.linalg.svdvals(weight[2].cpu())
    assert (far > 1).all()
    assert (far < 1.5 - 0.01).all()


@pytest.mark.parametrize("kind", [torch.float32, torch.complex64], ids=str)
def test_each_matrix_has_its_own_count(kernels, kind):
    """Polished is what has taken a multiple of the period, and this step."""
    weight = init.haar_(torch.empty(2, 3, 5, 5, dtype=kind)) * 1.01
    missed = torch.tensor([[0, 3, 1], [2, 6, 0]])
    taken = torch.tensor([[True, True, True], [True, False, False]])
    polished = torch.tensor([[True, True, False], [False, False, False]])
    for backend, device in ((kernels.backend(), kernels.device), (projunn.backend("torch"), "cpu")):
        after, counts = weight.to(device).clone(), [t.to(device) for t in (missed, taken)]
        with backend:
            step = torch.tensor(9.0, dtype=torch.float64, device=device)
            polish_when_due_([after], [step], 3, False, [counts[0]], counts[1])
        assert ((after.cpu() != weight).flatten(2).any(2) == polished).all()
        assert projunn.unitarity_defect(after.cpu())[polished].max() < 1e-3


def test_when_due_on_the_host():
    weight = init.haar_(torch.empty(6, 6)) + 1e-4
    before = weight.clone()
    polish_when_due_([weight], [torch.tensor(5.0)], 4)
    assert torch.equal(weight, before)
    polish_when_due_([weight], [torch.tensor(8.0)], 4)
    assert projunn.unitarity_defect(weight) < 1e-6


@pytest.mark.parametrize("kind", [torch.float32, torch.complex64], ids=str)
def test_parameters_of_one_shape_are_polished_together(kernels, kind):
    """Each by its own counters, and more tiles than there are programs."""
    torch.manual_seed(0)
    weights = [init.haar_(torch.empty(2, 70, 40, dtype=kind)) * 1.01 for _ in range(3)]
    before = [w.clone() for w in weights]
    steps, missed = [6, 7, 9], [[0, 1], [1, 0], [0, 3]]
    taken = torch.tensor([[True, True], [True, True], [True, False]])
    due = torch.tensor([[True, False], [True, False], [True, False]])
    weights = [w.to(kernels.device) for w in weights]
    with kernels.backend(), watched(kernels) as seen:
        polish_when_due_(
            weights,
            [torch.tensor(s, device=kernels.device) for s in steps],
            3,
            False,
            [torch.tensor(m, device=kernels.device) for m in missed],
            taken.to(kernels.device),
        )
    assert seen.kernels == ["residual", "correct"]
    for own, first, wanted in zip(weights, before, due, strict=True):
        assert ((own.cpu() != first).flatten(1).any(1) == wanted).all()
        assert projunn.unitarity_defect(own.cpu())[wanted].max() < 1e-3


def test_programs_do_not_multiply_with_the_size(kernels):
    """A polish that is not due costs launches that return at once: few programs, whatever the size."""
    asked = []
    for n in (64, 1600):  # more tiles than programs on GPUs too
        weight = torch.eye(n, device=kernels.device)
        with kernels.backend(), watched(kernels, run=False) as seen:
            polish_when_due_([weight], [torch.tensor(1, device=kernels.device)], 3)
        asked.append(max(programs for _, programs in seen.launches))
    most = 2 * device_of(kernels.device).processors
    assert asked[0] <= asked[1] == most
