"""The parameters that an optimizer's last step saw, which the next one most often sees again."""

from collections.abc import Sequence
from operator import is_
from typing import Any

import torch

from projunn.optim.member import Member
from projunn.parameter import UnitaryParameter, is_unitary
from projunn_kernels import private


class Seen:
    """The groups and unitary parameters of a step, all of which had a gradient.

    Whether they are the same in the next step is asked without a call of Python for each of them.

    Attributes:
        members: the unitary parameters; their gradients are those of the last call of `again`.
        only_unitary: whether the optimizer has no others.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, members: Sequence[Member]) -> None:
        self.members = list(members)
        self._state = optimizer.state
        self._groups = [
            (group, list(group["params"]), list(map(type, group["params"])))
            for group in optimizer.param_groups
        ]
        self._each = [(m, m.parameter, m.parameter.dtype, m.parameter.blocks) for m in members]
        self._states = list(self._state.values())
        every = (p for _, params, _ in self._groups for p in params)
        self.only_unitary = all(map(is_unitary, every))

    @classmethod
    def of(
        cls, optimizer: torch.optim.Optimizer, members: Sequence[Member], count: int
    ) -> "Seen | None":
        """For a step of ``count`` parameters; None if one is sharded or has no gradient."""
        usual = count == len(members) and all(type(m.parameter) is UnitaryParameter for m in members)
        return cls(optimizer, members) if usual else None

    def again(self, optimizer: Any) -> list[Member] | None:
        """The members with their gradients of now; None if anything else has changed."""
        state, groups = optimizer.state, optimizer.param_groups
        if state is not self._state or len(groups) != len(self._groups):
            return None
        for group, (known, params, kinds) in zip(groups, self._groups, strict=True):
            own = group["params"]
            if group is not known or len(own) != len(params) or not all(map(is_, own, params)):
                return None
            if [*map(type, own)] != kinds:
                return None
        if len(state) != len(self._states) or not all(map(is_, state.values(), self._states)):
            return None
        with private.as_plain_tensors():
            for member, parameter, dtype, blocks in self._each:
                grad = parameter.grad
                if grad is None or parameter.dtype is not dtype or parameter.blocks != blocks:
                    return None
                member.grad = grad
        return self.members
