"""Retractions of given factors by the kernels, the operators, and the functions for k > 8."""

import pytest
import torch

import projunn
from projunn import init, retract
from projunn_kernels import factor, iterations, rank_update_, retract_, tangent_factors
from tests.dense import RETRACTIONS, defect, polar, precise, retracted, unitary_factor

KINDS = (torch.float32, torch.complex64)


def draw(kind, m, n, k, batch=3):
    weight = init.haar_(torch.empty(batch, m, n, dtype=kind))
    left, right = (torch.randn(batch, size, k, dtype=kind) / size**0.5 for size in (m, n))
    return weight, left, right


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize(
    ("m", "n", "k"), [(7, 7, 1), (20, 33, 1), (33, 20, 1), (140, 140, 1), (9, 9, 2)]
)
def test_equals_float64(kernels, kind, retraction, m, n, k):
    weight, left, right = (t.to(kernels.device) for t in draw(kind, m, n, k))
    wanted = retract(*(precise(t) for t in (weight, left, right)), retraction)
    with kernels.backend():
        taken = retract_(weight, left, right, retraction)
    assert taken.all()
    assert (precise(weight) - wanted).abs().max() < 1e-6


@pytest.mark.parametrize("scale", [1e-20, 1e-4, 30.0, 1e9])
@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_steps_of_any_size_stay_unitary(kernels, scale, retraction):
    for kind in KINDS:
        weight, left, right = (t.to(kernels.device) for t in draw(kind, 8, 8, 1))
        with kernels.backend():
            retract_(weight, left * scale, right, retraction)
        assert projunn.unitarity_defect(weight).max() < 1e-6


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("size", [1e10, 1e18])
def test_unitary_after_a_huge_step_of_equal_columns(kernels, kind, n, size):
    """Columns of rounding in the basis are not orthonormal; a step that they would bend is not taken."""
    weight, left, right = draw(kind, n, n, 1, batch=4)
    left, right = left.expand(4, n, 2) * size, right.expand(4, n, 2)
    weight, left, right = (t.to(kernels.device) for t in (weight, left, right))
    with kernels.backend():
        retract_(weight, left, right, "cayley")
    assert defect(weight) < 1e-6


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("k", [1, 3, 9])
def test_rank_update_and_factors(kernels, kind, k):
    weight, left, right = (t.to(kernels.device) for t in draw(kind, 20, 33, k))
    active = torch.tensor([2, 0], device=kernels.device)
    wanted = precise(weight).clone()
    wanted[[2, 0]] += precise(left[:2]) @ precise(right[:2]).mH
    with kernels.backend():
        x, y = factor(weight, left)
        rank_update_(weight, left[:2], right[:2], active)
    assert (precise(weight) - wanted).abs().max() < 1e-6
    identity = torch.eye(k, dtype=precise(y).dtype).expand(3, k, k)
    torch.testing.assert_close(precise(y).mH @ precise(y), identity, atol=1e-5, rtol=0)
    assert x.shape == left.shape


@pytest.mark.parametrize("k", [1, 2, 12])
def test_entries_that_name_no_matrix_take_no_step(kernels, monkeypatch, k):
    """Even where memory that nobody has written happens to hold numbers."""
    monkeypatch.setattr(torch, "empty", torch.zeros)
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
    weight, left, right = (t.to(kernels.device) for t in draw(torch.float32, 12, 12, k))
    active = torch.tensor([2, -1, 0], device=kernels.device)
    with kernels.backend():
        taken = retract_(weight, left, right, "exp", active)
    assert taken.tolist() == [True, False, True]


def test_untouched_tiles_are_not_read(kernels):
    weight = torch.full((1, 64, 300), torch.nan, device=kernels.device)
    left, right = (t.to(kernels.device) for t in (torch.zeros(1, 64, 1), torch.randn(1, 300, 1)))
    with kernels.backend():
        rank_update_(weight, left, right)
    assert weight.isnan().all()


def test_operators():
    weight, left, right = draw(torch.float32, 6, 6, 1)
    ops = torch.ops.projunn
    torch.library.opcheck(ops.retract_.default, (weight, left, right, "exp", None))
    torch.library.opcheck(ops.rank_update_.default, (weight, left, right, None))
    torch.library.opcheck(ops.factor.default, (weight, left, None))
    step = torch.zeros(())
    torch.library.opcheck(ops.polish_when_due_.default, ([weight], [step], 3, False, []))


@pytest.mark.parametrize(("m", "n"), [(1, 5), (5, 2), (1, 1)])
def test_factors_of_full_rank_are_no_views_of_the_weight(m, n, kernels):
    """Y = W^H, which the step then changes, and which no operator may return."""
    weight, matrix = init.haar_(torch.empty(m, n)), torch.randn(m, n)
    basis = torch.randn(max(m, n), min(m, n))
    operator = torch.ops.projunn.tangent_factors.default
    torch.library.opcheck(operator, (matrix, weight, basis))
    on_it = [t.to(kernels.device) for t in (matrix, weight, basis)]
    with kernels.backend():
        right = tangent_factors(*on_it).right
    assert right.data_ptr() != on_it[1].data_ptr()


def test_traces_for_a_gpu_that_is_not_there():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        weight, left, right = (torch.empty(2, 6, s, device="cuda") for s in (6, 1, 1))
        taken = retract_(weight, left, right, "exp")
        x, y = factor(weight, left)
        rank_update_(weight, x, y)
    assert taken.shape == (2,)
    assert (x.device.type, y.shape) == ("cuda", (2, 6, 1))


@pytest.mark.parametrize("kind", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 50.0])
def test_iterations_equal_decompositions(kind, scale):
    e = scale * torch.randn(4, 18, 18, dtype=kind)
    identity = torch.eye(18, dtype=kind)
    a = (e - e.mH) / 2
    error = iterations.exponential(a) + identity - unitary_factor(e, "exp")
    assert error.abs().max() < 1e-11
    u, _ = iterations.polar_factor(identity + e)
    assert (u - polar(identity + e)).abs().max() < 1e-9
    columns = torch.cat([torch.randn(4, 40, 5, dtype=kind), torch.zeros(4, 40, 1, dtype=kind)], -1)
    q, r = columns, torch.eye(6, dtype=kind).expand(4, 6, 6)
    for _ in range(3):
        t, triangle = iterations.orthonormalizer(q.mH @ q)
        q, r = q @ t, triangle @ r
    torch.testing.assert_close(q @ r, columns, atol=1e-12, rtol=0)
    torch.testing.assert_close((q.mH @ q)[:, :5, :5], torch.eye(5, dtype=kind).expand(4, 5, 5))


@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("angle", [1.0, 1e-2, 1e-4, 1e-7, 0.0])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e3])
def test_a_single_real_plane(retraction, angle, size):
    """Inner products give it where they can; nearly parallel y and z take the long way."""
    n = 40
    w = init.haar_(torch.empty(n, n))
    y, other = torch.linalg.qr(torch.randn(n, 2))[0].split(1, dim=1)
    x = w @ (y + angle * other) * size
    expected = retracted(*(precise(t) for t in (w, x, y)), retraction)
    assert retract_(w, x, y, retraction)
    if size <= 1:  # a turn by many radians is not determined by its factors in float32
        torch.testing.assert_close(precise(w), expected, atol=2e-6, rtol=0)
    assert defect(w) < 2e-6
