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


def test_equal_entries_keep_the_norm_of_a_gradient():
    """Of the background of images, for instance, where all channels are their biases."""
    x = torch.zeros(2, 4, requires_grad=True)
    cotangent = torch.randn(2, 4)
    (gradient,) = torch.autograd.grad(MaxMin()(x), x, cotangent)
    torch.testing.assert_close(gradient.norm(), cotangent.norm())


def test_derivatives_of_pairs_by_every_way():
    layer = MaxMin(-1)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda t: layer(t) ** 3, x, check_fwd_over_rev=True)

    def cubes(t):
        return (layer(t) ** 3 * torch.arange(6)).sum()

    x = x.detach()
    for_each = torch.func.vmap(torch.func.hessian(cubes))(x)
    for one, hessian in zip(x, for_each, strict=True):
        backward = torch.autograd.functional.hessian(cubes, one)
        torch.testing.assert_close(hessian, backward)
        weights = torch.arange(6)[
            one.view(3, 2).argsort(1).argsort(1).add(torch.tensor([[0], [2], [4]])).flatten()
        ]
        torch.testing.assert_close(hessian, (6 * weights * one).diag())


def test_pairs_compile_to_one_graph():
    torch._dynamo.reset()
    compiled = torch.compile(MaxMin(), fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 4, requires_grad=True)
    cotangent = torch.randn(3, 4)
    (ours,) = torch.autograd.grad(compiled(x), x, cotangent)
    (eager,) = torch.autograd.grad(MaxMin()(x), x, cotangent)
    torch.testing.assert_close(ours, eager)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pairs_are_traced_by_jit():
    x = torch.randn(3, 4, requires_grad=True)
    traced = torch.jit.trace(MaxMin(), (x,))
    torch.testing.assert_close(traced(-x), MaxMin()(-x))


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
