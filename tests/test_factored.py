"""A tensor in factors does what training loops do with gradients."""

import copy
import pickle

import pytest
import torch

from projunn import FactoredTensor


def factored(dtype=torch.float32, rank=2, batch=()):
    left = torch.randn(*batch, 5, rank, dtype=dtype)
    right = torch.randn(*batch, 4, rank, dtype=dtype)
    return FactoredTensor(left, right, dtype.is_complex)


@pytest.fixture(params=[torch.float32, torch.complex64], ids=["real", "pairs"])
def pair(request):
    return factored(request.param), factored(request.param, 3)


def test_shape_and_entries(pair):
    a, _ = pair
    assert a.shape == ((5, 4, 2) if a.pairs else (5, 4))
    assert a.dtype == torch.float32
    assert a.rank == 2
    product = a.left @ a.right.mH
    torch.testing.assert_close(a.to_dense(), torch.view_as_real(product) if a.pairs else product)
    assert "rank=2" in repr(a)


def test_sums_are_exact_and_add_the_ranks(pair):
    a, b = pair
    expected = a.to_dense() + b.to_dense()
    assert (a + b).rank == 5
    torch.testing.assert_close((a + b).to_dense(), expected)
    dense = torch.randn_like(expected)
    torch.testing.assert_close(a + dense, a.to_dense() + dense)
    torch.testing.assert_close(dense + a, a.to_dense() + dense)
    torch.testing.assert_close(dense.clone().add_(a, alpha=2), dense + 2 * a.to_dense())
    a += b
    torch.testing.assert_close(a.to_dense(), expected)
    with pytest.raises(TypeError, match=r"p\.grad = p\.grad\.to_dense\(\)"):
        a.add_(dense)


def test_a_norm_survives_cancellation_and_zero():
    a = factored()
    assert (a + -a).norm() < 1e-3 * a.norm()
    a.zero_()
    assert a.norm() == 0
    assert a.to_dense().count_nonzero() == 0
    bad = FactoredTensor(torch.full((5, 1), torch.nan), torch.full((4, 1), torch.inf))
    assert bad.zero_().to_dense().count_nonzero() == 0


def test_copies(pair):
    a, b = pair
    copies = [copy.deepcopy(a), pickle.loads(pickle.dumps(a)), a.clone()]
    for other in (*copies, a.detach()):
        assert isinstance(other, FactoredTensor)
        assert other.pairs == a.pairs
        torch.testing.assert_close(other.to_dense(), a.to_dense())
    double = a.to(torch.float64)
    assert double.dtype == torch.float64
    assert double.left.dtype.to_real() == torch.float64
    b.copy_(a)
    torch.testing.assert_close(b.to_dense(), a.to_dense())
    a.left.zero_()
    assert all(other.norm() > 0 for other in (b, *copies))


def test_its_factors_move_to_shared_memory(pair):
    """PyTorch would read memory that the tensor itself does not have, and crash."""
    a, _ = pair
    before = a.to_dense()
    assert not a.is_shared()
    assert a.share_memory_() is a
    assert a.is_shared()
    assert a.stored_left.is_shared()
    assert torch.equal(a.to_dense(), before)


def test_stack(pair):
    a, b = pair
    both = torch.stack([a, b])
    assert isinstance(both, FactoredTensor)
    assert both.rank == 3
    torch.testing.assert_close(both.to_dense(), torch.stack([a.to_dense(), b.to_dense()]))


def test_other_operations_say_what_to_do(pair):
    for operation in (torch.exp, lambda t: t[0], lambda t: t @ t, lambda t: t.cumsum(0)):
        with pytest.raises(TypeError, match="to_dense"):
            operation(pair[0])


def test_unscaling_of_a_mixed_list():
    a, plain = factored(), torch.ones(3)
    entries = a.to_dense()
    found = torch.zeros(())
    unscale = torch._amp_foreach_non_finite_check_and_unscale_
    unscale([plain, a], found, torch.tensor(0.5))
    assert found == 0
    torch.testing.assert_close(a.to_dense(), entries / 2)
    torch.testing.assert_close(plain, torch.full((3,), 0.5))
    a.right[0, 0] = torch.inf
    unscale([a], found, torch.tensor(0.5))
    assert found == 1


@pytest.mark.parametrize("pairs", [False, True])
def test_factors_that_are_lazily_conjugated(pairs):
    """What scaled them forgot that they were conjugates."""
    left, right = (torch.randn(n, 2, dtype=torch.complex64) for n in (5, 4))
    made = FactoredTensor(left.conj(), right.conj(), pairs)
    entries = left.conj() @ right.mT
    entries = torch.view_as_real(entries) if pairs else entries
    for found in (made * 2, made.clone() * 2, made.mul_(2)):
        torch.testing.assert_close(found.to_dense(), 2 * entries)


def test_factors_that_are_lazily_negated():
    left, right = torch.randn(5, 2, dtype=torch.complex64), torch.randn(4, 2)
    made = FactoredTensor(left.conj().imag, right)
    torch.testing.assert_close((made * 2).to_dense(), -2 * left.imag @ right.mT)
