"""Steps of rank 9 to 64 by the kernels that work in memory, against float64."""

import pytest
import torch

import projunn
from projunn import init, retract
from projunn.optim import SGD, SGDG
from projunn_kernels import (
    factor,
    orthonormalize,
    rank_update_,
    retract_,
    retract_pulled_,
    tangent_factors,
)
from projunn_kernels.configs.kernel import KERNELS
from projunn_kernels.launching import Matrices, as_columns
from projunn_kernels.products.launch import adjoint_partials
from projunn_kernels.retraction.launch import rotation_launch, rows_launch
from tests.dense import RETRACTIONS, defect, precise

KINDS = pytest.mark.parametrize("kind", [torch.float32, torch.complex64], ids=str)


def draw(kernels, kind, m, n, k, batch=1):
    weight = init.haar_(torch.empty(batch, m, n, dtype=kind))
    factors = (torch.randn(batch, size, k, dtype=kind) / size**0.5 for size in (m, n))
    return tuple(t.to(kernels.device) for t in (weight, *factors))


@KINDS
@pytest.mark.parametrize(
    ("m", "n", "k", "retraction"),
    [
        (30, 30, 9, "exp"),
        (30, 44, 17, "polar"),  # 2k columns in two blocks
        (44, 30, 10, "cayley"),
        (12, 14, 9, "cayley"),  # 2k > n: the basis is the identity
        (70, 70, 33, "exp"),
        (66, 68, 65, "exp"),  # above 64 there are products by kernels, and PyTorch between them
        (68, 66, 65, "polar"),
    ],
)
def test_equals_float64(kernels, kind, m, n, k, retraction):
    if kind.is_complex and k > 17:
        pytest.skip("the real one has as many blocks")
    weight, left, right = draw(kernels, kind, m, n, k)
    wanted = retract(*(precise(t) for t in (weight, left, right)), retraction)
    with kernels.backend():
        taken = retract_(weight, left, right, retraction)
    assert taken.all()
    assert (precise(weight) - wanted).abs().max() < 3e-7
    assert defect(weight) < 3e-7


@KINDS
@pytest.mark.parametrize(("m", "n"), [(68, 68), (67, 70), (70, 67)])
def test_the_tangent_part_and_factors_of_any_rank(kernels, kind, m, n):
    """Of rank 65: what multiplies W, and what is found of it and of a gradient."""
    weight, *_ = draw(kernels, kind, m, n, 1, batch=2)
    gradient = (torch.randn(2, m, n, dtype=kind) / m).to(kernels.device)
    basis = torch.randn(2, m, 65, dtype=kind).to(kernels.device)
    start = torch.randn(2, max(m, n), 65, dtype=kind).to(kernels.device)
    wanted = precise(weight), *factor(precise(gradient), precise(basis))
    exact = tangent_factors(precise(gradient), precise(weight), precise(start))
    moved = retract_pulled_(wanted[0], exact.pulled, exact.right, exact.moved, "exp")
    with kernels.backend():
        left, right = factor(gradient, basis)
        found = tangent_factors(gradient, weight, start)
        taken = retract_pulled_(weight, *found, "exp")
    assert taken.all()
    assert moved.all()
    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(precise(left @ right.mH), wanted[1] @ wanted[2].mH, **close)
    torch.testing.assert_close(precise(weight), wanted[0], **close)
    assert defect(weight) < 3e-7


@KINDS
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize(("n", "k", "scale"), [(40, 17, 0.01), (30, 9, 0.5)])
def test_a_launch_for_each_product_makes_what_one_program_makes(kernels, kind, n, k, retraction, scale):
    """Small steps by a polynomial, large ones by the functions of the retractions."""
    k = 10 if kind.is_complex and k > 10 else k  # several blocks
    start, left, right = draw(kernels, kind, n, n, k, batch=2)
    left = left * scale
    wanted = retract(*(precise(t) for t in (start, left, right)), retraction)
    found = []
    for alone in (True, False):
        weight = start.clone()
        where, pulled = Matrices.of(weight), adjoint_partials(weight, as_columns(left), None)
        with kernels.backend():
            run, rotation = rotation_launch(where, as_columns(right), pulled, retraction, alone=alone)
            run()
            rows_launch(where, rotation)()
        assert rotation.taken.all()
        assert (precise(weight) - wanted).abs().max() < 2e-7
        found.append(weight)
    torch.testing.assert_close(*found, atol=1e-7, rtol=0)


@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("scale", [0.0, 1e-20, 300.0, 1e9, torch.nan])
def test_steps_of_any_size_stay_unitary_or_are_not_taken(kernels, retraction, scale):
    weight, left, right = draw(kernels, torch.float32, 24, 24, 9)
    before = weight.clone()
    with kernels.backend():
        taken = retract_(weight, left * scale, right, retraction)
    assert projunn.unitarity_defect(weight).max() < 1e-6
    if scale <= 300:
        assert taken.all()
        wanted = retract(*(precise(t) for t in (before, left * scale, right)), retraction)
        assert (precise(weight) - wanted).abs().max() < 1e-6 + 1e-7 * scale
    elif not taken:
        assert torch.equal(weight, before)
    assert taken.item() or scale == 1e9 or scale != scale


@KINDS
def test_huge_columns_that_depend_on_each_other(kernels, kind):
    """Whatever fills the columns that the step lacks, the result is unitary."""
    weight, left, right = draw(kernels, kind, 26, 26, 10)
    left, right = left.clone(), right.clone()
    left[..., 1:] = left[..., :1] * 1e10
    right[..., 5:] = right[..., :5]
    with kernels.backend():
        retract_(weight, left, right, "cayley")
    assert defect(weight) < 1e-6


@pytest.mark.interpreter_only
def test_only_listed_matrices_change(kernels):
    weight, left, right = draw(kernels, torch.float32, 20, 20, 9, batch=4)
    before, active = weight.clone(), torch.tensor([2, -1, 0])
    with kernels.backend():
        x, y = factor(left[:3] @ right[:3].mH, left[:3])
        taken = retract_(weight, x, y, "exp", active)
    assert taken[[0, 2]].all()
    wanted = retract(*(precise(t) for t in (before[[2, 0]], x[[0, 2]], y[[0, 2]])), "exp")
    assert (precise(weight[[2, 0]]) - wanted).abs().max() < 3e-7
    assert torch.equal(weight[[1, 3]], before[[1, 3]])


@KINDS
@pytest.mark.parametrize("k", [17, 33])
def test_an_update_of_many_columns(kernels, kind, k):
    weight, left, right = draw(kernels, kind, 37, 70, k, batch=3)
    active = torch.tensor([2, 0], device=kernels.device)
    wanted = precise(weight).clone()
    wanted[[2, 0]] += precise(left[:2]) @ precise(right[:2]).mH
    with kernels.backend():
        rank_update_(weight, left[:2], right[:2], active)
    assert (precise(weight) - wanted).abs().max() < 2e-6


@KINDS
@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-6])
def test_nearly_dependent_columns_become_orthonormal(kernels, kind, spread):
    columns = torch.randn(1, 60, 12, dtype=kind)
    columns[..., 4:] = columns[..., :4] @ torch.randn(4, 8, dtype=kind) + spread * columns[..., 4:]
    with kernels.backend():
        q = precise(orthonormalize(columns.to(kernels.device)).cpu())
    torch.testing.assert_close(q.mH @ q, torch.eye(12, dtype=q.dtype)[None], atol=3e-6, rtol=0)


@pytest.mark.parametrize("name", ["triangle", "turn", "adjoint_many", "product_many", "update_many"])
def test_the_cases_that_a_gpu_is_checked_with_pass(kernels, name):
    """What a kernel is compared with before its first use, at the least rank that it is for."""
    kernel = KERNELS[name]
    problem = min(kernel.compiled, key=lambda one: one.k)
    variants = list(kernel.variants_of(problem))
    with kernels.backend():
        from projunn_kernels import selfcheck
        from projunn_kernels.configs.choice import config_for
        from projunn_kernels.configs.problem import device_of

        small = selfcheck.smaller(kernel, problem, config_for(problem, device_of(kernels.device))[0])
        for variant in (variants[0], variants[-1]):
            assert selfcheck.compare(kernel, small, variant, kernels.device) == ""


def test_the_step_of_several_parameters(kernels):
    """A step of several parameters is that of PyTorch; whose columns a basis has is seen later only."""
    found = []
    for backend in ("torch", kernels.name):
        torch.manual_seed(1)
        starts = [init.haar_(torch.empty(30, 30)).to(kernels.device) for _ in range(3)]
        weights = [projunn.UnitaryParameter(w) for w in starts]
        optimizer = SGD(weights, lr=1.0, rank=12)
        with projunn.backend(backend):
            for w in weights:
                w.grad = torch.randn(30, 30).to(kernels.device)
            optimizer.step()
        assert optimizer.skipped_steps() == 0
        found.append(torch.stack([w.detach() for w in weights]))
        assert defect(found[-1].cpu()) < 1e-6
    torch.testing.assert_close(*found, atol=3e-6, rtol=0)


@pytest.mark.parametrize("singular", ["one", "three", "from 1 to 1e-8"])
def test_a_step_along_a_gradient_of_low_rank(kernels, singular):
    """One Cholesky factor leaves short what the columns lack, and the step is that of PyTorch."""
    number = {"one": 1, "three": 3}.get(singular, 30)
    values = 10.0 ** torch.linspace(0, -8, 30) if number == 30 else 1.0 * (torch.arange(30) < number)
    u, v = init.haar_(torch.empty(2, 30, 30))
    found, start = [], init.haar_(torch.empty(30, 30))
    for backend in ("torch", kernels.name):
        torch.manual_seed(1)
        weight = projunn.UnitaryParameter(start.clone().to(kernels.device))
        optimizer = SGD([weight], lr=0.7, rank=12, retraction="polar")
        with projunn.backend(backend):
            for _ in range(2):  # the second one by the basis that the first has left
                weight.grad = ((u * values) @ v).to(kernels.device)
                optimizer.step()
        assert optimizer.skipped_steps() == 0
        found.append(weight.detach().cpu())
        assert defect(found[-1]) < 1e-6
    torch.testing.assert_close(*found, atol=3e-6, rtol=0)


def test_rotations_of_plain_parameters_step_by_the_same_kernels(kernels):
    start, gradient = init.haar_(torch.empty(30, 30)), torch.randn(30, 30)
    found = []
    for backend in ("torch", kernels.name):
        rotation = torch.nn.Parameter(start.clone().to(kernels.device))
        optimizer = SGDG([rotation], lr=0.3, stiefel=True, rank=10)
        rotation.grad = gradient.to(kernels.device)
        with projunn.backend(backend):
            optimizer.step()
        found.append(rotation.detach().cpu())
        assert defect(found[-1]) < 1e-6
    assert (found[0] - start).abs().max() > 0.01
    torch.testing.assert_close(*found, atol=3e-6, rtol=0)
