"""Drift control: one Newton-Schulz step towards the polar factor, ``W <- W + W (I - W^H W)/2``.

It turns a small defect E = W^H W - I into one of norm at most 3/4 |E|^2 + 1/4 |E|^3, that is, into
rounding, and costs 4 n^3 operations: the optimizers take one every few hundred steps.  W is
(*batch, m, n); wide matrices use W W^H.  A matrix further than 0.5 from unitary (Frobenius norm of E),
where the iteration could diverge, or not finite, is left as it is.
"""

from typing import Any

from torch import Tensor

from projunn_kernels.backends import on_device
from projunn_kernels.operation import Operation, nothing
from projunn_kernels.polish import eager
from projunn_kernels.polish.eager import polish_
from projunn_kernels.polish.tiles import POLISH

__all__ = ["polish_", "polish_when_due_"]


def _counts_on_the_device(*, step: Tensor, **_: Any) -> bool:
    return on_device(step)


_polish_when_due = Operation(
    name="polish_when_due_",
    eager=eager.polish_when_due,
    launches="projunn_kernels.polish.launch:polish_when_due",
    fits=_counts_on_the_device,
    fake=nothing,
    on="weight",
    kernels=(POLISH,),
    mutates=("weight",),
)


def polish_when_due_(weight: Tensor, step: Tensor, period: int, pairs: bool = False) -> None:
    """`polish_` if the 0-d tensor ``step`` is a multiple of ``period``, decided where ``step`` is.

    On a GPU that is decided by the kernels, so that the call can be part of a captured graph; they cost
    three empty launches when nothing is due.  Without kernels (float64, backend ``torch``) the polish is
    computed at every call and put to use when it is due.  ``weight`` holds real pairs if ``pairs``.
    """
    _polish_when_due(weight=weight, step=step, period=period, pairs=pairs)
