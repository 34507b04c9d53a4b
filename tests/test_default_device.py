"""Tensors of the CPU under another default device (`torch.set_default_device`): nothing notices it."""

import ast
import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import projunn
from projunn.nn import BlockUnitaryLinear, UnitaryConv2d, UnitaryLinear, UnitaryRNN
from projunn.optim import SGD, SGDG, AdamW, Isospectral, Lion, RMSprop
from projunn_kernels.convolution import eager, tables

ROOT = Path(__file__).parents[1]
N = 12
MAKERS = {"tensor", "eye", "zeros", "ones", "empty", "full", "arange", "rand", "randn", "linspace"}
LAYERS = {
    "linear": (lambda: UnitaryLinear(N, N), (5, N)),
    "tall": (lambda: UnitaryLinear(5, N), (5, 5)),
    "complex": (lambda: UnitaryLinear(N, N, dtype=torch.complex64), (5, N)),
    "sketched": (lambda: UnitaryLinear(N, N, sketch_rank=3), (5, N)),
    "blocks": (lambda: BlockUnitaryLinear(3, 4), (5, N)),
    "bank": (lambda: nn.Sequential(*(UnitaryLinear(N, N) for _ in range(3))), (5, N)),
    "large bank": (lambda: BlockUnitaryLinear(2, 100), (5, 200)),
    "recurrent": (lambda: UnitaryRNN(3, N), (6, 5, 3)),
    "convolution": (lambda: UnitaryConv2d(2, 3, (7, 6)), (5, 2, 7, 6)),
    "large": (lambda: UnitaryLinear(200, 200), (5, 200)),
}
OPTIMIZERS = {
    "sgd": (SGD, {}),
    "momentum": (SGD, {"momentum": 0.9, "polish_every": 1}),
    "rank2": (AdamW, {"rank": 2}),
    "single_pass": (SGD, {"factorization": "single_pass"}),
    "tangent": (AdamW, {"factorization": "tangent"}),
    "lsi": (RMSprop, {"factorization": "lsi", "retraction": "polar"}),
    "lion": (Lion, {"retraction": "cayley"}),
}


@pytest.fixture
def elsewhere():
    """Runs a function while another device is the default."""

    def run(function):
        torch.set_default_device("meta")
        try:
            return function()
        finally:
            torch.set_default_device(None)

    return run


def trained(module, optimizer, x):
    def run():
        for _ in range(3):
            optimizer.zero_grad()
            y = module(x)
            y = y[0] if isinstance(y, tuple) else y
            (y.abs().square() * y.real).mean().backward()
            optimizer.step()
        return [p.detach() for p in module.parameters()]

    return run


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training(layer, optimizer, elsewhere):
    if layer == "sketched" and optimizer in ("lsi", "tangent", "lion"):
        pytest.skip("these options take no sketched gradient")
    make, shape = LAYERS[layer]
    (kind, options), x = OPTIMIZERS[optimizer], torch.randn(shape)
    modules = [make()]
    modules.append(copy.deepcopy(modules[0]))
    # Not the biases: torch.optim.AdamW of torch 2.11 counts its steps on the default device.
    here, there = (
        trained(m, kind(projunn.unitary_parameters(m), lr=0.1, **options), x) for m in modules
    )
    for a, b in zip(here(), elsewhere(there), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert all(projunn.unitarity_defect(p).max() < 1e-5 for p in projunn.unitary_parameters(modules[1]))


@pytest.mark.parametrize(
    ("kind", "n", "options"),
    [
        (SGDG, N, {"stiefel": True}),
        (SGDG, 200, {"stiefel": True, "rank": 2, "momentum": 0.9}),
        (Isospectral, N, {"momentum": 0.9}),
    ],
)
def test_plain_matrices(kind, n, options, elsewhere):
    p = nn.Parameter(projunn.init.haar_(torch.empty(n, n)))
    p.grad, optimizer = torch.randn(n, n), kind([p], lr=0.1, **options)
    elsewhere(optimizer.step)
    assert optimizer.skipped_steps() == 0
    assert projunn.unitarity_defect(p) < 1e-6


def test_what_is_kept_of_a_convolution_is_made_on_the_cpu(elsewhere):
    """A new size, whose tables are made under the other default, and used after it."""
    layer, x = UnitaryConv2d(2, 2, (9, 11)), torch.randn(3, 2, 9, 11)
    for module in (eager, tables):
        for made in vars(module).values():
            if hasattr(made, "cache_clear"):
                made.cache_clear()
    there = elsewhere(lambda: (layer(x), layer.spatial_filter(), layer.energy_outside(3)))
    for a, b in zip(there, (layer(x), layer.spatial_filter(), layer.energy_outside(3)), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("retraction", ["exp", "polar", "cayley"])
@pytest.mark.parametrize("k", [1, 3])
def test_functions(retraction, k, elsewhere):
    weight, x, y = projunn.init.haar_(torch.empty(N, N)), torch.randn(N, k), torch.randn(N, k)

    def run():
        left, right = projunn.factorize(weight, k, "subspace", basis=x)
        return [projunn.retract(weight, x, y, retraction), left, right, projunn.unitarity_defect(weight)]

    for a, b in zip(run(), elsewhere(run), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_bounds_and_certificates(elsewhere):
    model = nn.Sequential(UnitaryConv2d(2, 2, 4), nn.Flatten(), UnitaryLinear(32, 5)).eval()
    batches = [(torch.randn(6, 2, 4, 4), torch.arange(6) % 5)]

    def run():
        return projunn.lipschitz_bound(model), projunn.certified_accuracy(model, batches, [0.0, 0.1])

    assert run() == elsewhere(run)


def test_projections_and_plain_layers(elsewhere):
    net = nn.Sequential(BlockUnitaryLinear(3, 4), UnitaryLinear(N, N), UnitaryConv2d(2, 2, 4))
    net[1].weight.data.mul_(2)
    elsewhere(lambda: projunn.project_(net))
    assert projunn.unitarity_defect(net[1].weight) < 1e-6
    x = torch.randn(5, N)
    before = net[:2](x)
    elsewhere(lambda: projunn.to_plain(net))
    assert torch.allclose(net[:2](x), before, atol=1e-5)


def test_every_tensor_of_the_kernels_names_its_device():
    missing, makers = [], {f"torch.{name}" for name in MAKERS}
    for file in (ROOT / "kernels").rglob("*.py"):
        if "tuning" in file.parts or file.stem in ("reference", "selfcheck"):
            continue
        for call in ast.walk(ast.parse(file.read_text())):
            if not isinstance(call, ast.Call) or ast.unparse(call.func) not in makers:
                continue
            if not {keyword.arg for keyword in call.keywords} & {"device", None}:
                missing.append(f"{file.relative_to(ROOT)}:{call.lineno}")
    assert not missing
