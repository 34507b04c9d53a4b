"""Steps that have come to rest away from an optimum, and what takes them on.

    share  ‖M - M^H‖_F / (2 ‖M‖_F),    M = W^H X Y^H  (X Y^H W^H where m > n)

The factors X Y^H of ``factorization="subspace"`` converge to the leading singular pairs of the direction
D.  The step sees the skew-Hermitian part of W^H X Y^H alone.  Where those pairs are normal to the
manifold that part is zero, and the factors, which follow D, stay there for good, however much of the
rest of D is tangent.  In training on random batches the share is about 0.7, and it is below 0.05 where
steps have stopped (docs/mathematics.md).  So the share is looked at once in a while; where it is small,
the parameter steps along the tangent part of D from then on, as with ``factorization="tangent"``.
"""

from typing import Any

import torch
from torch import Tensor

from projunn.manifold import view_like
from projunn.optim.gradient.dense import DenseGradient
from projunn.optim.member import Member, capturing
from projunn.optim.options import WARM
from projunn_kernels import adjoint_product, factor, product

_EVERY = 64  # steps between two looks
_LEAST = 0.1  # share below which a step has stopped


class _Answer:
    """A truth on a device, asked for now, and read later, when nobody has to wait for it."""

    def __init__(self, truth: Tensor) -> None:
        self._event = None
        if truth.is_cuda:
            self._here = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._here.copy_(truth, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._here = truth

    @property
    def is_ready(self) -> bool:
        return self._event is None

    def __bool__(self) -> bool:
        if self._event is not None:
            self._event.synchronize()
        return bool(self._here)


def has_stopped(member: Member, gradient: Any) -> bool:
    """Whether the steps of a parameter have stopped where its direction is not zero.

    It looks every 64 steps.  On a GPU the answer is that of the look before, so that nothing waits.

    Args:
        member: a parameter that has taken a step.
        gradient: what that step was made of.
    """
    p, group, state = member.parameter, member.group, member.state
    if not member.watched or group["factorization"] != "subspace":
        return False
    if member.steps is None:
        on_host = state["step"].device.type == "cpu"  # else graphs may count, which no host sees
        view = view_like(p, p.detach())
        only_signs = view.shape[-2:] == (1, 1) and not view.is_complex()  # which nothing turns
        member.watched = on_host and not only_signs and WARM["tangent"][0] not in state
        member.steps = int(state["step"].item()) - 1 if on_host else 0
    member.steps += 1
    if member.steps % _EVERY or not isinstance(gradient, DenseGradient) or capturing(p):
        return False
    if gradient.active is not None:
        return False
    before = member.asked
    weight, basis = view_like(p, p.detach()), gradient.view(state["basis"])
    member.asked = _Answer(_is_normal(weight, gradient.direction, basis))
    known = member.asked if member.asked.is_ready else before
    stopped = known is not None and bool(known)
    member.watched = not stopped
    return stopped


def _is_normal(weight: Tensor, direction: Tensor, basis: Tensor) -> Tensor:
    """Whether the factors of the direction of some matrix are normal to the manifold; 0-d."""
    left, right = factor(direction, basis)
    if weight.shape[-2] > weight.shape[-1]:
        right = product(weight, right)
    else:
        left = adjoint_product(weight, left)
    precise = torch.complex128 if left.is_complex() else torch.float64
    a, b = left.to(precise), right.to(precise)  # M = A B^H
    inner = b.mH @ a
    size = ((a.mH @ a) * (b.mH @ b).mT).sum((-2, -1)).real  # ‖M‖^2
    tangent = size - (inner * inner.mT).sum((-2, -1)).real  # ‖M - M^H‖^2 / 2
    return (tangent < 2 * _LEAST**2 * size).any()
