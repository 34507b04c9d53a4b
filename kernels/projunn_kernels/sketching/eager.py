"""Factors of a gradient that is never formed, in PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from projunn_kernels.factorization import orthonormalize
from projunn_kernels.products.eager import adjoint_product, product
from projunn_kernels.sketching import ranks


def sketch(
    inputs: list[Tensor], grads: list[Tensor], basis: Tensor, pairs: bool, group: str = ""
) -> tuple[Tensor, Tensor]:
    """X and Y: see `projunn_kernels.sketch`."""
    inputs, grads, basis = numbers(inputs, grads, basis, pairs)
    right = orthonormalize(ranks.total(through(inputs, grads, basis), group))
    return stored(ranks.mean(through(grads, inputs, right), group), right, pairs)


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
