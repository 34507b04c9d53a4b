"""Steps along the tangent part of the gradient: the definition, and where a sketch can stop."""

import copy

import pytest
import torch

import projunn
from projunn import init
from projunn.nn import UnitaryLinear
from projunn.optim import SGD
from projunn_kernels import FusedStep, fused_step_
from tests.dense import RETRACTIONS, defect, precise, unitary_factor

KINDS = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def expected(weight, direction, basis, rate, retraction):
    """A projected on the span of Y and A Y, but for the corner of what is orthogonal to Y."""
    w, d, r = map(precise, (weight, direction, basis))
    if w.shape[-2] > w.shape[-1]:
        return expected(w.mH, d.mH, r, rate, retraction).mH
    a = (w.mH @ d - d.mH @ w) / 2
    y = w.mH if r.shape[-1] == w.shape[-2] else torch.linalg.qr(a @ r)[0]
    image = a @ y
    span = torch.linalg.qr(torch.cat([y, image], -1))[0]
    projected = span @ span.mH @ a @ span @ span.mH
    outside = torch.eye(a.shape[-1], dtype=a.dtype) - y @ y.mH
    z = 2 * image - y @ (y.mH @ image)
    step = projected - outside @ projected @ outside
    torch.testing.assert_close((z @ y.mH - y @ z.mH) / 2, step, atol=1e-12, rtol=0)
    return w @ unitary_factor(-rate * z @ y.mH, retraction)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("size", [(6, 6), (4, 7), (7, 4)], ids=str)
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("batch", [(), (3,)], ids=str)
def test_step_equals_float64(kind, retraction, size, k, batch):
    weight = init.haar_(torch.empty(*batch, *size, dtype=kind))
    direction = torch.randn(*batch, *size, dtype=kind)
    basis = torch.randn(*batch, max(size), k, dtype=kind)
    wanted = expected(weight, direction, basis, 0.1, retraction)
    arguments = ([weight], [direction], [basis], [basis.clone()], [torch.zeros(())])
    fused_step_(FusedStep(*arguments, 0.1, None, retraction, factorization="tangent"))
    tolerance = 1e-12 if kind in (torch.float64, torch.complex128) else 5e-6
    assert (precise(weight) - wanted).abs().max() < tolerance


def trace_problem(seed, dtype):
    """C of singular values 1 to 3, and a start from which rotations lead to the optimum, 32."""
    source = torch.Generator().manual_seed(seed)
    u, v, start = (init.haar_(torch.empty(16, 16, dtype=dtype), source) for _ in range(3))
    matrix = (u * torch.linspace(1, 3, 16).to(dtype)) @ v
    if not dtype.is_complex and torch.linalg.det(matrix) * torch.linalg.det(start) < 0:
        start[0] *= -1
    return matrix, start


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("sketch_rank", [None, 1, 4])
def test_never_stops_short_of_the_optimum(seed, dtype, sketch_rank):
    """`subspace` ends between 1 and 6 here."""
    matrix, start = trace_problem(seed, dtype)
    layer = UnitaryLinear(16, 16, bias=False, dtype=dtype, sketch_rank=sketch_rank)
    layer.matrix.data.copy_(start)
    optimizer = SGD(layer.parameters(), lr=1.0, unitary_lr=0.1)
    every = torch.eye(16, dtype=dtype)
    for _ in range(300):
        optimizer.zero_grad()
        value = (matrix.conj() * layer(every).mT).sum().real
        (-value).backward()
        optimizer.step()
    assert value > 31
    assert defect(layer.matrix.detach()) < 2e-6


@pytest.mark.parametrize("sketch_rank", [None, 2])
def test_an_old_state_goes_on_as_subspace(sketch_rank):
    layer = UnitaryLinear(5, 7, bias=False, sketch_rank=sketch_rank)
    old = SGD(layer.parameters(), lr=1.0, rank=2, factorization="subspace")
    x = torch.randn(9, 5)
    layer(x).square().mul(torch.arange(7.0)).sum().backward()
    old.step()
    twin = copy.deepcopy(layer)
    loaded = SGD(twin.parameters(), lr=1.0, rank=2)
    assert loaded.param_groups[0]["factorization"] == "tangent"
    loaded.load_state_dict(copy.deepcopy(old.state_dict()))
    assert loaded.param_groups[0]["factorization"] == "subspace"
    for own, optimizer in ((layer, old), (twin, loaded)):
        optimizer.zero_grad()
        own(x).square().mul(torch.arange(7.0)).sum().backward()
        optimizer.step()
    assert torch.equal(layer.weight, twin.weight)


@pytest.mark.parametrize("kind", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("k", [1, 2, 3, 9])
@pytest.mark.parametrize("size", [(9, 9), (9, 140), (140, 9)], ids=str)
def test_kernels_equal_pytorch(kernels, kind, k, size):
    weight = init.haar_(torch.empty(2, *size, dtype=kind))
    direction = torch.randn(2, *size, dtype=kind)
    basis, probe = (torch.randn(2, max(size), k, dtype=kind) for _ in range(2))
    found = []
    for backend in ("torch", kernels.name):
        tensors = [t.clone() for t in (weight, direction, basis, probe, torch.zeros(()))]
        if backend != "torch":
            tensors = [t.to(kernels.device) for t in tensors]
        with projunn.backend(backend):
            fused_step_(FusedStep(*([t] for t in tensors), 0.05, factorization="tangent"))
        assert tensors[4].item() == 0
        warm = tensors[2] - 0.01 * tensors[3]
        found.append((tensors[0].cpu(), (warm[:, :8] @ warm.mH).cpu()))
    torch.testing.assert_close(found[0][0], found[1][0], atol=5e-6, rtol=0)
    torch.testing.assert_close(found[0][1], found[1][1], atol=2e-5, rtol=0)
