"""Skinny products, in every orientation and batch shape."""

import pytest
import torch

import projunn
from projunn_kernels import adjoint_product, product, rank_update_
from projunn_kernels.products import processor
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


@pytest.fixture(params=[False, True])
def processors(request, monkeypatch):
    """That of this machine may be fast at short products or not: both."""
    monkeypatch.setattr(processor, "short_products_are_fast", lambda: request.param)


@pytest.mark.parametrize("shape", [(160, 140), (3, 140, 160)])
@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_products_and_updates_of_all_processors(processors, shape, k):
    w = torch.randn(shape)
    x, y = torch.randn(*shape[:-1], k), torch.randn(*shape[:-2], shape[-1], k)
    torch.testing.assert_close(product(w, y).double(), w.double() @ y.double(), atol=2e-4, rtol=0)
    expected = w.double() + x.double() @ y.double().mT
    rank_update_(w, x, y)
    torch.testing.assert_close(w.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(160, 160), (160, 140), (3, 80, 80)])
@pytest.mark.parametrize("rank", [1, 4])
def test_steps_of_all_processors(monkeypatch, shape, rank):
    start = projunn.init.haar_(torch.empty(shape))
    gradients = torch.randn(3, *shape)
    ends = []
    for fast in (False, True):
        monkeypatch.setattr(processor, "short_products_are_fast", lambda fast=fast: fast)
        weight = projunn.UnitaryParameter(start.clone())
        optimizer = projunn.optim.SGD([weight], lr=1.0, unitary_lr=1e-2, rank=rank)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        ends.append(weight.detach())
    torch.testing.assert_close(ends[0], ends[1], atol=5e-6, rtol=0)
    assert torch.as_tensor(projunn.unitarity_defect(ends[1])).max() < 1e-6
    assert (ends[0] - start).abs().max() > 1e-3
