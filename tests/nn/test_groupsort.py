"""Activations that permute their input."""

import pytest
import torch

from projunn.nn import GroupSort, MaxMin


@pytest.mark.parametrize("layer", [MaxMin(), GroupSort(3), GroupSort(6), GroupSort(2, dim=-3)])
def test_preserves_norms_in_value_and_gradient(layer):
    x = torch.randn(5, 6, 2, 3, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    torch.testing.assert_close(y.sort(1).values, x.sort(1).values)
    cotangent = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, x, cotangent)
    torch.testing.assert_close(gradient.norm(), cotangent.norm())


def test_sorts_each_group():
    x = torch.tensor([[3.0, 1.0, 2.0, 5.0, 4.0, 6.0]])
    assert MaxMin()(x).tolist() == [[1, 3, 2, 5, 4, 6]]
    assert GroupSort(3)(x).tolist() == [[1, 2, 3, 4, 5, 6]]
    assert repr(MaxMin()) == "MaxMin(dim=1)"
    assert repr(GroupSort(3)) == "GroupSort(group_size=3, dim=1)"


def test_errors():
    with pytest.raises(ValueError, match="input: has 5 features on axis 1"):
        MaxMin()(torch.ones(1, 5))
    with pytest.raises(ValueError, match="group_size: got 0"):
        GroupSort(0)
