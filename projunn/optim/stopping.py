"""Steps that have come to rest away from an optimum, and what takes them on.

    share  ‖M - M^H‖_F / (2 ‖M‖_F),    M = W^H X Y^H  (X Y^H W^H where m > n)

The factors X Y^H of ``factorization="subspace"`` and ``"single_pass"`` converge to the leading singular
pairs of the direction D.  The step sees the skew-Hermitian part of W^H X Y^H alone.  Where those pairs
are normal to the manifold that part is zero, and the factors, which follow D, stay there for good,
however much of the rest of D is tangent.  In training on random batches the share is about 0.7, and it
is below 0.05 where steps have stopped (docs/mathematics.md).  So the share is looked at once in a while;
where it is small, the parameter steps along the tangent part of D from then on, as with "tangent".  A
sketched gradient has no tangent part to step along: there each sketch starts from random columns.
"""

from typing import Any

import torch
from torch import Tensor

from projunn.manifold import view_like
from projunn.optim.answers import Answer
from projunn.optim.gradient.dense import DenseGradient
from projunn.optim.gradient.factored import REDRAWN
from projunn.optim.member import Member, capturing
from projunn.optim.options import CAN_STOP, WARM
from projunn_kernels import adjoint_product, factor, product

_EVERY = 64  # steps between two looks
_LEAST = 0.1  # share below which a step has stopped
_COPIED = 1 << 22  # numbers of weights that are copied, so that they are looked at together


def steps_to_look(member: Member) -> int:
    """The number of steps after which `stopped` looks next."""
    count: Tensor = member.state["step"]
    if member.group["factorization"] not in CAN_STOP or count.device.type != "cpu":
        return _EVERY
    return _EVERY - int(count.item()) % _EVERY


def is_looked_at(member: Member) -> bool:
    """Whether `stopped` looks at a parameter after this step, as far as its options and number tell."""
    can_stop = member.group["factorization"] in CAN_STOP
    return can_stop and member.state["step"].device.type == "cpu" and steps_to_look(member) == _EVERY


def stopped(members: list[Member], gradients: list[Any], parts: int = 1) -> list[list[bool]]:
    """Whether the steps of parameters have stopped where their direction is not zero.

    It looks at every 64th step, at those that are alike in one look.  On a GPU the answer is that of the
    look before, so that nothing waits.  Steps that are counted on the device are not looked at: the host
    does not know their number.  Nor are those of sharded parameters, whose processes could find other
    answers.

    Args:
        members: parameters of one layout that have taken a step.
        gradients: what those steps were made of.
        parts: of how many parameters each of them is a bank.

    Returns:
        For each member the answers for its parts.
    """
    found = {id(member): [False] * parts for member in members}
    pairs = zip(members, gradients, strict=True)
    looked_at = [(member, gradient) for member, gradient in pairs if _is_due(member, gradient)]
    at_once = max(1, _COPIED // max(1, members[0].parameter.numel()))
    for start in range(0, len(looked_at), at_once):
        alike = looked_at[start : start + at_once]
        weight, first, second = map(_stacked, zip(*(_matrices(*one) for one in alike), strict=True))
        dense = isinstance(alike[0][1], DenseGradient)
        left, right = factor(first, second) if dense else (first, second)
        normal = _are_normal(weight, left, right)
        answer = Answer(normal.reshape(len(alike) * parts, -1).any(1))
        for i, (member, _) in enumerate(alike):
            before, member.asked = member.asked, (answer, slice(i * parts, (i + 1) * parts))
            known = member.asked if answer.on_host else before
            if known is not None:
                found[id(member)] = known[0].read()[known[1]]
    return list(found.values())


def _is_due(member: Member, gradient: Any) -> bool:
    p, state = member.parameter, member.state
    if not is_looked_at(member) or capturing(p):
        return False
    if gradient.active is not None or WARM["tangent"][0] in state or REDRAWN in state:
        return False
    view = view_like(p, p.detach())
    return view.shape[-2:] != (1, 1) or view.is_complex()  # a sign, which nothing turns


def _matrices(member: Member, gradient: Any) -> tuple[Tensor, ...]:
    """The weight, and the factors of the direction, or the direction and the basis."""
    view = view_like(member.parameter, member.parameter.detach())
    if isinstance(gradient, DenseGradient):
        basis = gradient.view(member.state[WARM[member.group["factorization"]][0]])
        return view, gradient.direction, basis[..., : view.shape[-2], :]
    return view, *gradient.direction


def _stacked(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0].unsqueeze(0)


def _are_normal(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Whether factors X, Y of the direction are normal to the manifold, (*batch)."""
    if weight.shape[-2] > weight.shape[-1]:
        right = product(weight, right)
    else:
        left = adjoint_product(weight, left)
    precise = torch.complex128 if left.is_complex() else torch.float64
    a, b = left.to(precise), right.to(precise)  # M = A B^H
    inner = b.mH @ a
    size = ((a.mH @ a) * (b.mH @ b).mT).sum((-2, -1)).real  # ‖M‖^2
    tangent = size - (inner * inner.mT).sum((-2, -1)).real  # ‖M - M^H‖^2 / 2
    return tangent < 2 * _LEAST**2 * size
