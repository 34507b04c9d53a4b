"""Finite gradients of any size are taken, or skipped and counted; no state takes no more steps."""

import pytest
import torch

import projunn
from projunn import optim
from projunn.nn import BlockUnitaryLinear
from tests.dense import defect, retracted

RULES = {
    "SGD": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "RMSprop": {},
    "centered": {"centered": True, "momentum": 0.9},
    "AdamW": {},
    "amsgrad": {"amsgrad": True},
    "Lion": {},
}
CLASSES = {"nesterov": "SGD", "centered": "RMSprop", "amsgrad": "AdamW"}
KINDS = [torch.float32, "pairs", torch.complex128]
EVERY_KIND = pytest.mark.parametrize("kind", KINDS, ids=str)


@pytest.fixture(params=RULES)
def rule(request):
    cls = getattr(optim, CLASSES.get(request.param, request.param))
    return lambda parameters, **more: cls(parameters, **{"lr": 0.3, **RULES[request.param], **more})


def parameter(n, kind):
    pairs = kind == "pairs"
    data = projunn.init.haar_(torch.empty(n, n, dtype=torch.complex64 if pairs else kind))
    return projunn.UnitaryParameter(torch.view_as_real(data) if pairs else data, pairs=pairs)


def largest(p):
    return torch.finfo(p.dtype).max


def step(optimizer, p, gradient):
    p.grad = gradient.clone()
    optimizer.step()


@EVERY_KIND
@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("power", [0.4, 0.506, 1.0])
def test_a_huge_gradient_stops_no_later_step(rule, kind, n, power):
    """In the rules of squares it is counted, and then as if it had not been, or its square is finite."""
    p = parameter(n, kind)
    twin = projunn.UnitaryParameter(p.detach().clone(), pairs=p.pairs)
    optimizer, other = (rule([q], polish_every=0, rank=n, factorization="svd") for q in (p, twin))
    first = torch.randn_like(p)
    step(optimizer, p, first)
    step(other, twin, first)
    huge = torch.zeros_like(p)
    huge.view(-1)[0] = 0.9 * largest(p) ** power
    step(optimizer, p, huge)
    for name, value in optimizer.state[p].items():
        assert value.isfinite().all(), name
    counted = optimizer.skipped_steps()
    squares = any(name.endswith(("square_avg", "exp_avg_sq")) for name in optimizer.state[p])
    if squares and power > 0.5:
        assert counted == 1
    if counted and squares:
        for name in optimizer._averages(optimizer.param_groups[0]):
            assert torch.equal(optimizer.state[p][name], other.state[twin][name]), name
    for _ in range(3):
        gradient, before = torch.randn_like(p), p.detach().clone()
        step(optimizer, p, gradient)
        step(other, twin, gradient)
        if counted and squares:
            assert not torch.equal(p, before) or n == 1  # a real 1 x 1 matrix is 1 or -1
            torch.testing.assert_close(p, twin, rtol=0, atol=2e-6)
    assert defect(projunn.matrix_view(p).detach()) < 2e-6


@EVERY_KIND
@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}], ids=str
)
def test_a_gradient_whose_norm_overflows_is_followed(kind, options):
    """With a rate that makes a step of usual size of it."""
    p = parameter(4, kind)
    size = largest(p) ** 0.7  # of which the square is infinite
    gradient = torch.randn_like(p)
    optimizer = optim.SGD(
        [p], lr=1 / size, unitary_lr=0.3 / size, rank=4, factorization="svd", **options
    )
    weight = projunn.matrix_view(p).detach().clone()
    step(optimizer, p, gradient * size)
    assert optimizer.skipped_steps() == 0
    scale = 1.9 if options.get("nesterov") else 1.0
    numbers = torch.view_as_complex(gradient) if p.pairs else gradient
    left = -0.3 * scale * numbers
    expected = retracted(weight, left, torch.eye(4, dtype=left.dtype), "exp")
    torch.testing.assert_close(
        projunn.matrix_view(p).detach().to(expected.dtype), expected, rtol=0, atol=2e-6
    )


@EVERY_KIND
def test_momentum_of_the_largest_gradients_stays_finite(rule, kind):
    p = parameter(3, kind)
    optimizer = rule([p], polish_every=0)
    for _ in range(12):
        gradient = torch.zeros_like(p)
        gradient.view(-1)[0] = largest(p)
        step(optimizer, p, gradient)
    for name, value in optimizer.state[p].items():
        assert value.isfinite().all(), name
    assert defect(projunn.matrix_view(p).detach()) < 2e-6


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "AdamW"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("power", [0.506, 0.95])
def test_averages_of_sketched_gradients_stay_finite(name, dtype, size, power):
    layer = BlockUnitaryLinear(2, size, False, dtype=dtype, sketch_rank=min(size, 2))
    options = {"momentum": 0.9} if name == "SGD" else {}
    optimizer = getattr(optim, name)(layer.parameters(), lr=0.1, **options)
    x, share = torch.randn(9, 2 * size, dtype=dtype), torch.linspace(0.5, 1, 2 * size)

    def take(scale):
        optimizer.zero_grad()
        (layer(x).abs().square().mul(share).sum() * scale).backward()
        optimizer.step()

    take(1.0)
    take(torch.finfo(dtype).max ** power)
    for key, value in optimizer.state[layer.weight].items():
        assert value.isfinite().all(), key
    if name != "SGD" and power > 0.5:
        assert optimizer.skipped_steps() == 2
        before = layer.weight.detach().clone()
        take(1.0)
        assert size == 1 or not torch.equal(layer.weight, before)
        assert optimizer.skipped_steps() == 2
    assert defect(projunn.matrix_view(layer.weight).detach()) < 2e-6


def test_a_huge_gradient_of_one_matrix_stops_no_other(rule):
    data = projunn.init.haar_(torch.empty(3, 4, 4))
    bank, twin = (projunn.UnitaryParameter(data.clone()) for _ in range(2))
    optimizers = [rule([p], polish_every=0) for p in (bank, twin)]
    for t in range(4):
        gradient = torch.randn(3, 4, 4)
        step(optimizers[1], twin, gradient)
        if t == 1:
            gradient[1, 0, 0] = 3e38
        step(optimizers[0], bank, gradient)
    torch.testing.assert_close(bank[[0, 2]], twin[[0, 2]], rtol=0, atol=2e-6)
    assert defect(bank.detach()) < 2e-6
