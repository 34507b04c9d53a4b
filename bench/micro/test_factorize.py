"""Low-rank factors of a dense gradient, by every method, beside PyTorch's randomized SVD."""

from typing import Any

import pytest
import torch

from projunn import factorize

METHODS = ("lsi", "subspace", "column", "svd")
N = 512


@pytest.mark.benchmark(group=f"factors of {N} x {N}, rank 1")
@pytest.mark.parametrize("method", ["torch.svd_lowrank", *METHODS])
def test_rank_one(benchmark: Any, method: str) -> None:
    _measure(benchmark, method, 1)


@pytest.mark.benchmark(group=f"factors of {N} x {N}, rank 8")
@pytest.mark.parametrize("method", ["torch.svd_lowrank", *METHODS])
def test_rank_eight(benchmark: Any, method: str) -> None:
    _measure(benchmark, method, 8)


def _measure(benchmark: Any, method: str, rank: int) -> None:
    gradient = torch.randn(N, N)
    if method == "torch.svd_lowrank":
        left, _, right = benchmark(torch.svd_lowrank, gradient, rank, niter=1)
    else:
        left, right = benchmark(factorize, gradient, rank, method)
    assert left.shape == right.shape == (N, rank)
