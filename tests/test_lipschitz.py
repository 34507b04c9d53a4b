"""Bounds against the networks they bound."""

import pytest
import torch
from torch import nn

from projunn import certified_accuracy, lipschitz_bound
from projunn.lipschitz import operator_norm
from projunn.models import CayleyConv2d, LipschitzConvNet
from projunn.nn import BlockUnitaryLinear, MaxMin, UnitaryConv2d, UnitaryLinear


def test_measured_norms_show_drift():
    layer = UnitaryConv2d(2, 3, (4, 5))
    assert operator_norm(layer) == pytest.approx(1, abs=1e-5)
    with torch.no_grad():
        layer.weight[0] *= 1.5
    assert operator_norm(layer) == pytest.approx(1.5, abs=1e-5)
    blocks = BlockUnitaryLinear(2, 3, num_factors=2)
    with torch.no_grad():
        blocks.weight[0, 1] *= 3
    assert operator_norm(blocks) == pytest.approx(3, abs=1e-5)
    assert operator_norm(CayleyConv2d(2, 2, 4)) == pytest.approx(1, abs=1e-5)
    plain = nn.Linear(3, 4)
    assert operator_norm(plain) == pytest.approx(torch.linalg.matrix_norm(plain.weight, 2).item())
    chain = nn.Sequential(plain, nn.Sequential(MaxMin(), UnitaryLinear(4, 4)))
    assert lipschitz_bound(chain) == pytest.approx(operator_norm(plain), rel=1e-5)


def test_certificates_are_sound_and_shrink_with_the_norm():
    """No perturbation within a certified radius changes the answer, whichever direction it takes."""
    model = LipschitzConvNet(1, 4, 8, width=4).eval()
    x = torch.randn(32, 1, 8, 8)
    labels = model(x).argmax(1)
    radii = [0.0, 0.05, 0.2, 1.0, 100.0]
    shares = certified_accuracy(model, [(x[:16], labels[:16]), (x[16:], labels[16:])], radii)
    assert shares[0] == 1
    assert shares[-1] == 0
    assert shares == sorted(shares, reverse=True)
    margins = model(x).topk(2).values
    margins = margins[:, 0] - margins[:, 1]
    radius = margins / 2**0.5 * (1 - 1e-4)
    other = model(x).topk(2).indices[:, 1]
    moved = x.clone().requires_grad_()
    for _ in range(10):  # steepest ascent to the next class
        logits = model(moved)
        gap = (logits.gather(1, other[:, None]) - logits.gather(1, labels[:, None])).sum()
        (gradient,) = torch.autograd.grad(gap, moved)
        step = moved.detach() - x + gradient
        step = step / step.flatten(1).norm(dim=1)[:, None, None, None] * radius[:, None, None, None]
        moved = (x + step).detach().requires_grad_()
    assert torch.equal(model(moved).argmax(1), labels)
    with torch.no_grad():  # twice the logits of a layer twice as large certify the same
        model[-1].weight *= 2
        model[-1].bias *= 2
    assert certified_accuracy(model, [(x, labels)], radii) == shares
    half = certified_accuracy(model, [(x, labels)], [0.1], lipschitz=2.0)
    assert half == certified_accuracy(model, [(x, labels)], [0.2], lipschitz=1.0)


def test_errors():
    with pytest.raises(TypeError, match="no bound is known for BatchNorm2d"):
        lipschitz_bound(nn.Sequential(nn.BatchNorm2d(3)))
    with pytest.raises(ValueError, match="radii: got"):
        certified_accuracy(nn.Identity(), [], [-1.0])
    with pytest.raises(ValueError, match="batches: got no input"):
        certified_accuracy(nn.Identity(), [], [0.0])
