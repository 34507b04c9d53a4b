"""The unitary parameters of an optimizer's step, and what is kept of them from step to step.

Parameters of one layout, with gradients of one kind and the same options, step in one call.  Which those
are and where their state lies is found once.  The steps that follow only look whether it has changed, so
that the time that Python takes for a small matrix is little more than that of ``torch.optim``.
"""

from itertools import chain
from math import prod
from operator import is_
from typing import Any

import torch

from projunn.optim.gradient import (
    DenseGradient,
    FactoredGradient,
    Gradient,
    PlainGradients,
    gradient_of,
)
from projunn.optim.member import Member, OptimizerLike
from projunn.optim.options import WARM
from projunn.optim.parts import Alike, Alone, Bank, Part, Sketched, shared_options
from projunn.optim.sharded import LocalState
from projunn_kernels.backends import on_device
from projunn_kernels.constants import MAX_PROGRAMS

_LARGE = 256 * 256  # parameters of more numbers are not copied into a bank


class Together:
    """The members of a step, with their gradients and state, in groups that are alike.

    Args:
        optimizer: the optimizer.
        members: its unitary parameters that have a gradient.
        keep: whether steps of the same members may follow.
    """

    def __init__(self, optimizer: OptimizerLike, members: list[Member], keep: bool) -> None:
        self.members, self._keep = members, keep
        self._gradients: list[Gradient] = []
        for member in members:  # before anything is changed
            member.check_state()
        for member in members:
            gradient = gradient_of(member)
            if isinstance(gradient, DenseGradient):
                optimizer._complete_state(member)
            self._gradients.append(gradient)
        self._groups = list({id(member.group): member.group for member in members}.values())
        self._options = optimizer._checked, [optimizer._averages(group) for group in self._groups]
        counts = [member.state["step"] for member in members]
        if keep and len(counts) > 1 and all(count.device.type == "cpu" for count in counts):
            together = torch.stack(counts)  # which one call advances
            for member, count in zip(members, together, strict=True):
                member.state["step"] = count
            counts = [together]
        self._steps = counts
        self._parts = _parts(optimizer, members, self._gradients, keep)
        # It is not asked if steps have stopped under a trace, which cannot follow an answer, nor of
        # shards, whose processes could find different ones.
        watched = keep and not any(isinstance(member.state, LocalState) for member in members)
        for part in self._parts:
            part.watched = watched
        self._states = [member.state for member in members]
        self._values = [*chain.from_iterable(map(dict.values, self._states))]
        self._quick = PlainGradients.of(self._gradients) if keep else None

    def renew(self, optimizer: OptimizerLike, members: list[Member]) -> bool:
        """Take up the gradients of the next step; False if more than those has changed."""
        if members != self.members or optimizer._checked is not self._options[0]:
            return False
        if [optimizer._averages(group) for group in self._groups] != self._options[1]:
            return False
        values = [*chain.from_iterable(map(dict.values, self._states))]
        if len(values) != len(self._values) or not all(map(is_, values, self._values)):
            return False
        if self._quick is None or not self._quick.renew([member.grad for member in members]):
            for member, gradient in zip(members, self._gradients, strict=True):
                if not gradient.renew(member.grad):
                    return False
        return not [part for part in self._parts if not part.is_as_it_was(optimizer)]

    def step(self, optimizer: OptimizerLike) -> None:
        """Take the steps of all."""
        torch._foreach_add_(self._steps, 1)
        for part in self._parts:
            part.follow(optimizer)
        for part in self._parts:
            part.take()
        for part in self._parts:
            part.settle(optimizer)
            if self._keep:
                part.forget()


def _parts(
    optimizer: OptimizerLike, members: list[Member], gradients: list[Gradient], keep: bool
) -> list[Part]:
    """The parameters in parts: those that are alike share one."""
    together: dict[tuple[Any, ...], tuple[list[Member], list[Any]]] = {}
    alone: list[Part] = []
    for member, gradient in zip(members, gradients, strict=True):
        if isinstance(gradient, DenseGradient) and member.group["factorization"] not in WARM:
            alone.append(Alone([member], [gradient]))
            continue
        likeness = _likeness(optimizer, member, gradient)
        found = together.setdefault(likeness, ([], []))
        found[0].append(member)
        found[1].append(gradient)
    parts: list[Part] = []
    for likeness, (every, theirs) in together.items():
        most = max(1, MAX_PROGRAMS // max(1, _matrices(theirs[0])))
        for first in range(0, len(every), most):
            some = every[first : first + most], theirs[first : first + most]
            parts.append(_part(likeness, *some, keep))
    return [*alone, *parts]


def _matrices(gradient: Gradient) -> int:
    """How many matrices of a parameter have a gradient."""
    matrices = gradient.factors[0] if isinstance(gradient, FactoredGradient) else gradient.grad
    return prod(matrices.shape[:-2])


def _part(
    likeness: tuple[Any, ...], alike: list[Member], gradients: list[Any], keep: bool
) -> Sketched | Bank | Alike:
    if isinstance(gradients[0], FactoredGradient):
        return Sketched(alike, gradients)
    bank = likeness[-1] is not None and len(alike) > 1
    return Bank(alike, gradients, keep) if bank else Alike(alike, gradients)


def _likeness(optimizer: OptimizerLike, member: Member, gradient: Gradient) -> tuple[Any, ...]:
    """The key that parameters of one call share; its last entry is None if they cannot be a `Bank`."""
    options = shared_options(optimizer, member.group, gradient.shape)
    if isinstance(gradient, FactoredGradient):
        return FactoredGradient, gradient.layout, gradient.factors[0].shape[-1], options
    p, active = gradient.parameter, gradient.active
    small = active is None and p.numel() <= _LARGE and not on_device(p)
    # Only those of one step and one state can be a bank.
    now = (int(member.state["step"].item()), member.index in optimizer._fresh) if small else None
    return (
        *(gradient.layout, gradient.grad.dtype, options, gradient.factorization),
        *(None if active is None else id(p), tuple(member.state), now),
    )
