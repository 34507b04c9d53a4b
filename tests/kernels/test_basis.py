"""The orthonormal basis of a step."""

import pytest
import torch

from projunn_kernels import step_basis
from tests.dense import precise


def check(y, z):
    q, e = step_basis(y, z)
    columns = min(2 * y.shape[-1], y.shape[-2])
    assert q.shape == (*y.shape[:-1], columns)
    assert e.shape == (*y.shape[:-2], columns, columns)
    assert q.dtype == e.dtype == precise(y).dtype
    scale = torch.linalg.matrix_norm(precise(y)) * torch.linalg.matrix_norm(precise(z))
    error = torch.linalg.matrix_norm(q @ e @ q.mH - precise(z) @ precise(y).mH)
    assert (error <= 1e-14 * scale * y.shape[-2] ** 0.5).all()
    return q, e


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("batch", [(), (3,), (2, 2), (0,)])
def test_spans_the_step(dtype, k, batch):
    y, z = (torch.randn(*batch, 20, k, dtype=dtype) for _ in range(2))
    q, _ = check(y, z)
    identity = torch.eye(2 * k, dtype=q.dtype).expand(*batch, -1, -1)
    torch.testing.assert_close(q.mH @ q, identity, atol=1e-14, rtol=0)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("ratio", [1e-20, 1e-9, 1e-3, 1e9, 1e20])
def test_columns_of_very_different_size(dtype, k, ratio):
    y, z = torch.randn(15, k, dtype=dtype), torch.randn(15, k, dtype=dtype) * ratio
    q, _ = check(y, z)
    torch.testing.assert_close(q.mH @ q, torch.eye(2 * k, dtype=q.dtype), atol=1e-14, rtol=0)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("angle", [0, 1e-15, 1e-10, 1e-7, 1e-3])
def test_nearly_parallel_factors(k, angle):
    y = torch.randn(12, k, dtype=torch.float64)
    z = 3 * y + angle * torch.randn(12, k, dtype=torch.float64)
    q, e = check(y, z)
    # Whatever else Q holds, the columns in which the step is visible are orthonormal.
    visible = e.abs().amax(-1) > 1e-12
    gram = (q.mH @ q)[visible][:, visible]
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=q.dtype), atol=1e-9, rtol=0)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_more_columns_than_rows(dtype, n):
    check(torch.randn(4, n, n, dtype=dtype), torch.randn(4, n, n, dtype=dtype))


@pytest.mark.parametrize("k", [1, 2])
def test_zero_factors_give_a_zero_step(dtype, k):
    y = torch.randn(6, k, dtype=dtype)
    for pair in ((y, 0 * y), (0 * y, y), (0 * y, 0 * y)):
        q, e = step_basis(*pair)
        assert torch.count_nonzero(e) == 0
        assert q.isfinite().all()


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_non_finite_columns_show_in_e(k, bad):
    y, z = torch.randn(2, 6, k), torch.randn(2, 6, k)
    z[0, 3, 0] = bad
    _, e = step_basis(y, z)
    assert not e[0].isfinite().all()
    assert e[1].isfinite().all()


def test_a_decomposition_that_is_not_finite_is_not_used(monkeypatch):
    """LAPACK's of many equal complex columns may not be."""
    monkeypatch.setattr(torch.linalg, "qr", lambda columns: (columns, columns[:6] * torch.nan))
    y, z = (torch.randn(20, 3, dtype=torch.complex64) for _ in range(2))
    q, _ = check(y, z)
    torch.testing.assert_close(q.mH @ q, torch.eye(6, dtype=q.dtype), atol=1e-14, rtol=0)
