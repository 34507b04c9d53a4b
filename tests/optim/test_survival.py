"""A weight and the state of its optimizer survive every gradient, however large or small it is."""

import pytest
import torch

import projunn
from projunn import init, matrix_view, optim
from projunn.nn import BlockUnitaryLinear, UnitaryLinear
from tests.dense import defect

KINDS = pytest.mark.parametrize("kind", [torch.float32, torch.complex64], ids=str)
RULES = {
    "SGD": {"momentum": 0.9, "nesterov": True},
    "RMSprop": {"momentum": 0.5, "centered": True},
    "AdamW": {"amsgrad": True},
    "Lion": {},
}
EVERY_RULE = pytest.mark.parametrize("rule", RULES)


def optimizer_of(rule, weight, **options):
    return getattr(optim, rule)([weight], **{"lr": 0.1, **RULES[rule], **options})


def unitary(*shape, kind=torch.float32):
    return projunn.UnitaryParameter(init.haar_(torch.empty(*shape, dtype=kind)))


@EVERY_RULE
@pytest.mark.parametrize(
    "kind", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str
)
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-30, 3e19, 3e38, 1e154, 1e308])
def test_state_is_finite_after_every_finite_gradient_and_steps_go_on(rule, kind, n, size):
    if size > torch.finfo(kind).max:
        pytest.skip("no number of this dtype")
    for rank in (1, 3):
        weight = unitary(n, n, kind=kind)
        optimizer = optimizer_of(rule, weight, rank=rank, retraction="cayley")
        for gradient in [size * torch.ones_like(weight)] * 12 + [torch.randn_like(weight)] * 2:
            weight.grad = gradient
            optimizer.step()
            assert defect(weight.detach()) < 1e-5
            assert all(value.isfinite().all() for value in optimizer.state[weight].values())
        skipped = optimizer.skipped_steps()
        weight.grad = torch.randn_like(weight)
        optimizer.step()
        if rule != "SGD":  # whose momentum is huge for long
            assert optimizer.skipped_steps() == skipped


@EVERY_RULE
@KINDS
def test_a_gradient_whose_norm_alone_overflows_is_finite(rule, kind):
    """Its squares are numbers; the sum of them, in float32, is not."""
    weight = unitary(64, 64, kind=kind)
    optimizer = optimizer_of(rule, weight, retraction="cayley", rank=1)
    weight.grad = torch.full_like(weight, 8e18)
    before = weight.detach().clone()
    optimizer.step()
    assert optimizer.skipped_steps() == 0
    assert not torch.equal(before, weight)


@pytest.mark.parametrize("factorization", ["subspace", "lsi", "column", "svd", "single_pass", "tangent"])
@pytest.mark.parametrize("rank", [6, 8, 12])
@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_identical_examples_step_at_every_rank(factorization, rank, scale):
    """Their gradient has rank one; LAPACK's QR of so dependent complex columns holds NaN."""
    layer = UnitaryLinear(16, 16, bias=False, dtype=torch.complex64)
    optimizer = optim.SGD(layer.parameters(), lr=0.1, rank=rank, factorization=factorization)
    for step in range(20):
        optimizer.zero_grad()
        x = torch.randn(16, dtype=torch.complex64).expand(8, 16)
        if step % 2:
            x = torch.eye(16, dtype=torch.complex64)[:1].expand(8, 16)
        (layer(x).abs().square() * torch.linspace(0, 1, 16)).sum().mul(scale).backward()
        optimizer.step()
    assert optimizer.skipped_steps() == 0
    assert all(value.isfinite().all() for value in optimizer.state[layer.weight].values())
    assert defect(matrix_view(layer.weight).detach()) < 1e-6


@KINDS
@pytest.mark.parametrize("make", [UnitaryLinear, BlockUnitaryLinear])
def test_a_tiny_loss_of_a_sketched_layer_stores_no_bad_basis(kind, make):
    layer = make(*((8, 8) if make is UnitaryLinear else (2, 8)), dtype=kind, sketch_rank=4)
    optimizer = optim.SGD(layer.parameters(), lr=0.1, rank=2)
    for scale in (1e-30, 1e-38, 1.0):
        optimizer.zero_grad()
        x = torch.randn(1, 8 if make is UnitaryLinear else 16, dtype=kind).expand(5, -1)
        layer(x).abs().square().sum().mul(scale).backward()
        optimizer.step()
        assert optimizer.state[layer.weight]["basis"].isfinite().all()
    assert optimizer.skipped_steps() == 0


@KINDS
@pytest.mark.parametrize("momentum", [0, 0.9])
def test_a_sketched_step_of_more_rank_than_the_weight_has(kind, momentum):
    layer = UnitaryLinear(3, 3, dtype=kind, sketch_rank=2)
    options = {"momentum": momentum, "nesterov": momentum > 0}
    optimizer = optim.SGD(layer.parameters(), lr=0.1, rank=8, **options)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(5, 3, dtype=kind)).abs().square().sum().backward()
        optimizer.step()
    assert optimizer.skipped_steps() == 0
    assert defect(matrix_view(layer.weight).detach()) < 1e-6
