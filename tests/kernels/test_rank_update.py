"""The in-place low-rank update against its formula."""

import pytest
import torch

from projunn_kernels import rank_update_
from projunn_kernels.rank_update import reference
from projunn_kernels.rank_update.eager import rotate_rows_
from tests.dense import precise, roundoff


@pytest.mark.parametrize("shape", [(7, 7), (5, 9), (3, 6, 6), (2, 2, 4, 5), (0, 4, 4), (1, 1)])
@pytest.mark.parametrize("rank", [1, 2, 4, 6])
@pytest.mark.parametrize("transposed", [False, True])
def test_equals_the_formula_in_place(dtype, shape, rank, transposed):
    *batch, m, n = shape
    w = torch.randn(shape, dtype=dtype)
    w = w.mT.contiguous().mT if transposed else w
    left, right = torch.randn(*batch, m, rank, dtype=dtype), torch.randn(*batch, n, rank, dtype=dtype)
    expected = reference.rank_update(precise(w), precise(left), precise(right))
    pointer = w.data_ptr()
    assert rank_update_(w, left, right) is w
    assert w.data_ptr() == pointer
    torch.testing.assert_close(precise(w), expected, atol=60 * roundoff(dtype), rtol=0)


def test_adds_nothing_exactly_for_zero_factors(dtype):
    w = torch.randn(3, 8, 8, dtype=dtype)
    before = w.clone()
    rank_update_(w, torch.zeros(3, 8, 2, dtype=dtype), torch.randn(3, 8, 2, dtype=dtype))
    assert torch.equal(w, before)


@pytest.mark.parametrize("block", [1, 40, 1 << 20])
def test_rows_turned_in_blocks(monkeypatch, block):
    monkeypatch.setattr("projunn_kernels.rank_update.eager._LARGE", 0)
    monkeypatch.setattr("projunn_kernels.rank_update.eager._BLOCK", block)
    w, q, t = (torch.randn(s, dtype=torch.float64) for s in ((7, 9), (9, 2), (9, 2)))
    expected = w + w @ q @ t.mT
    rotate_rows_(w, q, t)
    torch.testing.assert_close(w, expected)
