"""The polish against drift."""

from contextlib import nullcontext as quiet

import pytest
import torch

from projunn import OffManifoldWarning, UnitaryParameter, init, optim, unitarity_defect
from projunn.nn import UnitaryLinear
from projunn.optim import SGD
from projunn.optim.drift import polish_period
from projunn_kernels import polish_
from tests.dense import defect, precise, roundoff


def polar_of(matrix):
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


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


def test_leaves_alone_what_is_not_finite():
    weight = init.haar_(torch.empty(3, 4, 4))
    weight[1, 0, 0] = torch.nan
    weight[2] *= 1e30
    before = weight.clone()
    polish_(weight)
    assert torch.equal(weight[1:].nan_to_num(7), before[1:].nan_to_num(7))
    assert defect(weight[0]) < 1e-6


@pytest.mark.parametrize("shape", [(6, 6), (2, 4, 7), (7, 4)])
@pytest.mark.parametrize("scale", [1e-3, 0.3, 1.5, 40.0])
def test_comes_back_from_any_distance_and_never_goes_further(dtype, shape, scale):
    """Monotone in every singular value, however large they are."""
    weight = torch.randn(shape, dtype=dtype) * scale
    nearest = polar_of(precise(weight))
    last = torch.inf
    for _ in range(200):
        farthest = (torch.linalg.svdvals(precise(weight)) ** 2 - 1).abs().max()
        assert farthest <= last * (1 + 1e-4) + 1e-5
        last = farthest
        polish_(weight)
    torch.testing.assert_close(precise(weight), nearest, atol=1e-3, rtol=0)
    assert defect(weight) < 20 * roundoff(dtype)


@pytest.mark.parametrize("pairs", [False, True])
def test_an_optimizer_on_a_cpu_pulls_a_scaled_weight_back_at_once_and_says_so_each_time(pairs):
    layer = UnitaryLinear(8, 8, dtype=torch.complex64 if pairs else torch.float32)
    optimizer = SGD(layer.parameters(), lr=1e-3, polish_every=4)
    for step in range(1, 9):
        optimizer.zero_grad()
        layer(torch.randn(3, 8)).abs().square().mean().backward()
        if step in (2, 6):
            with torch.no_grad():
                layer.weight.mul_(30.0)
        said = pytest.warns(OffManifoldWarning, match="weight of UnitaryLinear")
        with said if step % 4 == 0 else quiet():
            optimizer.step()
    assert unitarity_defect(layer.weight) < 1e-6


def test_is_rarer_for_larger_matrices():
    periods = [polish_period(torch.empty(n, n)) for n in (1, 8, 16, 64, 128, 1024, 4096)]
    assert periods == [4, 16, 16, 16, 64, 2048, 8192]


@pytest.mark.parametrize("kind", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("rule", ["SGD", "RMSprop", "AdamW"])
@pytest.mark.parametrize("n", [1, 2, 4, 8, 16, 64])
def test_a_float32_weight_stays_within_1e_6_of_unitary_at_every_size(rule, kind, n):
    """Small steps round a weight the same way each time: drift is no random walk then."""
    count = 16 if n < 64 else 2
    weight = UnitaryParameter(init.haar_(torch.empty(count, n, n, dtype=kind)))
    optimizer = getattr(optim, rule)([weight], lr=0.01, unitary_lr=0.1)
    weight.grad = torch.randn_like(weight)
    farthest = 0.0
    for step in range(3 * polish_period(weight) + 60):
        if step == 60:
            weight.grad = torch.randn_like(weight)
        optimizer.step()
        farthest = max(farthest, defect(weight.detach()))
    assert farthest < 1e-6
