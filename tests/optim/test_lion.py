"""Lion, which torch.optim does not have: against its definition written out."""

import pytest
import torch
from torch import nn

from projunn import optim
from projunn.nn import UnitaryLinear
from tests.dense import retracted

LR, BETAS = 0.05, (0.8, 0.9)


def directions(gradients):
    """sgn(beta1 M + (1 - beta1) G), then M <- beta2 M + (1 - beta2) G."""
    mean = torch.zeros_like(gradients[0])
    for g in gradients:
        yield (BETAS[0] * mean + (1 - BETAS[0]) * g).sgn()
        mean = BETAS[1] * mean + (1 - BETAS[1]) * g


@pytest.mark.parametrize("kind", [torch.float64, torch.complex128])
@pytest.mark.parametrize("maximize", [False, True])
def test_plain_parameters_take_the_published_rule(kind, maximize):
    p = nn.Parameter(torch.randn(3, 4, dtype=kind))
    expected = p.detach().clone()
    optimizer = optim.Lion([p], lr=LR, betas=BETAS, weight_decay=0.1, maximize=maximize)
    gradients = [torch.randn(3, 4, dtype=kind) for _ in range(5)]
    sign = -1 if maximize else 1
    for g, direction in zip(gradients, directions([sign * g for g in gradients]), strict=True):
        p.grad = g.clone()
        optimizer.step()
        assert torch.equal(p.grad, g)
        expected = expected * (1 - LR * 0.1) - LR * direction
        torch.testing.assert_close(p.detach(), expected)


@pytest.mark.parametrize("kind", [torch.float64, torch.complex128])
def test_a_full_rank_unitary_step_follows_that_direction(kind):
    layer = UnitaryLinear(4, 4, bias=False, dtype=kind)
    exact = {"unitary_lr": LR, "rank": 4, "factorization": "svd", "polish_every": 0}
    optimizer = optim.Lion(layer.parameters(), lr=LR, betas=BETAS, **exact)
    gradients = [torch.randn(4, 4, dtype=kind) for _ in range(4)]
    for gradient, direction in zip(gradients, directions(gradients), strict=True):
        before = layer.matrix.detach().clone()
        layer.weight.grad = torch.view_as_real(gradient) if kind.is_complex else gradient
        optimizer.step()
        expected = retracted(before, -LR * direction, torch.eye(4, dtype=kind), "exp")
        torch.testing.assert_close(layer.matrix.detach(), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": -1.0}, "Invalid learning rate"),
        ({"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1"),
        ({"weight_decay": -0.1}, "Invalid weight_decay"),
        ({"rank": 0}, "rank: got 0"),
    ],
)
def test_invalid_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        optim.Lion([nn.Parameter(torch.ones(1))], **options)


def test_a_sketched_gradient_is_refused_in_words():
    layer = UnitaryLinear(4, 4, bias=False, sketch_rank=1)
    layer(torch.ones(2, 4)).sum().backward()
    with pytest.raises(ValueError, match=r"signs of all entries .* wanted sketch_rank=None"):
        optim.Lion(layer.parameters()).step()
