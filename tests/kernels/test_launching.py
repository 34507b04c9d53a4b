"""A launch asks Triton for its binary once."""

import pytest
import torch

pytest.importorskip("triton")

from projunn_kernels import launching
from projunn_kernels.launching import Launch, Recent, addresses_of_flat, launch


class Binary:
    """As Triton returns it: ``binary[grid](*arguments)``, the grid of three sizes."""

    packed_metadata = ()

    def __init__(self, made):
        self.made = made

    def __getitem__(self, grid):
        assert len(grid) == 3
        return lambda *values: self.made.append((grid, values))


class Jitted:
    """A kernel, as far as a launch sees it, that counts how often Triton is asked for its binary."""

    arg_names = ("x", "rate", "n", "BN")

    def __init__(self):
        self.asked, self.made = 0, []

    def __getitem__(self, grid):
        def run(*, x, rate, n, BN, num_warps):
            self.asked += 1
            self.made.append(((*grid, 1, 1)[:3], (x, rate, n, BN)))
            return Binary(self.made)

        return run


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(launching, "_binaries", {})
    return Jitted()


def test_the_same_launch_asks_once(kernel):
    x, y = torch.zeros(8), torch.ones(8)
    launch(kernel, (4,), x=x, rate=0.5, n=8, BN=16, num_warps=4)
    launch(kernel, (5, 2), x=y, rate=0.25, n=8, BN=16, num_warps=4)
    assert kernel.asked == 1
    (_, first), (grid, second) = kernel.made
    assert grid == (5, 2, 1)
    assert first[0] is x
    assert second[0] is y
    assert second[1:] == (0.25, 8, 16)


@pytest.mark.parametrize(
    "other",
    [{"n": 1}, {"BN": 32}, {"num_warps": 8}, {"x": torch.zeros(9)[1:]}, {"x": torch.zeros(8).half()}],
    ids=str,
)
def test_what_triton_compiles_anew_for_is_another_binary(kernel, other):
    """A size, a constant, an option, another alignment, another dtype."""
    arguments = {"x": torch.zeros(8), "rate": 0.5, "n": 8, "BN": 16, "num_warps": 4}
    launch(kernel, (4,), **arguments)
    launch(kernel, (4,), **arguments | other)
    assert kernel.asked == 2


def test_a_kept_launch_takes_other_tensors(kernel):
    x, y = torch.zeros(8), torch.ones(8)
    run = Launch(kernel, (4,), x=x, rate=0.5, n=8, BN=16, num_warps=4)
    for tensor, rate in ((x, 0.5), (y, 0.25), (x, 1.0)):
        run(x=tensor, rate=rate)
    assert kernel.asked == 1
    assert [(values[0] is y, values[1]) for _, values in kernel.made] == [
        (False, 0.5), (True, 0.25), (False, 1.0)
    ]  # fmt: skip


def test_what_has_not_been_used_for_longest_is_forgotten():
    kept = Recent(2)
    first = kept.keep((1,), "first")
    kept.keep((2,), "second")
    assert kept.found((1,)) is first
    kept.keep((3,), "third")
    assert kept.found((2,)) is None
    assert kept.found((1,)) is first
    assert len(kept) == 2


def test_kernels_read_what_lies_flat():
    x, z = torch.zeros(2, 8, 8), torch.zeros(8, 8, dtype=torch.complex64)
    assert addresses_of_flat([x, x]) == (x.data_ptr(), x.data_ptr())
    assert addresses_of_flat([]) == ()
    assert addresses_of_flat([z]) == (z.data_ptr(),)
    for other in (x.mT, x.flatten()[1:9]):
        assert addresses_of_flat([x, other]) is None
    assert addresses_of_flat([z, z.conj()]) is None
