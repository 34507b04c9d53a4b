"""Drift control: one Newton-Schulz step towards the polar factor, ``W <- W + c W (I - W^H W)``.

With E = W^H W - I the length c is 1/2 where ‖E‖_F < 1, and 1 / (1 + ‖E‖_F) elsewhere.  A small defect E
becomes one of norm at most 3/4 |E|^2 + 1/4 |E|^3, which is rounding.  From further off every singular
value s comes nearer to 1, since s (1 - c (s^2 - 1)) is positive and |s^2 - 1| does not grow; a few
polishes then do what one does near by, or many, if W is large and badly conditioned.  It costs 4 n^3
operations, so the optimizers take one every few hundred steps.  W is (*batch, m, n); wide matrices use
W W^H.  A matrix that is not finite stays as it is.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from projunn_kernels.backends import on_device
from projunn_kernels.operation import Operation, nothing
from projunn_kernels.polish import eager
from projunn_kernels.polish.eager import polish_, polish_near_
from projunn_kernels.polish.tiles import POLISH

__all__ = ["polish_", "polish_near_", "polish_when_due_"]


def _counts_on_the_device(*, steps: list[Tensor], **_: Any) -> bool:
    return on_device(steps[0])


_polish_when_due = Operation(
    name="polish_when_due_",
    eager=eager.polish_when_due,
    launches="projunn_kernels.polish.launch:polish_when_due",
    fits=_counts_on_the_device,
    fake=nothing,
    on="weights",
    kernels=(POLISH,),
    mutates=("weights",),
)


def polish_when_due_(
    weights: list[Tensor],
    steps: list[Tensor],
    period: int,
    pairs: bool = False,
    missed: Sequence[Tensor] = (),
    taken: Tensor | None = None,
) -> None:
    """`polish_` of those matrices, in place, that have taken a multiple of ``period`` steps.

    If the counters are on a GPU, the kernels decide.  The call can then be part of a captured graph, and
    costs two launches for all parameters, of a few programs for each multiprocessor, which read the
    counters and are done where nothing is due.  Where there are no kernels (float64, backend ``torch``),
    the polish is computed at every call and used only when it is due.

    Args:
        weights: W of parameters of one shape, (*batch, m, n), or (*batch, m, n, 2) with ``pairs``.
        steps: the number of steps of each so far, 0-d tensors.
        period: the number of steps between two polishes.
        pairs: True if ``weights`` hold complex numbers as pairs of reals.
        missed: how many of the steps each matrix has not taken, (*batch), int64, for each parameter;
            empty for none.
        taken: which have taken this one, (*batch), or of several parameters (parameters, *batch); None
            for all.
    """
    _polish_when_due(
        weights=weights, steps=steps, period=period, pairs=pairs, missed=list(missed), taken=taken
    )
