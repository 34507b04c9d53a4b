"""Optimizer steps along gradients in factors."""

import copy

import pytest
import torch

import projunn
from projunn import FactoredTensor
from projunn.nn import BlockUnitaryLinear, UnitaryLinear
from projunn.optim import SGD, AdamW, RMSprop
from projunn.optim.gradient.factored import compressed, row_energies, truncated
from tests.combinations import pairwise
from tests.dense import defect
from tests.launches import watched

REAL_AND_COMPLEX = pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
RULES = {
    "SGD": lambda p, **o: SGD(p, lr=1.0, unitary_lr=0.2, **o),
    "momentum": lambda p, **o: SGD(p, lr=1.0, unitary_lr=0.03, momentum=0.9, **o),
    "nesterov": lambda p, **o: SGD(p, lr=1.0, unitary_lr=0.03, momentum=0.9, nesterov=True, **o),
    "RMSprop": lambda p, **o: RMSprop(p, lr=1.0, unitary_lr=0.01, **o),
    "RMSprop momentum": lambda p, **o: RMSprop(p, lr=1.0, unitary_lr=1e-3, momentum=0.9, **o),
    "AdamW": lambda p, **o: AdamW(p, lr=1.0, unitary_lr=0.01, **o),
}
EVERY_RULE = pytest.mark.parametrize("rule", RULES)


def distance(layer, target, x):
    return (layer(x) - x @ target.mT).abs().square().sum(-1).mean()


@EVERY_RULE
@REAL_AND_COMPLEX
@pytest.mark.parametrize("retraction", ["exp", "polar", "cayley"])
def test_learns_a_unitary_matrix(dtype, rule, retraction):
    n = 8
    layer, target = (UnitaryLinear(n, n, False, dtype=dtype, sketch_rank=2) for _ in range(2))
    target = target.matrix.detach()
    if not dtype.is_complex and torch.det(target) * torch.det(layer.matrix) < 0:
        target[0] *= -1
    optimizer = RULES[rule](layer.parameters(), rank=2, retraction=retraction)
    x = torch.randn(32, n, dtype=dtype)
    first = distance(layer, target, x).item()
    for _ in range(100):
        optimizer.zero_grad()
        distance(layer, target, x).backward()
        optimizer.step()
    assert distance(layer, target, x) < 0.7 * first
    assert defect(layer.matrix.detach()) < 2e-6
    assert optimizer.skipped_steps() == 0


@REAL_AND_COMPLEX
@pytest.mark.parametrize("options", [{}, {"dampening": 0.5}, {"nesterov": True}], ids=str)
def test_momentum_at_full_rank_is_the_dense_one(dtype, options):
    n = 6
    sketched = UnitaryLinear(n, n, False, dtype=dtype, sketch_rank=n)
    dense = UnitaryLinear(n, n, False, dtype=dtype)
    dense.load_state_dict(sketched.state_dict())
    optimizers = [
        SGD(m.parameters(), lr=1.0, unitary_lr=0.05, momentum=0.8, rank=n, **options)
        for m in (sketched, dense)
    ]
    target = UnitaryLinear(n, n, False, dtype=dtype).matrix.detach()
    for _ in range(10):
        x = torch.randn(20, n, dtype=dtype)
        for layer, optimizer in zip((sketched, dense), optimizers, strict=True):
            optimizer.zero_grad()
            distance(layer, target, x).backward()
            optimizer.step()
    torch.testing.assert_close(sketched.matrix, dense.matrix, atol=2e-5, rtol=0)


@EVERY_RULE
@REAL_AND_COMPLEX
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_gradient_leaves_weight_and_state_alone(rule, dtype, bad):
    layer = BlockUnitaryLinear(3, 4, False, dtype=dtype, sketch_rank=2)
    optimizer = RULES[rule](layer.parameters(), rank=1)
    x = torch.randn(9, 12, dtype=dtype)

    def gradient():
        optimizer.zero_grad()
        layer(x).abs().square().mul(torch.linspace(0, 1, 12)).sum().backward()

    gradient()
    optimizer.step()
    for factor in ("left", "right"):
        gradient()
        getattr(layer.weight.grad, factor)[0, 1, 2, 0] = bad
        weight = layer.weight.detach().clone()
        state = {k: v.clone() for k, v in optimizer.state[layer.weight].items()}
        optimizer.step()
        changed = (layer.weight.detach() != weight).flatten(2).any(-1)
        assert changed.tolist() == [[True, False, True]]
        for name, value in optimizer.state[layer.weight].items():
            if name in ("step", "skipped", "missed", "probe"):
                continue
            assert torch.equal(value[0, 1], state[name][0, 1]), name
            assert value.isfinite().all()
    assert optimizer.skipped_steps() == 2
    gradient()
    optimizer.step()
    assert defect(layer._numbers(layer.weight.detach())) < 2e-6


@EVERY_RULE
def test_resumes_exactly(rule):
    layer = UnitaryLinear(6, 6, sketch_rank=2)
    optimizer = RULES[rule](layer.parameters(), rank=2)
    batches = [torch.randn(5, 6) for _ in range(6)]

    def train(layer, optimizer, batches):
        for x in batches:
            optimizer.zero_grad()
            layer(x).square().mul(torch.arange(6.0)).sum().backward()
            optimizer.step()

    train(layer, optimizer, batches[:3])
    other = UnitaryLinear(6, 6, sketch_rank=2)
    resumed = RULES[rule](other.parameters(), rank=2)
    other.load_state_dict(copy.deepcopy(layer.state_dict()))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(layer, optimizer, batches[3:])
    train(other, resumed, batches[3:])
    assert torch.equal(layer.weight, other.weight)


def test_rates_and_signs():
    x = torch.randn(5, 6)
    weights = []
    for options in (
        {"unitary_lr": 1e-4},
        {"unitary_lr": torch.tensor(1e-4)},
        {"unitary_lr": 1e-4, "maximize": True},
    ):
        torch.manual_seed(1)
        layer = UnitaryLinear(6, 6, False, sketch_rank=1)
        optimizer = SGD(layer.parameters(), lr=1.0, **options)
        start = layer.weight.detach().clone()
        layer(x).square().mul(torch.arange(6.0)).sum().backward()
        optimizer.step()
        weights.append(layer.weight.detach() - start)
    torch.testing.assert_close(weights[0], weights[1])
    cosine = (weights[0] * weights[2]).sum() / weights[0].norm() / weights[2].norm()
    assert cosine < -0.9


def test_options_that_need_every_entry_are_refused():
    layer = UnitaryLinear(4, 4, sketch_rank=1)
    layer(torch.randn(3, 4)).sum().backward()
    with pytest.raises(ValueError, match="centered"):
        RMSprop(layer.parameters(), centered=True).step()
    with pytest.raises(ValueError, match="amsgrad"):
        AdamW(layer.parameters(), amsgrad=True).step()
    dense = UnitaryLinear(4, 4)
    dense.weight.grad = FactoredTensor(torch.randn(4, 1), torch.randn(4, 1))
    with pytest.raises(TypeError, match="sketch_rank"):
        SGD(dense.parameters()).step()


@pytest.mark.parametrize("batch", [(), (3,)])
def test_truncation_is_about_the_best(dtype, batch):
    """Within a fifth of the best error, where neighbouring singular values differ by a third."""
    u, v = (torch.linalg.qr(torch.randn(*batch, n, 6, dtype=dtype))[0] for n in (9, 7))
    sizes = 0.66 ** torch.arange(6)
    mix = torch.randn(*batch, 6, 6, dtype=dtype)
    left = (u * sizes) @ mix
    right = v @ torch.linalg.inv(mix).mH
    exact = (u * sizes) @ v.mH
    for rank in (1, 3, 5):
        x, y = truncated(left, right, rank)
        assert x.shape[-1] == y.shape[-1] == rank
        error = torch.linalg.matrix_norm(x @ y.mH - exact)
        assert (error < 1.2 * sizes[rank:].square().sum().sqrt()).all()
    x, y = truncated(left, right, 6)
    torch.testing.assert_close(x @ y.mH, exact, atol=1e-4, rtol=1e-3)
    zero = truncated(left * 0, right, 2)
    assert zero[0].count_nonzero() == 0
    assert zero[1].isfinite().all()


@pytest.mark.parametrize("path", ["torch", "interpret"])
@pytest.mark.parametrize("kind", [torch.float32, torch.complex64, torch.float64])
@pytest.mark.parametrize("sizes", [(1, 1e-2, 1e-4), (1e-4, 1e-2, 1), (1, 1, 1e-3)], ids=str)
def test_parts_of_any_size_are_kept_in_their_order(path, kind, sizes):
    """Orthogonal columns, the largest last, and parts thousands of times smaller than the largest."""
    u, v = (torch.linalg.qr(torch.randn(12, 5, dtype=kind))[0] for _ in range(2))
    every = torch.tensor([*sizes, 1e-6, 1e-7]).to(kind)
    with projunn.backend(path):
        left, right = truncated(u * every, v, 3)
    missing = torch.linalg.matrix_norm(left @ right.mH - (u * every) @ v.mH, 2)
    assert missing < 2e-6
    found = torch.linalg.vector_norm(left, dim=-2)
    torch.testing.assert_close(
        found, torch.tensor(sorted(sizes, reverse=True)).to(found), rtol=1e-2, atol=0
    )


def test_compression_keeps_the_range_of_the_basis(dtype):
    left, right = torch.randn(6, 4, dtype=dtype), torch.randn(5, 4, dtype=dtype)
    full = left @ right.mH
    x, y = compressed(left, right, torch.randn(6, 4, dtype=dtype)[:, :4])
    torch.testing.assert_close(x @ y.mH, full)
    u, s, vh = torch.linalg.svd(full)
    x, y = compressed(left, right, u[:, :2])
    torch.testing.assert_close(x @ y.mH, (u[:, :2] * s[:2]) @ vh[:2], atol=1e-4, rtol=1e-4)
    x, y = compressed(left, right, torch.randn(6, 5, dtype=dtype))  # missing columns are zero
    assert x.shape == (6, 5)
    assert y.shape == (5, 5)
    torch.testing.assert_close(x @ y.mH, full)


def test_row_energies(dtype):
    left, right = torch.randn(2, 6, 3, dtype=dtype), torch.randn(2, 5, 3, dtype=dtype)
    full = left @ right.mH
    torch.testing.assert_close(row_energies(left, right)[..., 0], full.abs().square().sum(-1))
    torch.testing.assert_close(row_energies(right, left)[..., 0], full.abs().square().sum(-2))


def test_rmsprop_takes_row_and_column_means():
    layer = UnitaryLinear(5, 7, False, sketch_rank=5, dtype=torch.float64)
    optimizer = RMSprop(layer.parameters(), lr=1.0, unitary_lr=1e-4, alpha=0.75, rank=5)
    layer(torch.randn(9, 5, dtype=torch.float64)).square().mul(torch.arange(1.0, 8.0)).sum().backward()
    grad, start = layer.weight.grad.to_dense(), layer.weight.detach().clone()
    optimizer.step()
    rows, columns = (grad.square().mean(d, keepdim=True) * 0.25 for d in (1, 0))
    expected = grad / (rows * columns / rows.mean()).sqrt()
    step = (layer.weight.detach() - start) / -1e-4
    tangent = expected - start @ (0.5 * (start.T @ expected + expected.T @ start))
    # To first order in the rate: W - rate (E - W E^T W)/2, less what leaves the column space.
    torch.testing.assert_close(
        start.T @ step, (start.T @ expected - expected.T @ start) / 2, atol=3e-3, rtol=0
    )
    assert tangent.shape == step.shape


@EVERY_RULE
@REAL_AND_COMPLEX
@pytest.mark.parametrize("rank", [1, 2])
def test_nothing_waits_for_a_device(rule, dtype, rank):
    """Meta tensors have no numbers to read: whatever the host would wait for raises."""
    layer = UnitaryLinear(9, 9, False, dtype=dtype, sketch_rank=2, device="meta")
    optimizer = RULES[rule](layer.parameters(), rank=rank)
    optimizer.param_groups[0]["capturable"] = True
    for uses in (1, 2):
        optimizer.zero_grad()
        for _ in range(uses):
            layer(torch.empty(4, 9, dtype=dtype, device="meta")).abs().sum().backward()
        optimizer.step()
    state = optimizer.state[layer.weight]
    assert {tensor.device.type for tensor in state.values()} == {"meta"}
    with pytest.raises(RuntimeError):
        state["step"].item()


class Three(torch.nn.Module):
    def __init__(self, n, dtype, k):
        super().__init__()
        self.layers = torch.nn.ModuleList(
            UnitaryLinear(n, n, False, dtype=dtype, sketch_rank=k) for _ in range(3)
        )

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize(
    ("rule", "k", "dtype"),
    pairwise(["SGD", "momentum", "AdamW"], [1, 2], [torch.float32, torch.complex64]),
    ids=str,
)
def test_alike_parameters_step_together_as_each_alone(kernels, rule, k, dtype):
    together = Three(10, dtype, k).to(kernels.device)
    apart = copy.deepcopy(together)
    one = RULES[rule](together.parameters(), rank=k)
    each = [RULES[rule](layer.parameters(), rank=k) for layer in apart.layers]
    with kernels.backend():
        for _ in range(2):
            x, y = (torch.randn(7, 10, dtype=dtype, device=kernels.device) for _ in range(2))
            for model, optimizers in ((together, [one]), (apart, each)):
                for optimizer in optimizers:
                    optimizer.zero_grad()
                (model(x) - y).abs().square().mean().backward()
                for optimizer in optimizers:
                    optimizer.step()
    for a, b in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


@pytest.mark.parametrize("k", [1, 2])
def test_alike_parameters_step_in_the_launches_of_one(kernels, k):
    model = Three(18, torch.float32, k).to(kernels.device)
    optimizer = SGD(model.parameters(), rank=k, polish_every=0)
    with watched(kernels, run=False) as seen:
        for count in (1, 3):
            optimizer.zero_grad()
            for layer in model.layers[:count]:
                layer(torch.randn(7, 18, device=kernels.device)).sum().backward()
            seen.clear()
            optimizer.step()
            last = ["plane_rows"] if k == 1 else ["basis", "rotate_rows"]
            assert seen.kernels == ["adjoint_product", *last]


def test_a_gradient_of_another_kind_is_taken_up_after_one_in_factors():
    layer = UnitaryLinear(6, 6, False, sketch_rank=2)
    optimizer = SGD(layer.parameters(), lr=1.0, unitary_lr=0.1, rank=2)
    other = copy.deepcopy(layer)
    expected = SGD(other.parameters(), lr=1.0, unitary_lr=0.1, rank=2)
    for i in range(4):
        for model, rule in ((layer, optimizer), (other, expected)):
            torch.manual_seed(i)
            rule.zero_grad()
            model(torch.randn(5, 6)).square().mul(torch.randn(5, 6)).sum().backward()
        if i == 2:
            layer.weight.grad = layer.weight.grad.to_dense()
        optimizer.step()
        expected.step()
        torch.testing.assert_close(layer.weight, other.weight, atol=1e-5, rtol=0)
    optimizer.param_groups[0]["factorization"] = "tangent"
    layer(torch.randn(5, 6)).sum().backward()
    with pytest.raises(ValueError, match='factorization: got "tangent"'):
        optimizer.step()
