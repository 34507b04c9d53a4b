"""Retractions against their dense definitions, and their promises at the edges."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.utils._python_dispatch import TorchDispatchMode

import projunn
from projunn import init, retract, retract_
from tests.dense import RETRACTIONS, defect, precise, retracted

# fp32: 5e-6, fp64: 1e-13, for steps of norm up to 2 (issue 1).
TOLERANCE = {4: 5e-6, 8: 1e-13}
# A step adds rounding to the defect, nothing else: about 1e-7 in fp32.
DEFECT = {4: 1e-6, 8: 1e-14}


def real_bytes(dtype):
    return torch.finfo(dtype).bits // 8


def draw(shape, k, dtype, norm=1.5):
    """A unitary weight and a step of spectral norm ``norm``."""
    *batch, m, n = shape
    weight = init.haar_(torch.empty(shape, dtype=dtype))
    left = torch.randn(*batch, m, k, dtype=dtype)
    right = torch.randn(*batch, n, k, dtype=dtype)
    if weight.numel():
        size = torch.linalg.matrix_norm(precise(left @ right.mH), 2)[..., None, None]
        left = left * (norm / size).to(left.dtype)
    return weight, left, right


@st.composite
def problems(draw_from):
    batch = draw_from(st.sampled_from([(), (3,), (2, 2), (0,)]))
    m, n = draw_from(st.integers(1, 12)), draw_from(st.integers(1, 12))
    k = draw_from(st.integers(1, min(m, n)))
    dtype = draw_from(st.sampled_from([torch.float32, torch.float64, torch.complex64, torch.complex128]))
    retraction = draw_from(st.sampled_from(RETRACTIONS))
    norm = draw_from(st.floats(0, 2))
    torch.manual_seed(draw_from(st.integers(0, 2**31)))
    return (*draw((*batch, m, n), k, dtype, norm), retraction)


@given(problems())
def test_equals_the_dense_definition_and_stays_unitary(problem):
    weight, left, right, retraction = problem
    result = retract(weight, left, right, retraction)
    assert result.shape == weight.shape
    assert result.dtype == weight.dtype
    bytes_ = real_bytes(weight.dtype)
    assert defect(result) < DEFECT[bytes_]
    if not weight.numel():
        return
    slack = 1.0
    if retraction == "polar":  # the polar factor's condition: 1 / smallest singular value of I + E
        wide = weight if weight.shape[-2] <= weight.shape[-1] else weight.mH
        step = left @ right.mH if weight is wide else right @ left.mH
        e = precise(wide).mH @ precise(step)
        slack = torch.linalg.svdvals(torch.eye(e.shape[-1], dtype=e.dtype) + e).min().item()
        if slack < 1e-2:
            return
    error = (precise(result) - retracted(weight, left, right, retraction)).abs().max().item()
    assert error < TOLERANCE[bytes_] / min(1.0, slack)


@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("k", [1, 2, 16, 64])
def test_larger_matrices(dtype, retraction, k):
    weight, left, right = draw((2, 64, 64), k, dtype, norm=0.9)
    error = precise(retract(weight, left, right, retraction)) - retracted(
        weight, left, right, retraction
    )
    assert error.abs().max() < 10 * TOLERANCE[real_bytes(dtype)]


def test_polar_is_the_nearest_unitary_matrix():
    weight, left, right = draw((9, 9), 2, torch.complex128, norm=0.8)
    u, _, vh = torch.linalg.svd(weight + left @ right.mH)
    torch.testing.assert_close(retract(weight, left, right, "polar"), u @ vh, atol=1e-13, rtol=0)


@pytest.mark.parametrize("size", [1e-3, 1e-5])
def test_polar_of_a_rectangular_weight_moves_half_as_far_off_its_rows(size):
    """Compared with the nearest semi-unitary matrix: the rest is of second order in the step."""
    for shape in ((5, 9), (9, 5)):
        weight, left, right = draw(shape, 2, torch.complex128, norm=size)
        step = left @ right.mH
        u, _, vh = torch.linalg.svd(weight + step, full_matrices=False)
        wide = shape[0] < shape[1]
        kept = step @ weight.mH @ weight if wide else weight @ weight.mH @ step
        off = (step - kept) / 2
        assert off.norm() > 0.1 * size
        rest = retract(weight, left, right, "polar") - (u @ vh - off)
        assert rest.norm() < 10 * size**2


@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("k", [1, 3])
def test_zero_step_is_exact(dtype, retraction, k):
    weight, left, right = draw((4, 7, 7), k, dtype)
    assert torch.equal(retract(weight, 0 * left, right, retraction), weight)
    assert torch.equal(retract(weight, left, 0 * right, retraction), weight)


@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e2, 1e6, 1e15])
def test_unitary_after_a_step_of_any_size(dtype, retraction, k, scale):
    weight, left, right = draw((3, 20, 20), k, dtype, norm=scale)
    assert defect(retract(weight, left, right, retraction)) < DEFECT[real_bytes(dtype)]


@pytest.mark.parametrize("n", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [1e-30, 1e5, 1e10, 1e18, 1e30, 1e100])
@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_unitary_after_a_huge_step_of_fewer_directions_than_columns(dtype, retraction, n, size):
    """Such as one example in a batch, or all of them equal, with a loss that has exploded."""
    if size > torch.finfo(dtype).max:
        pytest.skip("no number of this dtype")
    for k in range(1, min(n, 3) + 1):
        weight = init.haar_(torch.empty(2, n, n, dtype=dtype))
        one_hot = torch.zeros(2, n, k, dtype=dtype), torch.zeros(2, n, k, dtype=dtype)
        one_hot[0][:, 0, 0], one_hot[1][:, n - 1, 0] = size, 1
        equal = torch.randn(2, n, 1, dtype=dtype) * size, torch.randn(2, n, 1, dtype=dtype)
        any_step = torch.randn(2, n, k, dtype=dtype) * size, torch.randn(2, n, k, dtype=dtype)
        for left, right in (one_hot, [f.expand(2, n, k) for f in equal], any_step):
            result = retract(weight, left, right, retraction)
            assert defect(result) < 1e3 * DEFECT[real_bytes(dtype)]


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("gap", [1e-12, 1e-6, 1e-4, 1e-2])
def test_unitary_next_to_a_singular_polar_factor(dtype, k, gap):
    # W + D annihilates a direction, up to ``gap``: D = -(1 - gap) W y y^H
    weight = init.haar_(torch.empty(15, 15, dtype=dtype))
    right = torch.linalg.qr(torch.randn(15, k, dtype=dtype))[0]
    result = retract(weight, -(1 - gap) * (weight @ right), right, "polar")
    assert defect(result) < DEFECT[real_bytes(dtype)]


@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_unitary_for_dependent_columns(dtype, retraction):
    weight, left, right = draw((10, 10), 1, dtype)
    left = torch.cat([left, left, 0 * left], -1)
    right = torch.cat([right, 1e-7 * right, right], -1)
    result = retract(weight, left, right, retraction)
    assert defect(result) < DEFECT[real_bytes(dtype)]
    error = precise(result) - retracted(weight, left, right, retraction)
    assert error.abs().max() < 10 * TOLERANCE[real_bytes(dtype)]


@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["left", "right"])
def test_bad_step_leaves_its_matrix_and_no_other(dtype, retraction, k, bad, side):
    weight, left, right = draw((3, 6, 6), k, dtype)
    expected = retract(weight, left, right, retraction)
    (left if side == "left" else right)[1, 2, 0] = bad
    result = retract(weight, left, right, retraction)
    assert torch.equal(result[1], weight[1])
    assert torch.equal(result[[0, 2]], expected[[0, 2]])


def test_singular_polar_step_is_not_taken(dtype):
    weight = init.haar_(torch.empty(8, 8, dtype=dtype))
    right = torch.eye(8, dtype=dtype)[:, :1]
    assert torch.equal(retract(weight, -(weight @ right), right, "polar"), weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("n", [2, 6])
def test_polar_step_to_what_is_only_rounding_is_not_taken(dtype, n):
    """W + D is about 1e-7 in every direction: its polar factor is that of the rounding."""
    weight = init.haar_(torch.empty(n, n, dtype=dtype))
    left = -weight + 1e-7 * torch.randn(n, n, dtype=dtype)
    assert torch.equal(retract(weight, left, torch.eye(n, dtype=dtype), "polar"), weight)


def test_exp_step_of_undetermined_angle_is_not_taken():
    weight, left, right = draw((8, 8), 2, torch.float32, norm=1e9)
    assert torch.equal(retract(weight, left, right, "exp"), weight)


@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_in_place(dtype, retraction):
    weight, left, right = draw((5, 9), 2, dtype)
    expected = retract(weight, left, right, retraction)
    pointer = weight.data_ptr()
    assert retract_(weight, left, right, retraction) is weight
    assert weight.data_ptr() == pointer
    assert torch.equal(weight, expected)


def test_unitary_parameter_stored_as_pairs():
    layer = projunn.nn.UnitaryLinear(6, 6, dtype=torch.complex64)
    _, left, right = draw((6, 6), 1, torch.complex64)
    expected = retract(layer.matrix.detach(), left, right)
    torch.testing.assert_close(retract(layer.weight, left, right), expected, atol=0, rtol=0)
    assert retract_(layer.weight, left, right) is layer.weight
    assert torch.equal(layer.matrix, expected)


def test_strided_weights(dtype):
    weight, left, right = draw((4, 9, 9), 1, dtype)
    expected = retract(weight.mT, left, right)
    view = weight.mT
    retract_(view, left, right)
    torch.testing.assert_close(weight.mT, expected)
    torch.testing.assert_close(
        retract(weight, left[:1].expand(4, -1, -1), right),
        retract(weight, left[:1].repeat(4, 1, 1), right),
    )


class _Recorder(TorchDispatchMode):
    """Names and result sizes of all operations; views and in-place ones are not results."""

    def __init__(self):
        super().__init__()
        self.results = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                in_place = func._schema.name.endswith("_") or func.is_view
                self.results.append((func._schema.name, 0 if in_place else tensor.numel()))
        return result


@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("shape", [(256, 256), (256, 300), (300, 256)])
def test_no_second_matrix_in_memory_and_no_large_decomposition(dtype, retraction, k, shape):
    weight, left, right = draw(shape, k, dtype)
    with _Recorder() as recorder:
        retract_(weight, left, right, retraction)
    largest = max(recorder.results, key=lambda result: result[1])
    # The largest result is a basis (n x 2k): a decomposition cannot have met anything larger.
    assert largest[1] <= 8 * k * max(shape)


def test_no_gradient_is_recorded():
    weight, left, right = (t.requires_grad_() for t in draw((4, 4), 1, torch.float32))
    assert not retract(weight, left, right).requires_grad
    assert retract_(weight, left, right).requires_grad  # the parameter it was


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"retraction": "qr"}, ValueError, ["retraction", "'qr'", "exp, polar, cayley"]),
        ({"weight": torch.eye(4).half()}, TypeError, ["weight", "float16", "float32"]),
        ({"weight": torch.ones(4)}, ValueError, ["weight", "(4,)", "(*batch, m, n)"]),
        ({"left": torch.ones(5, 1)}, ValueError, ["left", "(5, 1)", "(4,)"]),
        ({"left": torch.ones(4)}, ValueError, ["left", "(4,)"]),
        ({"left": torch.ones(4, 0), "right": torch.ones(4, 0)}, ValueError, ["left", "1 <= k"]),
        ({"left": torch.ones(4, 5), "right": torch.ones(4, 5)}, ValueError, ["left", "k <= 4"]),
        ({"right": torch.ones(4, 2)}, ValueError, ["right", "rank 2", "rank 1"]),
        ({"right": torch.ones(4, 1).double()}, TypeError, ["right", "float64", "float32"]),
        ({"right": torch.ones(4, 1, device="meta")}, ValueError, ["right", "meta", "cpu"]),
    ],
)
def test_errors_name_the_argument(changes, error, words):
    arguments = {"weight": torch.eye(4), "left": torch.ones(4, 1), "right": torch.ones(4, 1)}
    with pytest.raises(error) as caught:
        retract(**{**arguments, **changes})
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("kind", [torch.float32, torch.complex64])
@pytest.mark.parametrize("k", [1, 4])
def test_a_thousand_full_steps_stay_unitary(retraction, kind, k):
    n = 32
    target, weight = (init.haar_(torch.empty(n, n, dtype=kind)) for _ in range(2))
    if torch.linalg.det(weight @ target.mH).real < 0:  # no path of rotations joins the two
        weight[0] *= -1
    for _ in range(1000):
        x = torch.randn(16, n, dtype=kind)
        x = x / torch.linalg.vector_norm(x, dim=1, keepdim=True)
        gradient = (x @ (weight - target).mT).mT @ x.conj()
        left, right = projunn.factorize(gradient, k)
        retract_(weight, -left, right, retraction)
    assert defect(weight) < 5e-6  # a random walk of rounding; measured: 1.2e-6
    assert torch.linalg.matrix_norm(weight - target) < 1e-4 * n**0.5
