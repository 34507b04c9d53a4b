"""Skinny products, in every orientation and batch shape."""

import pytest
import torch

from projunn_kernels import adjoint_product, product
from tests.dense import precise, roundoff


@pytest.mark.parametrize("shape", [(7, 7), (5, 9), (9, 5), (3, 6, 6), (2, 2, 4, 5), (0, 4, 4), (1, 1)])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_products(dtype, shape, k):
    *batch, m, n = shape
    w, x, y = (torch.randn(*batch, *s, dtype=dtype) for s in ((m, n), (m, k), (n, k)))
    for result, expected in (
        (adjoint_product(w, x), precise(w).mH @ precise(x)),
        (product(w, y), precise(w) @ precise(y)),
        (
            product(w.mT.contiguous().mT, y[..., :1].expand(y.shape)),
            precise(w) @ precise(y[..., :1].expand(y.shape)),
        ),
    ):
        assert result.shape == expected.shape
        assert result.dtype == dtype
        torch.testing.assert_close(precise(result), expected, atol=60 * roundoff(dtype), rtol=0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [512, 509])
def test_a_large_adjoint_product_on_several_cores(threads, rows):
    """Rows are summed in parts where they can be."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        w, x = torch.randn(rows, 640), torch.randn(rows, 1)
        result = adjoint_product(w, x)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(result.double(), w.double().mT @ x.double(), atol=1e-4, rtol=0)
