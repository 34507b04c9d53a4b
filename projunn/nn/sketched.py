"""The operations of layers with ``sketch_rank``: their backward makes low-rank factors of the weight's
gradient, and never the gradient itself.

Under ``create_graph=True`` and under `torch.func` the gradients are dense, because the factors of a
sketch cannot be differentiated again: they are what the sketch approximates, and exact.
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
    private,
    recurrence,
    recurrence_backward,
    sketch,
)
from projunn_kernels.backends import Choice, chosen_backend, run_under
from projunn_kernels.convolution import (
    fourier_convolution_backward,
    spectrum_of,
    through_transform,
)


def _wants_dense(*grads: Tensor | None) -> bool:
    """True if the backward is to be differentiated again, or runs for many cotangents at once."""
    if torch.is_grad_enabled() or private.in_transform():
        return True
    return any(private.is_batched(g) for g in grads)


def _chosen() -> Choice | None:
    """The backend that a backward is to have too; None in programs that are traced, which have one."""
    return None if torch.compiler.is_compiling() else chosen_backend()


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
        ctx.save_for_backward(input, weight, start.stored_left)
        ctx.factor, ctx.pairs, ctx.group, ctx.chosen = factor, start.pairs, start.group, _chosen()
        matrix = torch.view_as_complex(weight) if start.pairs else weight
        if factor is None:
            return functional.linear(input, matrix, bias)
        return torch.bmm(input, matrix.mT)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        input, weight, basis = ctx.saved_tensors
        matrix = torch.view_as_complex(weight) if ctx.pairs else weight
        wants_input, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        grad_input = grad @ matrix.to(grad.dtype).conj() if wants_input else None
        if ctx.factor is None and grad.dim() != 2:
            grad, input = (t.reshape(-1, t.shape[-1]) for t in (grad, input))
        by_weight: Tensor | None = None
        if wants_weight and _wants_dense(grad):
            dense = (grad.mT @ input.conj().to(grad.dtype)).to(matrix.dtype)
            by_weight = torch.view_as_real(dense) if ctx.pairs else dense
        elif wants_weight:
            chosen = basis if ctx.factor is None else basis[ctx.factor]
            sketched = [input], [grad], chosen, ctx.pairs, ctx.group
            left, right = run_under(ctx.chosen, sketch, *sketched)
            by_weight = _gradient(left, right, ctx.pairs)
        return grad_input, by_weight, grad.sum(0) if wants_bias else None, None, None


def sketched_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    start: FactoredTensor,
    factor: int | None = None,
) -> Tensor:
    """``x W^T + b``, with a gradient of W that is a `projunn.FactoredTensor`: `projunn_kernels.sketch`.

    Args:
        input: x, (*, n), or (blocks, rows, n) with ``factor``.
        weight: W, (m, n), or (blocks, m, n) with ``factor``.  With ``start.pairs``, the last axis has
            real and imaginary parts.
        bias: b, (m,), or None; always None with ``factor``.
        start: its left factor is the basis of the sketch, (m, k), or (factors, blocks, m, k).
        factor: the number of the block-diagonal factor that ``weight`` is, or None for a dense weight.

    Returns:
        (*, m), or (blocks, rows, m) with ``factor``.
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
        *others: Any,
    ) -> tuple[Tensor, Tensor]:
        start, batch_sizes, resets = others
        arguments = inputs, initial, weight, bias, nonlinearity, input_weight, input_bias
        states, last = recurrence(*arguments, batch_sizes=batch_sizes, resets=resets)
        ctx.set_materialize_grads(False)
        saved = inputs, states, initial, weight, bias, input_weight, start.stored_left, resets
        ctx.save_for_backward(*saved)
        ctx.nonlinearity, ctx.pairs, ctx.group = nonlinearity, start.pairs, start.group
        ctx.batch_sizes = batch_sizes
        ctx.chosen = _chosen()
        return states, last

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_last: Tensor | None) -> Any:  # type: ignore[override]
        u, states, initial_state, weight, offset, input_weight, basis, resets = ctx.saved_tensors
        needs = ctx.needs_input_grad
        sketched = not _wants_dense(grad, grad_last)
        inputs, initial, bias, projection, shift, *found = run_under(
            ctx.chosen,
            recurrence_backward,
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
                basis=basis if sketched else None,
                group=ctx.group,
                batch_sizes=ctx.batch_sizes,
                resets=resets,
            ),
        )
        by_weight: Tensor | None = None
        if found:
            by_weight = _gradient(found[0], found[1], ctx.pairs) if sketched else found[0]
        grads = inputs, initial, by_weight, bias, None, projection, shift, None, None, None
        return tuple(g if need else None for g, need in zip(grads, needs, strict=True))


def sketched_recurrence(
    inputs: Tensor,
    initial: Tensor,
    weight: UnitaryParameter,
    bias: Tensor | None,
    nonlinearity: str,
    input_weight: Tensor | None,
    input_bias: Tensor | None,
    *,
    batch_sizes: list[int] | None,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`projunn_kernels.recurrence` with a gradient of the weight that is a `projunn.FactoredTensor`.

    It is a sketch of the gradient summed over all time steps, and starts from ``weight.sketch``.
    """
    arguments = inputs, initial, weight, bias, nonlinearity, input_weight, input_bias
    others = weight.sketch, batch_sizes, resets
    return _SketchedRecurrence.apply(*arguments, *others)  # type: ignore[no-untyped-call]


class _SketchedWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, start: FactoredTensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(start.stored_left)
        ctx.pairs, ctx.group, ctx.chosen = start.pairs, start.group, _chosen()
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        if _wants_dense(grad):
            return grad, None
        (basis,) = ctx.saved_tensors
        dense = torch.view_as_complex(grad.contiguous()) if ctx.pairs else grad
        rows = torch.eye(dense.shape[0], dtype=dense.dtype, device=dense.device)
        sketched = [dense.conj().resolve_conj()], [rows], basis, ctx.pairs, ctx.group
        left, right = run_under(ctx.chosen, sketch, *sketched)
        return _gradient(left, right, ctx.pairs), None


def sketched_weight(weight: UnitaryParameter) -> Tensor:
    """The weight, to be used many times: its gradient is a sketch of the sum of their gradients.

    That sum is formed once, in the backward.  Sketches of each would have a rank that grows with their
    number.
    """
    result: Tensor = _SketchedWeight.apply(weight, weight.sketch)  # type: ignore[no-untyped-call]
    return result


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
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        output, paired, own = fourier_convolution(input, weight, own_weight, bias, size, keep)
        ctx.set_materialize_grads(False)
        own_basis = None if own_start is None else own_start.stored_left
        kept = (paired, own) if keep else (input, None)
        ctx.save_for_backward(*kept, weight, own_weight, start.stored_left, own_basis)
        ctx.size, ctx.keep, ctx.group, ctx.chosen = size, keep, start.group, _chosen()
        return output, paired, own  # a second backward comes back through the spectrum

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *by_spectrum: Tensor | None) -> Any:  # type: ignore[override]
        *kept, weight, own_weight, basis, own_basis = ctx.saved_tensors
        real = own_weight is not None
        wants_input, wants_weight, wants_own, wants_bias, *_ = ctx.needs_input_grad
        wanted = [wants_input, wants_weight or wants_own, wants_bias]
        by_input, by_weight, by_own, by_bias = None, None, None, None
        if grad is not None:
            spectrum = kept
            if not ctx.keep:
                spectrum = run_under(ctx.chosen, spectrum_of, kept[0], weight, ctx.size, real)
            if _wants_dense(grad):
                dense = grad, *spectrum, weight, own_weight, ctx.size, wanted
                by_input, by_weight, by_own, by_bias = run_under(
                    ctx.chosen, fourier_convolution_backward, *dense
                )
            else:
                by_input, left, right, own_left, own_right, by_bias = run_under(
                    ctx.chosen,
                    fourier_convolution_sketch,
                    grad.contiguous(),
                    tuple(spectrum),
                    weight,
                    own_weight,
                    (basis, own_basis),
                    ctx.size,
                    wanted,
                    group=ctx.group,
                )
                if wants_weight:
                    by_weight = _gradient(left, right, True)
                if wants_own:
                    by_own = _gradient(own_left, own_right, False)
        if ctx.keep and wants_input:
            by_input = through_transform(by_input, tuple(kept), by_spectrum, ctx.size, real)
        return (
            by_input if wants_input else None,
            by_weight if wants_weight else None,
            by_own if wants_own else None,
            by_bias if wants_bias else None,
            *(None,) * 4,
        )


def sketched_convolution(
    input: Tensor,
    weight: UnitaryParameter,
    own_weight: UnitaryParameter | None,
    bias: Tensor | None,
    size: list[int],
    keep: bool,
) -> Tensor:
    """`projunn_kernels.fourier_convolution` with gradients of the weights that are `FactoredTensor`.

    The gradient at every frequency is sketched, starting from the ``sketch`` of its parameter.
    """
    own_start = None if own_weight is None else own_weight.sketch
    arguments = input, weight, own_weight, bias, weight.sketch, own_start, size, keep
    output: Tensor
    output, *_ = _SketchedConvolution.apply(*arguments)  # type: ignore[no-untyped-call]
    return output
