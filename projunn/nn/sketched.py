"""The operations of layers with ``sketch_rank``: their backward makes low-rank factors of the weight's
gradient, and never the gradient itself.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from projunn.factored import FactoredTensor, TraceableFactors
from projunn.manifold import UnitaryParameter
from projunn_kernels import (
    RecurrenceBackward,
    fourier_convolution,
    fourier_convolution_sketch,
    recurrence,
    recurrence_backward,
    sketch,
)


def _gradient(left: Tensor, right: Tensor, pairs: bool) -> FactoredTensor:
    kind = TraceableFactors if torch.compiler.is_compiling() else FactoredTensor
    return kind(left, right, pairs)


class _SketchedLinear(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        start: FactoredTensor,
        factor: int | None,
    ) -> Tensor:
        ctx.save_for_backward(input, weight, start)
        ctx.factor = factor
        matrix = torch.view_as_complex(weight) if start.pairs else weight
        if factor is None:
            return functional.linear(input, matrix, bias)
        return torch.bmm(input, matrix.mT)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        input, weight, start = ctx.saved_tensors
        matrix = torch.view_as_complex(weight) if start.pairs else weight
        basis = start.stored_left if ctx.factor is None else start.stored_left[ctx.factor]
        wants_input, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        grad_input = grad @ matrix.to(grad.dtype).conj() if wants_input else None
        factors = None
        if wants_weight:
            found = sketch([input], [grad], basis, start.pairs, start.group)
            factors = _gradient(*found, start.pairs)
        return grad_input, factors, grad.sum(0) if wants_bias else None, None, None


def sketched_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    start: FactoredTensor,
    factor: int | None = None,
) -> Tensor:
    """``x W^T + b``, with a gradient of W that is a `projunn.FactoredTensor`: `projunn_kernels.sketch`.

    Args:
        input: x, (rows, n), or (blocks, rows, n) with ``factor``.
        weight: W, (m, n), or (blocks, m, n) with ``factor``.  With ``start.pairs``, the last axis has
            real and imaginary parts.
        bias: b, (m,), or None; always None with ``factor``.
        start: its left factor is the basis of the sketch, (m, k), or (factors, blocks, m, k).
        factor: the number of the block-diagonal factor that ``weight`` is, or None for a dense weight.

    Returns:
        (rows, m), or (blocks, rows, m) with ``factor``.
    """
    return _SketchedLinear.apply(input, weight, bias, start, factor)  # type: ignore[no-untyped-call]


class _SketchedRecurrence(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        inputs: Tensor,
        initial: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        nonlinearity: str,
        input_weight: Tensor | None,
        input_bias: Tensor | None,
        start: FactoredTensor,
    ) -> tuple[Tensor, Tensor]:
        arguments = inputs, initial, weight, bias, nonlinearity, input_weight, input_bias
        states, last = recurrence(*arguments)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs, states, initial, weight, bias, input_weight, start)
        ctx.nonlinearity = nonlinearity
        return states, last

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_last: Tensor | None) -> Any:  # type: ignore[override]
        u, states, initial_state, weight, offset, input_weight, start = ctx.saved_tensors
        needs = ctx.needs_input_grad
        inputs, initial, bias, projection, shift, *found = recurrence_backward(
            RecurrenceBackward(
                grad=grad,
                grad_last=grad_last,
                inputs=u,
                states=states,
                initial=initial_state,
                weight=weight,
                bias=offset,
                nonlinearity=ctx.nonlinearity,
                input_weight=input_weight,
                wants_inputs=needs[0],
                wants_input_bias=needs[6],
                wants_weight=needs[2],
                basis=start.stored_left,
                group=start.group,
            )
        )
        factors = _gradient(found[0], found[1], start.pairs) if found else None
        grads = inputs, initial, factors, bias, None, projection, shift, None
        return tuple(g if need else None for g, need in zip(grads, needs, strict=True))


def sketched_recurrence(
    inputs: Tensor,
    initial: Tensor,
    weight: UnitaryParameter,
    bias: Tensor | None,
    nonlinearity: str,
    input_weight: Tensor | None,
    input_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`projunn_kernels.recurrence` with a gradient of the weight that is a `projunn.FactoredTensor`.

    It is a sketch of the gradient summed over all time steps, and starts from ``weight.sketch``.
    """
    arguments = inputs, initial, weight, bias, nonlinearity, input_weight, input_bias
    return _SketchedRecurrence.apply(*arguments, weight.sketch)  # type: ignore[no-untyped-call]


class _SketchedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        own_weight: Tensor | None,
        bias: Tensor | None,
        start: FactoredTensor,
        own_start: FactoredTensor | None,
        size: list[int],
    ) -> Tensor:
        output, spectrum = fourier_convolution(input, weight, own_weight, bias, size)
        ctx.save_for_backward(spectrum, weight, own_weight, start, own_start)
        ctx.size = size
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        spectrum, weight, own_weight, start, own_start = ctx.saved_tensors
        wants_input, wants_weight, wants_own, wants_bias, *_ = ctx.needs_input_grad
        grad_input, left, right, own_left, own_right, grad_bias = fourier_convolution_sketch(
            grad.contiguous(),
            spectrum,
            weight,
            own_weight,
            start.stored_left,
            None if own_start is None else own_start.stored_left,
            ctx.size,
            [wants_input, wants_weight or wants_own, wants_bias],
            group=start.group,
        )
        factors = _gradient(left, right, True) if wants_weight else None
        own = _gradient(own_left, own_right, False) if wants_own else None
        by_input, by_bias = grad_input if wants_input else None, grad_bias if wants_bias else None
        return by_input, factors, own, by_bias, None, None, None


def sketched_convolution(
    input: Tensor,
    weight: UnitaryParameter,
    own_weight: UnitaryParameter | None,
    bias: Tensor | None,
    size: list[int],
) -> Tensor:
    """`projunn_kernels.fourier_convolution` with gradients of the weights that are `FactoredTensor`.

    The gradient at every frequency is sketched, starting from the ``sketch`` of its parameter.
    """
    own_start = None if own_weight is None else own_weight.sketch
    arguments = input, weight, own_weight, bias, weight.sketch, own_start, size
    return _SketchedConvolution.apply(*arguments)  # type: ignore[no-untyped-call]
