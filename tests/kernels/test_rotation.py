"""The small unitary matrices: closed forms and decompositions against their definitions."""

import pytest
import torch

from projunn import UnitaryParameter, init
from projunn.optim import SGD
from projunn_kernels import RETRACTIONS as DECLARED
from projunn_kernels import rotation
from projunn_kernels.retraction.rotations.declaration import Retraction
from tests.dense import RETRACTIONS, defect, unitary_factor

KINDS = (torch.float64, torch.complex128)
PRECISION = 1e-16


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("size", [2, 4, 10])
@pytest.mark.parametrize("scale", [0.0, 1e-8, 1e-3, 1.0, 30.0])
def test_equals_the_definition(kind, retraction, size, scale):
    e = torch.randn(5, size, size, dtype=kind) * scale
    f, usable = rotation(e, retraction, PRECISION)
    assert usable.all()
    identity = torch.eye(size, dtype=kind)
    condition = 1.0
    if retraction == "polar":
        condition = min(1.0, torch.linalg.svdvals(identity + e).min().item())
    error = (f + identity - unitary_factor(e, retraction)).abs().max()
    assert error < 2e-14 * (1 + scale) / condition
    unitarity = (f + identity).mH @ (f + identity) - identity
    assert unitarity.abs().max() < 1e-13


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("scale", [1e2, 1e4, 1e6, 1e7])
def test_turns_by_many_radians_are_unitary_to_rounding(kind, size, scale):
    """Whatever the processor: an error of the angle may turn further, never stretch."""
    e = torch.randn(400, size, size, dtype=kind) * scale
    f, usable = rotation(e, "exp", PRECISION)
    assert usable.float().mean() > 0.9
    f = f + torch.eye(size, dtype=kind)
    assert (f.mH @ f - torch.eye(size, dtype=kind)).abs().max() < 1e-14


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_closed_form_agrees_with_decomposition(kind, retraction):
    e = torch.randn(50, 2, 2, dtype=kind)
    larger = torch.zeros(50, 4, 4, dtype=kind)
    larger[:, :2, :2] = e
    f, _ = rotation(e, retraction, PRECISION)
    g, _ = rotation(larger, retraction, PRECISION)
    torch.testing.assert_close(f, g[:, :2, :2], atol=2e-13, rtol=0)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("size", [2, 4])
def test_what_cannot_be_taken(kind, size):
    e = torch.randn(4, size, size, dtype=kind)
    e[1] = -torch.eye(size, dtype=kind)  # I + E = 0
    e[2] = torch.nan
    e[3] *= 1e9  # turns by more than 1e8 radians
    expected = {"polar": [1, 0, 0, 1], "exp": [1, 1, 0, 0], "cayley": [1, 1, 0, 1]}
    for retraction, mask in expected.items():
        f, usable = rotation(e, retraction, PRECISION)
        assert usable.tolist() == [bool(m) for m in mask], retraction
        assert torch.count_nonzero(f[~usable]) == 0
        assert f.isfinite().all()


def test_real_exponential_is_a_plane_rotation():
    e = torch.tensor([[0.0, 0.0], [0.6, 0.0]], dtype=torch.float64)  # a c = 0.6: an angle of 0.3
    f, _ = rotation(e, "exp", PRECISION)
    cos, sin = torch.tensor([0.3], dtype=torch.float64).cos(), torch.tensor(0.3).double().sin()
    expected = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    torch.testing.assert_close(f + torch.eye(2), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_a_single_matrix_agrees_with_a_batch(retraction):
    e = torch.randn(60, 2, 2, dtype=torch.float64) * torch.logspace(-6, 1, 60)[:, None, None]
    e[0], e[1], e[2] = -torch.eye(2), torch.nan, 0.0
    e[3], e[4] = e[3] * 1e20, torch.inf
    f, usable = rotation(e, retraction, PRECISION)
    for i in range(len(e)):
        g, one_usable = rotation(e[i], retraction, PRECISION)
        assert bool(one_usable) == bool(usable[i])
        torch.testing.assert_close(g, f[i], atol=1e-13, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("shape", [(8, 8), (9, 3), (3, 9), (5, 4, 4), (300, 300)])
def test_a_retraction_of_one_function_steps_as_one_with_all_that_makes_it_faster(
    shape, k, dtype, monkeypatch
):
    monkeypatch.setitem(DECLARED, "plain", Retraction("plain", dense=DECLARED["cayley"].dense))
    start, gradients = init.haar_(torch.empty(shape, dtype=dtype)), torch.randn(3, *shape, dtype=dtype)
    ends = []
    for retraction in ("plain", "cayley"):
        weight = UnitaryParameter(start.clone())
        optimizer = SGD([weight], lr=1.0, unitary_lr=0.1, rank=k, retraction=retraction)
        for weight.grad in gradients:
            optimizer.step()
        ends.append(weight.detach())
    assert defect(ends[0]) < 1e-6
    torch.testing.assert_close(*ends, atol=1e-5, rtol=0)
