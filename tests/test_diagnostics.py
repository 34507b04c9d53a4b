"""Diagnostics against values known by construction."""

from math import pi, sqrt

import pytest
import torch

from projunn import diagnostics, init, unitarity_defect
from projunn.nn import UnitaryLinear


def test_defect_of_a_scaled_identity(dtype):
    # (1.1^2 - 1) I has norm 0.21 sqrt(n)
    weight = 1.1 * torch.eye(6, dtype=dtype).expand(2, 6, 6)
    torch.testing.assert_close(unitarity_defect(weight).double(), torch.full((2,), 0.21).double())
    assert unitarity_defect(weight[:, :4]).tolist() == pytest.approx([0.21, 0.21])


def test_defect_takes_parameters_and_half_precision():
    layer = UnitaryLinear(5, 5, dtype=torch.complex64)
    assert unitarity_defect(layer.weight).shape == ()
    assert 0 < unitarity_defect(layer.weight) < 1e-6
    assert unitarity_defect(torch.eye(4).bfloat16()) == 0
    assert not unitarity_defect(layer.weight).requires_grad


def test_eigenphases_of_a_known_spectrum():
    phases = torch.tensor([-2.0, -0.5, 0.1, 3.0], dtype=torch.float64)
    basis = init.haar_(torch.empty(4, 4, dtype=torch.complex128))
    weight = (basis * torch.polar(torch.ones_like(phases), phases)) @ basis.mH
    torch.testing.assert_close(diagnostics.eigenphases(weight), phases)
    assert diagnostics.eigenphases(-torch.eye(3)).tolist() == pytest.approx([pi] * 3)


def test_captured_energy_of_known_singular_values(dtype):
    left = init.haar_(torch.empty(5, 5, dtype=dtype))
    right = init.haar_(torch.empty(3, 5, dtype=dtype))
    matrix = (left[:, :3] * torch.tensor([2.0, 1.0, 1.0])) @ right
    for rank, share in ((1, 4 / 6), (2, 5 / 6), (3, 1.0), (9, 1.0)):
        assert diagnostics.captured_energy(matrix, rank).item() == pytest.approx(share, rel=1e-5)
    assert diagnostics.captured_energy(torch.zeros(2, 3, 3), 1).tolist() == [1.0, 1.0]


def test_results_are_tensors_on_the_device():
    weight = torch.eye(3, device="meta")  # a meta tensor has no values: reading one would raise
    assert unitarity_defect(weight).device.type == "meta"
    assert diagnostics.captured_energy(weight, 1).device.type == "meta"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: unitarity_defect(torch.ones(3)), "weight: got shape"),
        (lambda: unitarity_defect(torch.ones(3, 3, dtype=torch.int64)), "int64"),
        (lambda: diagnostics.eigenphases(torch.ones(3, 4)), "wanted square"),
        (lambda: diagnostics.captured_energy(torch.ones(3, 4), 0), "rank: got 0"),
    ],
)
def test_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_defect_is_relative_to_the_size():
    noise = 1e-3
    small, large = (init.haar_(torch.empty(n, n)) for n in (16, 256))
    for weight in (small, large):
        weight += noise * torch.randn_like(weight) / sqrt(weight.shape[0])
    assert unitarity_defect(large) == pytest.approx(unitarity_defect(small).item(), rel=0.4)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_eigenphases_of_what_is_not_finite_are_nan(bad):
    weight = torch.eye(5).repeat(2, 1, 1)
    weight[0, 1, 2] = bad
    phases = diagnostics.eigenphases(weight)
    assert phases[0].isnan().all()
    assert torch.equal(phases[1], torch.zeros(5, dtype=torch.float64))
