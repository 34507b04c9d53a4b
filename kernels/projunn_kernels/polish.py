"""Drift control: one Newton-Schulz step towards the polar factor, ``W <- W + W (I - W^H W)/2``.

It turns a small defect E = W^H W - I into one of norm at most 3/4 |E|^2 + 1/4 |E|^3, that is, into
rounding, and costs 4 n^3 operations: the optimizers take one every few hundred steps.  W is
(*batch, m, n); wide matrices use W W^H.  A matrix further than 0.5 from unitary (Frobenius norm of E),
where the iteration could diverge, or not finite, is left as it is.
"""

import torch
from torch import Tensor

from projunn_kernels.backends import opaque, operator, uses_triton
from projunn_kernels.blocks import flattened

NEAR = 0.5


def polish_(weight: Tensor) -> Tensor:
    """One step on each matrix, in place, without waiting for a device; returns ``weight``."""
    with torch.no_grad():
        wide = weight.shape[-2] < weight.shape[-1]
        gram = weight @ weight.mH if wide else weight.mH @ weight
        error = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device) - gram
        near = torch.linalg.matrix_norm(error, keepdim=True) < NEAR
        correction = error @ weight if wide else weight @ error
        return weight.add_(torch.where(near, correction, 0.0), alpha=0.5)


def polish_when_due_(weight: Tensor, step: Tensor, period: int, pairs: bool = False) -> None:
    """`polish_` if the 0-d tensor ``step`` is a multiple of ``period``, decided where ``step`` is.

    On a GPU that is decided by the kernels, so that the call can be part of a captured graph; they
    cost three empty launches when nothing is due.  ``weight`` as real pairs if ``pairs``.
    """
    (_operator if opaque(weight) else _polish_when_due)(weight, step, period, pairs)


def _polish_when_due(weight: Tensor, step: Tensor, period: int, pairs: bool) -> None:
    matrices = torch.view_as_complex(weight) if pairs else weight
    if step.device.type != "cpu" and uses_triton(matrices):
        from projunn_kernels.jit import launch

        with flattened(matrices) as blocks:
            launch.polish(blocks, step, period)
    elif step.item() % period == 0:
        polish_(matrices)


@operator("projunn::polish_when_due_", mutates_args=("weight",))
def _operator(weight: Tensor, step: Tensor, period: int, pairs: bool) -> None:
    _polish_when_due(weight, step, period, pairs)


@_operator.register_fake
def _(weight, step, period, pairs):  # type: ignore[no-untyped-def]
    return None
