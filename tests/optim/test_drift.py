"""The polish against drift."""

import pytest
import torch

from projunn import init
from projunn.optim.drift import polish_period
from projunn_kernels import polish_
from tests.dense import defect, precise, roundoff


@pytest.mark.parametrize("shape", [(9, 9), (3, 5, 8), (8, 5)])
@pytest.mark.parametrize("size", [1e-6, 1e-3, 1e-2])
def test_squares_the_defect(dtype, shape, size):
    weight = init.haar_(torch.empty(shape, dtype=dtype))
    weight += size * torch.randn_like(weight) / shape[-1] ** 0.5
    before = defect(weight)
    moved = precise(weight)
    assert polish_(weight) is weight
    # 3/4 |E|^2 + 1/4 |E|^3 in the spectral norm, which is at most sqrt(n) times the relative one
    assert defect(weight) < 3 * before**2 * shape[-1] + 8 * roundoff(dtype)
    assert (precise(weight) - moved).abs().max() < 2 * size  # towards the nearest, not elsewhere


def test_leaves_alone_what_is_far_or_not_finite():
    weight = init.haar_(torch.empty(3, 4, 4))
    weight[0] *= 2
    weight[1, 0, 0] = torch.nan
    before = weight.clone()
    polish_(weight)
    assert torch.equal(weight[0], before[0])
    assert torch.equal(weight[1].nan_to_num(7), before[1].nan_to_num(7))
    assert defect(weight[2]) < 1e-6


def test_is_rarer_for_larger_matrices():
    periods = [polish_period(torch.empty(n, n)) for n in (8, 64, 1024, 4096)]
    assert periods[0] == periods[1] < periods[2] < periods[3]
