"""The optimizer step of one parameter whose direction is already in factors: retract, refresh the basis.

    W <- retraction of W - rate X Y^H        R <- orth(S) + 0.01 probe

W is (*batch, m, n), X (*batch, m, k), Y (*batch, n, k); the warm basis R, its probe and S, the left
factor of the gradient, are (*batch, m, r).  ``skipped`` () counts the matrices whose step cannot be
taken: they and their bases are left as they were.  With ``pairs``, W, R and the probe are stored as real
pairs, with a trailing axis of size 2, while the factors are complex.
"""

import torch
from torch import Tensor

from projunn_kernels.backends import opaque, operator
from projunn_kernels.fused_step import take_


def factored_step_(
    weight: Tensor,
    left: Tensor,
    right: Tensor,
    sketched: Tensor,
    basis: Tensor,
    probe: Tensor,
    skipped: Tensor,
    rate: float,
    scale: Tensor | None = None,
    retraction: str = "exp",
    pairs: bool = False,
) -> None:
    """Take the step in place; the learning rate is ``rate``, times the 0-d ``scale`` if given."""
    step = _operator if opaque(weight) else _step
    step(weight, left, right, sketched, basis, probe, skipped, rate, scale, retraction, pairs)


def _step(
    weight: Tensor,
    left: Tensor,
    right: Tensor,
    sketched: Tensor,
    basis: Tensor,
    probe: Tensor,
    skipped: Tensor,
    rate: float,
    scale: Tensor | None,
    retraction: str,
    pairs: bool,
) -> None:
    if pairs:
        weight, basis, probe = (torch.view_as_complex(t) for t in (weight, basis, probe))
    take_(weight, left, right, sketched, basis, probe, skipped, rate, scale, retraction)


_operator = operator("projunn::factored_step_", mutates_args=("weight", "basis", "skipped"))(_step)


@_operator.register_fake
def _(*arguments):  # type: ignore[no-untyped-def]
    return None
