"""Factors of a gradient that is never formed, in PyTorch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from projunn_kernels.factorization import orthonormalize
from projunn_kernels.products.eager import adjoint_product, product


def sketch(
    inputs: list[Tensor], grads: list[Tensor], basis: Tensor, pairs: bool
) -> tuple[Tensor, Tensor]:
    """X and Y: see `projunn_kernels.sketch`."""
    inputs, grads, basis = numbers(inputs, grads, basis, pairs)
    right = orthonormalize(through(inputs, grads, basis))
    return stored(through(grads, inputs, right), right, pairs)


def tangent_sketch(
    inputs: list[Tensor], grads: list[Tensor], weight: Tensor, basis: Tensor, pairs: bool
) -> tuple[Tensor, Tensor]:
    """The factors: see `projunn_kernels.tangent_sketch`."""
    inputs, grads, basis = numbers(inputs, grads, basis, pairs)
    weight = torch.view_as_complex(weight) if pairs else weight
    left, right = two_sided(
        lambda y: through(grads, inputs, y), lambda v: through(inputs, grads, v), weight, basis
    )
    return stored(left, right, pairs)


Columns = Callable[[Tensor], Tensor]


def two_sided(into: Columns, back: Columns, weight: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """The factors that `projunn_kernels.tangent_sketch` returns, of a G that is known by its products.

    ``into`` makes G Y of Y, and ``back`` G^H V of V.
    """
    move, pull = product, adjoint_product
    tall = weight.shape[-2] > weight.shape[-1]
    if tall:
        into, back, move, pull = back, into, pull, move
    weight = weight.to(basis.dtype)
    right = orthonormalize(pull(weight, into(basis)) - back(move(weight, basis)))
    moved = move(weight, right)
    if weight.shape[-2] != weight.shape[-1]:
        moved = orthonormalize(moved)
    factors = both_sides(into(right), back(moved), right, moved)
    return factors[::-1] if tall else factors


def both_sides(pushed: Tensor, pulled: Tensor, right: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    """The factors from G Y, G^H V, Y and V."""
    left = pushed - moved @ (moved.mH @ pushed)
    return torch.cat([left, moved], dim=-1), torch.cat([right, pulled], dim=-1)


def numbers(
    inputs: list[Tensor], grads: list[Tensor], basis: Tensor, pairs: bool
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The arguments as real or complex numbers, x in the dtype of g."""
    if pairs:
        basis = torch.view_as_complex(basis)
        grads, inputs = ([_complex(t) for t in tensors] for tensors in (grads, inputs))
    return [x.to(grads[0].dtype) for x in inputs], grads, basis


def stored(left: Tensor, right: Tensor, pairs: bool) -> tuple[Tensor, Tensor]:
    """The factors contiguous, and as real pairs if ``pairs``."""
    left, right = left.contiguous(), right.contiguous()
    return (torch.view_as_real(left), torch.view_as_real(right)) if pairs else (left, right)


def through(outer: Sequence[Tensor], inner: Sequence[Tensor], columns: Tensor) -> Tensor:
    """``sum a^T (conj(b) C)`` over the a of ``outer`` and the b of ``inner``, in the dtype of C."""
    conjugated = columns.to(inner[0].dtype).conj()
    terms = [adjoint_product(a, product(b, conjugated)) for a, b in zip(outer, inner, strict=True)]
    return sum(terms[1:], terms[0]).conj().to(columns.dtype).resolve_conj()


def _complex(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_complex() else torch.view_as_complex(tensor.contiguous())
