"""``Y = X U^T + b`` of all time steps at once, for inputs narrow beside the hidden state.

X (*rows, m), U (n, m), b (n,), Y (*rows, n), real.  With tens of thousands of rows and few inputs a BLAS
is far from its speed in the two ways that ``functional.linear`` asks for (docs/measured.md): Y is
written in panels of rows that stay in cache, and the gradient of U is the transpose of ``X^T G``.
"""

import torch
from torch import Tensor
from torch.nn import functional

from projunn.kernels.backends import operator

_PANEL = 512


def projection(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As ``functional.linear``, which it is but for full precision on a CPU."""
    narrow = inputs.device.type == "cpu" and 2 * weight.shape[1] <= weight.shape[0]
    alike = inputs.dtype == weight.dtype and not inputs.is_complex()
    if narrow and alike and not torch.is_autocast_enabled("cpu"):
        return _projection(inputs, weight, bias)
    return functional.linear(inputs, weight, bias)


@operator("projunn::projection", mutates_args=())
def _projection(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result = inputs.new_empty(*inputs.shape[:-1], weight.shape[0])
    panels = inputs.reshape(-1, weight.shape[1]).split(_PANEL)
    for x, y in zip(panels, result.view(-1, weight.shape[0]).split(_PANEL), strict=True):
        if bias is None:
            torch.mm(x, weight.mT, out=y)
        else:
            torch.addmm(bias, x, weight.mT, out=y)
    return result


@_projection.register_fake
def _(inputs, weight, bias):  # type: ignore[no-untyped-def]
    return inputs.new_empty(*inputs.shape[:-1], weight.shape[0])


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, weight = ctx.saved_tensors
    for_inputs, for_weight, for_bias = ctx.needs_input_grad
    rows = grad.flatten(0, -2)
    return (
        grad @ weight if for_inputs else None,
        (x.flatten(0, -2).mT @ rows).mT if for_weight else None,
        rows.sum(0) if for_bias else None,
    )


_projection.register_autograd(_backward, setup_context=_setup_context)
