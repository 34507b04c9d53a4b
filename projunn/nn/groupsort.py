"""Activations that preserve the norm, by sorting channels in groups."""

from typing import Any

import torch
from torch import Tensor, nn

from projunn.arguments import check_strided, positive, refuse_script, tensor, whole
from projunn_kernels import private


class GroupSort(nn.Module):
    """Sorts the features of each group of ``group_size`` neighbours in ascending order.

    The output is a permutation of the input.  So the norm is preserved, and the input's gradient has the
    norm of the output's gradient, where a ReLU loses about half the energy of both.  GroupSort is
    1-Lipschitz.  Source: Anil, Lucas, Grosse, ICML 2019.

    Args:
        group_size: the number of features in a group; it must divide the features of the input.
        dim: the axis of the features; default 1, the channels of a batch of images.  Images without a
            batch, as under ``vmap``, have theirs on axis 0: ``dim=-3`` is right for both, and ``dim=-1``
            for sequences (batch, time, features).

    Shape:
        input and output of any shape, the same, real.

    Raises:
        ValueError: ``group_size`` is not positive, or does not divide the features of an input, or an
            input has no axis ``dim``.
        TypeError: complex input.
    """

    __prepare_scriptable__ = refuse_script

    def __init__(self, group_size: int, dim: int = 1) -> None:
        super().__init__()
        self.group_size = positive("group_size", group_size)
        self.dim = whole("dim", dim)

    def forward(self, input: Tensor) -> Tensor:
        try:
            return self._sorted(input)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            self._check(input)  # to say it in our words
            raise

    def _sorted(self, input: Tensor) -> Tensor:
        features = input.shape[self.dim]
        if features % self.group_size:
            raise ValueError(
                f"input: has {features} features on axis {self.dim}, wanted a multiple of"
                f" group_size {self.group_size}"
            )
        dim = self.dim % input.ndim
        groups = input.unflatten(dim, (features // self.group_size, self.group_size))
        if self.group_size == 2:  # two passes instead of a sort
            learns = torch.is_grad_enabled() and input.requires_grad
            if learns and not (torch.compiler.is_compiling() or private.traced_by_jit()):
                pairs: Tensor = _Pairs.apply(groups, dim + 1)
            else:
                pairs = _sorted_pairs(groups, dim + 1)
            return pairs.flatten(dim, dim + 1)
        return groups.sort(dim + 1).values.flatten(dim, dim + 1)

    def _check(self, input: Tensor) -> None:
        if tensor("input", input).is_complex():
            raise TypeError(f"input: got {input.dtype}, wanted real numbers")
        if not -input.ndim <= self.dim < input.ndim:
            shape = tuple(input.shape)
            raise ValueError(
                f"dim: got {self.dim}, wanted an axis of the input, which has shape {shape}"
            )
        check_strided("input", input)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, dim={self.dim}"


def _sorted_pairs(pairs: Tensor, dim: int) -> Tensor:
    first, second = pairs.unbind(dim)
    return torch.stack([first.minimum(second), first.maximum(second)], dim)


class _Pairs(torch.autograd.Function):
    """`_sorted_pairs`, whose derivative is the permutation that sorts.

    That of minimum and maximum is made of twenty operations, which took most of the time, and shares a
    gradient between equal entries, so that its norm is not kept.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(pairs: Tensor, dim: int) -> Tensor:
        return _sorted_pairs(pairs, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        pairs, ctx.dim = inputs
        first, second = pairs.unbind(ctx.dim)
        swapped = first > second
        ctx.save_for_backward(swapped)
        ctx.save_for_forward(swapped)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _permuted(ctx, grad), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _permuted(ctx, tangent)


def _permuted(ctx: Any, pairs: Tensor) -> Tensor:
    """The permutation, which is its own inverse."""
    (swapped,) = ctx.saved_tensors
    first, second = pairs.unbind(ctx.dim)
    return torch.stack([second.where(swapped, first), first.where(swapped, second)], ctx.dim)


class MaxMin(GroupSort):
    """`GroupSort` of two neighbouring features (a, b), which become (min(a, b), max(a, b)).

    Args:
        dim: the axis of the features; default 1, the channels of a batch of images.  Images without a
            batch, as under ``vmap``, have theirs on axis 0: ``dim=-3`` is right for both, and ``dim=-1``
            for sequences (batch, time, features).
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__(2, dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
