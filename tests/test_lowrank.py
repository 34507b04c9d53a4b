"""Low-rank factors: exactness, optimality, randomness, edges."""

import pytest
import torch

from projunn import factorize
from tests.dense import precise, roundoff

METHODS = ("lsi", "column", "subspace", "svd")
SHAPES = [(8, 8), (5, 9), (9, 5), (3, 6, 6), (2, 2, 4, 5), (0, 4, 4)]


def low_rank(shape, rank, dtype):
    *batch, m, n = shape
    return torch.randn(*batch, m, rank, dtype=dtype) @ torch.randn(*batch, rank, n, dtype=dtype)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3])
def test_reproduces_a_matrix_of_that_rank(dtype, method, shape, rank):
    matrix = low_rank(shape, rank, dtype)
    left, right = factorize(matrix, rank, method)
    assert left.shape == (*shape[:-1], rank)
    assert right.shape == (*shape[:-2], shape[-1], rank)
    assert left.dtype == right.dtype == dtype
    # Columns drawn at random can be nearly dependent, hence the factor.
    torch.testing.assert_close(left @ right.mH, matrix, atol=3e4 * roundoff(dtype), rtol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rank", [1, 3])
def test_one_factor_is_orthonormal(dtype, method, rank):
    left, right = factorize(torch.randn(4, 9, 7, dtype=dtype), rank, method)
    basis = left if method == "column" else right
    identity = torch.eye(rank, dtype=dtype).expand(4, -1, -1)
    torch.testing.assert_close(basis.mH @ basis, identity, atol=20 * roundoff(dtype), rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_is_a_projection_of_the_matrix(dtype, method):
    matrix = torch.randn(9, 7, dtype=dtype)
    left, right = factorize(matrix, 2, method)
    approximation = left @ right.mH
    # What is left over is orthogonal to what was taken.
    overlap = ((matrix - approximation).conj() * approximation).sum().abs()
    assert overlap < 2000 * roundoff(dtype)


def test_svd_is_the_best_approximation():
    matrix = torch.randn(10, 8, dtype=torch.float64)
    left, right = factorize(matrix, 3, "svd")
    tail = torch.linalg.svdvals(matrix)[3:]
    error = torch.linalg.matrix_norm(matrix - left @ right.mH)
    torch.testing.assert_close(error, torch.linalg.vector_norm(tail))


@pytest.mark.parametrize("rank", [1, 3])
def test_warm_subspace_converges_to_the_best_approximation(dtype, rank):
    u, _ = torch.linalg.qr(torch.randn(20, 20, dtype=precise(torch.empty(0, dtype=dtype)).dtype))
    values = torch.tensor([3.0, 2.5, 2.0, *[0.5 * 0.9**i for i in range(17)]])
    matrix = (u * values) @ torch.linalg.qr(torch.randn_like(u))[0]
    best = torch.linalg.svdvals(matrix)[rank:].square().sum().sqrt()
    matrix, basis = matrix.to(dtype), None
    for _ in range(40):
        left, right = factorize(matrix, rank, "subspace", basis=basis)
        basis = left
    error = torch.linalg.matrix_norm(precise(matrix - left @ right.mH))
    assert error < best * (1 + 1e-3) + 1e-5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rank", [1, 3])
def test_zero_and_deficient_matrices(dtype, method, rank):
    matrix = torch.zeros(3, 6, 6, dtype=dtype)
    matrix[1] = low_rank((6, 6), 1, dtype)
    matrix[2, 0, 0] = 1
    left, right = factorize(matrix, rank, method)
    assert left.isfinite().all()
    assert right.isfinite().all()
    torch.testing.assert_close(left @ right.mH, matrix, atol=3e3 * roundoff(dtype), rtol=0)
    assert torch.count_nonzero(left[0] @ right[0].mH) == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_far_from_one(method, scale):
    matrix = low_rank((6, 6), 1, torch.float32) * scale
    left, right = factorize(matrix, 1, method)
    torch.testing.assert_close((left / scale) @ right.mH, matrix / scale, atol=1e-3, rtol=0)


@pytest.mark.parametrize("method", ["lsi", "column", "subspace"])
def test_generator_decides(method):
    matrix = torch.randn(12, 12)
    first, second, other = (
        factorize(matrix, 2, method, generator=torch.Generator().manual_seed(seed))[0]
        for seed in (7, 7, 8)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_columns_are_drawn_in_proportion_to_their_norms():
    norms = torch.tensor([1.0, 2.0, 3.0, 4.0])
    matrix = torch.diag(norms).expand(20000, 4, 4)
    left, _ = factorize(matrix, 1, "column", generator=torch.Generator().manual_seed(0))
    share = left.abs().squeeze(-1).round().mean(0)
    torch.testing.assert_close(share, norms / 10, atol=0.015, rtol=0)  # 4 standard deviations


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(half):
    matrix = torch.randn(6, 6).to(half)
    left, right = factorize(matrix, 6, "lsi")
    assert left.dtype == right.dtype == torch.float32
    torch.testing.assert_close(left @ right.mH, matrix.float(), atol=1e-5, rtol=0)


def test_strided_matrices(dtype):
    matrix = torch.randn(5, 8, dtype=dtype)
    expected = factorize(matrix.mT.contiguous(), 2, "svd")
    result = factorize(matrix.mT, 2, "svd")
    torch.testing.assert_close(result[0] @ result[1].mH, expected[0] @ expected[1].mH)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"method": "qr"}, ValueError, ["method", "'qr'", "lsi"]),
        ({"rank": 0}, ValueError, ["rank", "0", "1 to 3"]),
        ({"rank": 4}, ValueError, ["rank", "4", "1 to 3"]),
        ({"matrix": torch.ones(3)}, ValueError, ["matrix", "(3,)"]),
        ({"matrix": torch.ones(3, 3, dtype=torch.int64)}, TypeError, ["matrix", "int64"]),
        ({"basis": torch.ones(3, 1)}, ValueError, ["basis", "subspace", "lsi"]),
        ({"basis": torch.ones(2, 1), "method": "subspace"}, ValueError, ["basis", "(2, 1)", "(3, 1)"]),
    ],
)
def test_errors_name_the_argument(arguments, error, words):
    with pytest.raises(error) as caught:
        factorize(**{"matrix": torch.ones(3, 5), "rank": 1, **arguments})
    assert all(word in str(caught.value) for word in words), caught.value
