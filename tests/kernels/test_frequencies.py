"""Every bin of every grid is of exactly one kind."""

from itertools import product

import pytest
import torch

from projunn_kernels import frequencies

SIZES = [(1,), (2,), (7,), (8,), (1, 4), (2, 2), (7, 8), (8, 7), (5, 12), (4, 4), (3, 4, 5), (2, 4, 6)]


@pytest.mark.parametrize("size", SIZES)
def test_half_grid_holds_every_frequency_once(size):
    grid = frequencies(size, real=True)
    known = [tuple(k) for k in grid.wavenumbers().tolist()]
    paired, own = known[: grid.paired], known[grid.paired :]

    def negative(k):
        return tuple(-i % n for i, n in zip(k, size, strict=True))

    assert own[0] == (0,) * len(size)
    assert all(negative(k) == k for k in own)
    everything = [*own, *paired, *(negative(k) for k in paired)]
    assert sorted(everything) == list(product(*(range(n) for n in size)))
    even = sum(n % 2 == 0 for n in size)
    assert len(own) == 2**even
    assert grid.points == len(everything)
    numbers = torch.arange(torch.tensor(grid.shape).prod()).view(grid.shape)
    for here, there in zip(grid.boundary, grid.mirrored, strict=True):
        k = tuple((numbers == here).nonzero()[0].tolist())
        assert numbers[negative(k)] == there


def test_complex_signals_have_only_free_bins():
    grid = frequencies((3, 4), real=False)
    assert grid.paired == 12
    assert grid.shape == (3, 4)
    assert grid.wavenumbers().tolist() == [list(k) for k in product(range(3), range(4))]
