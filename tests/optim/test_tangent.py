"""Steps along the tangent part of the gradient: the definition, and where a sketch can stop."""

import copy

import pytest
import torch

import projunn
from projunn import UnitaryParameter, init
from projunn.nn import UnitaryLinear
from projunn.optim import SGD
from projunn_kernels import FusedStep, fused_step_
from tests.combinations import pairwise
from tests.dense import RETRACTIONS, defect, precise, unitary_factor

KINDS = [torch.float32, torch.float64, torch.complex64, torch.complex128]
KINDS_OF_LISTS = pytest.mark.parametrize("kind", KINDS[::2], ids=str)


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


def counters(*batch):
    """``skipped`` and ``missed`` of a step of one parameter."""
    return [torch.zeros(())], [torch.zeros(batch, dtype=torch.int64)]


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
    arguments = ([weight], [direction], [basis], [basis.clone()], *counters(*batch))
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


def distance(weight, loss_of, steps, factorization):
    """The loss after full-batch steps, and the weight's distance from unitary."""
    parameter = UnitaryParameter(weight)
    optimizer = SGD([parameter], lr=1.0, unitary_lr=0.1, factorization=factorization)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(parameter).backward()
        optimizer.step()
    return loss_of(parameter).item(), defect(parameter.detach())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("bank", [False, True])
def test_never_stops_short_of_the_optimum(seed, dtype, bank):
    matrix, start = trace_problem(seed, dtype)
    start = torch.stack([start, start]) if bank else start
    count = 2 if bank else 1
    loss, off = distance(start.clone(), lambda w: -(matrix.conj() * w).sum().real, 300, "tangent")
    assert -loss > 31 * count
    assert off < 2e-6


@pytest.mark.parametrize("seed", range(3))
def test_finds_principal_components(seed):
    source = torch.Generator().manual_seed(seed)
    vectors = init.haar_(torch.empty(40, 40), source)
    values, weights = torch.linspace(4, 0, 40), torch.linspace(1, 0.25, 4)
    covariance = (vectors * values) @ vectors.T
    best = (values[:4] * weights).sum().item() / 2
    start = init.haar_(torch.empty(40, 4), source)
    loss, off = distance(
        start, lambda w: -((covariance @ w) * w).sum(0).dot(weights) / 2, 400, "tangent"
    )
    assert -loss > 0.9 * best
    assert off < 2e-6


@KINDS_OF_LISTS
@pytest.mark.parametrize("size", [(5, 7), (7, 5), (6, 6)], ids=str)
def test_listed_matrices_step_as_they_do_alone(kind, size):
    bank = init.haar_(torch.empty(4, *size, dtype=kind))
    direction = torch.randn(2, *size, dtype=kind)
    basis = torch.randn(4, max(size), 2, dtype=kind)
    probe = basis.clone()
    listed = torch.tensor([2, 0])
    wanted, new_basis = bank.clone(), basis.clone()
    for d, i in zip(direction, listed.tolist(), strict=True):
        alone = ([wanted[i]], [d], [new_basis[i]], [probe[i]], *counters())
        fused_step_(FusedStep(*alone, 0.1, factorization="tangent"))
    arguments = ([bank], [direction], [basis], [probe], *counters(4))
    fused_step_(FusedStep(*arguments, 0.1, active=listed, factorization="tangent"))
    torch.testing.assert_close(bank, wanted, atol=5e-6, rtol=0)
    torch.testing.assert_close(basis[[1, 3]], new_basis[[1, 3]], atol=0, rtol=0)
    gram = basis @ basis.mH  # signs of single columns are free
    torch.testing.assert_close(gram, new_basis @ new_basis.mH, atol=1e-1, rtol=0)


def take_step(layer, optimizer):
    optimizer.zero_grad()
    layer(torch.arange(15.0).view(3, 5).cos()).square().mul(torch.arange(5.0)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("saved", ["subspace", "single_pass", "tangent"])
def test_a_checkpoint_goes_on_with_the_factorization_it_was_saved_with(saved):
    other = {"subspace": "tangent", "tangent": "single_pass", "single_pass": "subspace"}[saved]
    layer = UnitaryLinear(5, 5, bias=False)
    old = SGD(layer.parameters(), lr=1.0, rank=2, factorization=saved)
    take_step(layer, old)
    twin = copy.deepcopy(layer)
    loaded = SGD(twin.parameters(), lr=1.0, rank=2, factorization=other)
    loaded.load_state_dict(copy.deepcopy(old.state_dict()))
    assert loaded.param_groups[0]["factorization"] == saved
    for own, optimizer in ((layer, old), (twin, loaded)):
        take_step(own, optimizer)
    assert torch.equal(layer.weight, twin.weight)


@pytest.mark.parametrize("before", ["subspace", "single_pass", "tangent"])
def test_a_changed_factorization_starts_from_a_basis_of_its_own(before):
    """A left basis is none of the right, though of a square weight it has the same shape."""
    after = {"subspace": "tangent", "tangent": "single_pass", "single_pass": "subspace"}[before]
    layer = UnitaryLinear(5, 5, bias=False)
    optimizer = SGD(layer.parameters(), lr=1.0, factorization=before)
    take_step(layer, optimizer)
    twin = copy.deepcopy(layer)
    optimizer.param_groups[0]["factorization"] = after
    fresh = SGD(twin.parameters(), lr=1.0, factorization=after)
    take_step(layer, optimizer)
    take_step(twin, fresh)
    assert torch.equal(layer.weight, twin.weight)


@pytest.mark.parametrize("gradient", ["in factors", "dense"])
def test_a_layer_with_sketch_rank_is_refused_and_left_as_it_is(gradient):
    layer = UnitaryLinear(5, 5, bias=False, sketch_rank=2)
    optimizer = SGD(layer.parameters(), lr=1.0, factorization="tangent")
    before = layer.weight.detach().clone()
    if gradient == "dense":
        layer.weight.grad = torch.randn_like(before)
    else:
        layer(torch.randn(3, 5)).square().sum().backward()
    refusal = r'factorization: got "tangent".*sketch_rank, wanted "subspace"'
    with pytest.raises(ValueError, match=refusal):
        optimizer.step()
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    ("k", "size", "kind"),
    pairwise([1, 2, 3, 9], [(9, 9), (9, 140), (140, 9)], [torch.float32, torch.complex64]),
    ids=str,
)
def test_kernels_equal_pytorch(kernels, k, size, kind):
    weight = init.haar_(torch.empty(2, *size, dtype=kind))
    direction = torch.randn(2, *size, dtype=kind)
    basis, probe = (torch.randn(2, max(size), k, dtype=kind) for _ in range(2))
    found = []
    for backend in ("torch", kernels.name):
        tensors = [t.clone() for t in (weight, direction, basis, probe, *(c for (c,) in counters(2)))]
        if backend != "torch":
            tensors = [t.to(kernels.device) for t in tensors]
        with projunn.backend(backend):
            fused_step_(FusedStep(*([t] for t in tensors), 0.05, factorization="tangent"))
        assert tensors[4].item() == 0
        warm = tensors[2] - 0.01 * tensors[3]
        found.append((tensors[0].cpu(), (warm[:, :8] @ warm.mH).cpu()))
    torch.testing.assert_close(found[0][0], found[1][0], atol=5e-6, rtol=0)
    torch.testing.assert_close(found[0][1], found[1][1], atol=2e-5, rtol=0)


@pytest.mark.parametrize("loaded", ["never", "before", "after"])
def test_a_group_that_was_tangent_can_be_set_to_subspace(loaded):
    """Also where the state is loaded before, or after, the option is set."""
    parameter = UnitaryParameter(init.haar_(torch.empty(6, 6)))
    optimizer = SGD([parameter], lr=0.1, factorization="tangent")
    parameter.grad = torch.randn(6, 6)
    optimizer.step()
    if loaded == "after":
        optimizer.param_groups[0]["factorization"] = "subspace"
    if loaded != "never":
        saved = copy.deepcopy(optimizer.state_dict())
        optimizer = SGD([parameter], lr=0.1)
        optimizer.load_state_dict(saved)
    optimizer.param_groups[0]["factorization"] = "subspace"
    twin = UnitaryParameter(parameter.detach().clone())
    fresh = SGD([twin], lr=0.1)
    parameter.grad = torch.randn(6, 6)
    twin.grad = parameter.grad.clone()
    optimizer.step()
    fresh.step()
    assert torch.equal(parameter, twin)
    assert "tangent_basis" not in optimizer.state[parameter]


def test_another_option_leaves_the_tangent_basis_alone():
    parameter = UnitaryParameter(init.haar_(torch.empty(6, 6)))
    optimizer = SGD([parameter], lr=0.1, momentum=0.9, factorization="tangent")
    for _ in range(3):
        parameter.grad = torch.randn(6, 6)
        optimizer.step()
    basis = optimizer.state[parameter]["tangent_basis"]
    optimizer.param_groups[0]["momentum"] = 0
    optimizer.step()
    assert optimizer.state[parameter]["tangent_basis"] is basis
