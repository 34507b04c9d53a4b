"""Products with a weight whose gradient is sketched: the backward hands on factors, never a matrix."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from projunn.factored import FactoredTensor
from projunn.kernels import sketch


class _SketchedLinear(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, start: FactoredTensor
    ) -> Tensor:
        ctx.save_for_backward(input, weight, start)
        matrix = torch.view_as_complex(weight) if start.pairs else weight
        if weight.ndim == 2 + start.pairs:
            return functional.linear(input, matrix, bias)
        return input @ matrix.mT

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        input, weight, start = ctx.saved_tensors
        matrix = torch.view_as_complex(weight) if start.pairs else weight
        wants_input, wants_weight, wants_bias, _ = ctx.needs_input_grad
        grad_input = grad @ matrix.to(grad.dtype).conj() if wants_input else None
        factors = None
        if wants_weight:
            found = sketch([input], [grad], start.stored_left, start.pairs)
            factors = FactoredTensor(*found, start.pairs)
        return grad_input, factors, grad.sum(0) if wants_bias else None, None


def sketched_linear(input: Tensor, weight: Tensor, bias: Tensor | None, start: FactoredTensor) -> Tensor:
    """``x W^T + b``, where the gradient of W is a `projunn.FactoredTensor`, of `projunn.kernels.sketch`.

    Args:
        input: x, (*batch, rows, n).
        weight: W, (*batch, m, n), or (*batch, m, n, 2) where the factors of ``start`` are complex.
        bias: b, (m,), without batch only, or None.
        start: its left factor is the basis R (*batch, m, k) that the sketch starts from.

    Returns:
        (*batch, rows, m).
    """
    return _SketchedLinear.apply(input, weight, bias, start)  # type: ignore[no-untyped-call]
