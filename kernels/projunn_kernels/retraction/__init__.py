"""The retraction of a step ``W + X Y^H``, in place: what `projunn.retract` and the optimizers run.

    Z = W^H X        Z Y^H = Q E Q^H        F = f(E) - I        W += (W Q) (Q F^H)^H

W is (*batch, m, n), X (*batch, m, k), Y (*batch, n, k).  With ``active`` (A,), W is (B, m, n) and the
factors have A in place of the batch; negative entries stand for nothing.  Tall matrices (m > n) take
the mirror image: W^H is wide, its step is (X Y^H)^H = Y X^H, and W'^H = W^H (I + Q F Q^H).

On a GPU, for k up to `MAX_RANK` and m <= n, that is three launches: Z is read off W in one pass; Q, E
and F are made by one program a matrix; and rows of W are rotated in registers, one read and one write.
Up to `MAX_MANY` it is eleven to 23, however many matrices there are (`projunn_kernels.retraction.many`),
and W is read once more.
"""

from typing import Any

import torch
from torch import Tensor

from projunn_kernels.operation import Operation
from projunn_kernels.retraction import eager
from projunn_kernels.retraction.basis import step_basis
from projunn_kernels.retraction.rotations import RETRACTIONS, named, rotation
from projunn_kernels.retraction.tiles import BASIS, TURN, TURN_ROWS

__all__ = ["RETRACTIONS", "retract_", "retract_pulled_", "rotation", "step_basis"]


def retract_(
    weight: Tensor, left: Tensor, right: Tensor, retraction: str, active: Tensor | None = None
) -> Tensor:
    """Replace W by the unitary matrix that the step X Y^H leads to, in place.

    `projunn.retract` has the formulas of the retractions and their accuracy.

    Args:
        weight: W, (*batch, m, n), unitary, real or complex.
        left, right: X (*batch, m, k) and Y (*batch, n, k), of the same dtype.
        retraction: one of `RETRACTIONS`.
        active: (A,), the indices of the matrices of W (B, m, n) to step, each at most once, or None for
            all.  X is then (A, m, k) and Y (A, n, k); entries of negative index are left out.

    Returns:
        The mask of the matrices whose step was taken, (*batch), or (A,) with ``active``.

    Raises:
        ValueError: an unknown ``retraction``.
    """
    taken: Tensor = _retract(weight=weight, left=left, right=right, retraction=retraction, active=active)
    return taken


def retract_pulled_(
    weight: Tensor,
    pulled: Tensor,
    right: Tensor,
    moved: Tensor,
    retraction: str,
    active: Tensor | None = None,
) -> Tensor:
    """`retract_` of a step whose Z is known, W^H D = Z Y^H, and W Y with it, as ``moved``.

    Y must have orthonormal columns.  For tall matrices they belong to the mirror image, W D^H = Z Y^H.
    """
    taken: Tensor = _retract_pulled(
        weight=weight, pulled=pulled, right=right, moved=moved, retraction=retraction, active=active
    )
    return taken


def _fake_pulled(
    weight: Tensor,
    pulled: Tensor,
    right: Tensor,
    moved: Tensor,
    retraction: str,
    active: Tensor | None = None,
) -> Tensor:
    return _fake(weight, pulled, right, retraction, active)


def _fake(
    weight: Tensor, left: Tensor, right: Tensor, retraction: str, active: Tensor | None = None
) -> Tensor:
    batch = weight.shape[:-2] if active is None else active.shape
    return torch.empty(batch, dtype=torch.bool, device=weight.device)


def _is_rotation(retraction: str, **_: Any) -> bool:
    return named(retraction).whole is None


_retract = Operation(
    name="retract_",
    eager=eager.retract,
    launches="projunn_kernels.retraction.launch:retract",
    fits=_is_rotation,
    fake=_fake,
    on="weight",
    kernels=(BASIS, TURN, TURN_ROWS),
    mutates=("weight",),
)
_retract_pulled = Operation(
    name="retract_pulled_",
    eager=eager.retract_pulled,
    launches="projunn_kernels.retraction.launch:retract_pulled",
    fits=_is_rotation,
    fake=_fake_pulled,
    on="weight",
    mutates=("weight",),
)
