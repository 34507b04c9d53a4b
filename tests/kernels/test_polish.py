"""Drift control decided on the device."""

import pytest
import torch

import projunn
from projunn import init
from projunn_kernels import polish_, polish_when_due_
from projunn_kernels.polish.launch import polish


@pytest.mark.parametrize("kind", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize(("m", "n"), [(40, 40), (20, 50), (50, 20)])
def test_polish_kernels(kernels, kind, m, n):
    weight = init.haar_(torch.empty(4, m, n, dtype=kind))
    weight[:2] += 1e-4 * torch.randn(2, m, n, dtype=kind)
    weight[2] *= 1.5  # far away: part of the step
    weight[3, 1, 1] = torch.nan  # left alone
    wanted, weight = polish_(weight.clone()), weight.to(kernels.device)
    waits = weight.clone()
    polish(waits, torch.tensor(7.0, device=kernels.device), 3)
    assert torch.equal(waits.nan_to_num(7), weight.nan_to_num(7))
    polish(weight, torch.tensor(6.0, device=kernels.device), 3)
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
            polish_when_due_(after, step, 3, False, *counts)
        assert ((after.cpu() != weight).flatten(2).any(2) == polished).all()
        assert projunn.unitarity_defect(after.cpu())[polished].max() < 1e-3


def test_when_due_on_the_host():
    weight = init.haar_(torch.empty(6, 6)) + 1e-4
    before = weight.clone()
    polish_when_due_(weight, torch.tensor(5.0), 4)
    assert torch.equal(weight, before)
    polish_when_due_(weight, torch.tensor(8.0), 4)
    assert projunn.unitarity_defect(weight) < 1e-6
