"""Initialisers: unitary, distributed as they say, repeatable."""

from math import pi

import pytest
import torch

from projunn import init, matrix_view
from projunn.diagnostics import eigenphases
from projunn.nn import UnitaryConv2d, UnitaryLinear
from tests.dense import defect, roundoff

RANDOM = ("haar", "henaff", "cayley")


@pytest.mark.parametrize("name", [*RANDOM, "identity"])
@pytest.mark.parametrize("shape", [(6, 6), (7, 7), (3, 5, 5), (2, 3, 4, 4), (4, 6), (6, 4), (1, 1)])
def test_unitary_and_in_place(dtype, name, shape):
    tensor = torch.empty(shape, dtype=dtype)
    assert getattr(init, f"{name}_")(tensor) is tensor
    assert defect(tensor) < 8 * roundoff(dtype)


@pytest.mark.parametrize("name", RANDOM)
def test_each_matrix_of_a_batch_is_drawn(name):
    tensor = getattr(init, f"{name}_")(torch.empty(3, 4, 4))
    assert not torch.equal(tensor[0], tensor[1])
    assert not torch.equal(tensor[1], tensor[2])


@pytest.mark.parametrize("name", RANDOM)
def test_generator_decides(name):
    def draw(seed):
        return getattr(init, f"{name}_")(torch.empty(5, 5), torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize("kind", [torch.float64, torch.complex128])
def test_haar_moments(kind):
    tensor = init.haar_(torch.empty(20000, 4, 4, dtype=kind))
    # E |tr U|^2 = 1 and E |U_ij|^2 = 1/n for both groups; QR without its signs gives neither.
    traces = tensor.diagonal(dim1=-2, dim2=-1).sum(-1)
    assert abs(traces.abs().square().mean() - 1) < 0.04
    # E tr U^2 = 1 for O(n), where half of the determinants are -1, and 0 for U(n).
    assert abs((tensor * tensor.mT).sum((-2, -1)).mean() - float(not kind.is_complex)) < 0.05
    assert abs(torch.linalg.det(tensor).mean()) < 0.03
    torch.testing.assert_close(
        tensor.abs().square().mean(0), torch.full((4, 4), 0.25).double(), atol=0.01, rtol=0
    )
    assert tensor.mean(0).abs().max() < 0.015


@pytest.mark.parametrize(("name", "low", "high"), [("henaff", -pi, pi), ("cayley", 0, pi / 2)])
def test_angles_of_block_rotations(name, low, high):
    real = eigenphases(getattr(init, f"{name}_")(torch.empty(400, 400))).abs()
    assert real.max() <= high + 1e-5
    assert real.mean() == pytest.approx(high / 2, rel=0.15)
    phases = eigenphases(getattr(init, f"{name}_")(torch.empty(400, 400, dtype=torch.complex64)))
    assert low - 1e-5 <= phases.min()
    assert phases.max() <= high + 1e-5
    assert phases.mean() == pytest.approx((low + high) / 2, abs=0.15 * high)


def test_odd_size_leaves_one_entry_alone():
    tensor = init.henaff_(torch.empty(5, 5))
    assert tensor[4, 4] == 1
    assert torch.count_nonzero(tensor[4]) == 1


def test_parameter_stored_as_pairs():
    layer = UnitaryLinear(4, 4, dtype=torch.complex64)
    assert init.identity_(layer.weight) is layer.weight
    assert torch.equal(layer.matrix, torch.eye(4, dtype=torch.complex64))


@pytest.mark.parametrize("tensor", [torch.ones(3), torch.ones(3, 3, dtype=torch.int64)])
def test_errors(tensor):
    with pytest.raises(ValueError, match="tensor: got shape"):
        init.haar_(tensor)


@pytest.mark.parametrize("name", ["haar_", "identity_", "henaff_", "cayley_"])
def test_a_matrix_whose_rows_are_one_in_memory_is_refused(name):
    with pytest.raises(ValueError, match=r"tensor: got an expanded tensor of shape \(4, 4\)"):
        getattr(init, name)(torch.zeros(1, 4).expand(4, 4))


@pytest.mark.parametrize("use", ["reset_parameters", "haar_", "matrix_view"])
def test_complex_matrices_in_bfloat16_are_refused_in_words(use):
    layer = UnitaryConv2d(2, 2, (4, 4)).bfloat16()
    calls = {
        "reset_parameters": layer.reset_parameters,
        "haar_": lambda: init.haar_(layer.weight),
        "matrix_view": lambda: matrix_view(layer.weight),
    }
    with pytest.raises(TypeError, match=r"pairs of torch\.bfloat16.*wanted them in float32"):
        calls[use]()
