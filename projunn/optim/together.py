"""The unitary parameters of an optimizer's step, and what is kept of them from step to step.

Parameters of one layout, with gradients of one kind and the same options, step in one call.  Which those
are and where their state lies is found once.  The steps that follow only look whether it has changed, so
that the time that Python takes for a small matrix is little more than that of ``torch.optim``.
"""

from collections.abc import Sequence
from itertools import chain
from operator import is_
from typing import Any, Protocol

import torch
from torch import Tensor

from projunn.manifold import UnitaryParameter
from projunn.optim.by_kernels import Following
from projunn.optim.drift import polish, polish_alike, steps_to_polish
from projunn.optim.gradient import DenseGradient, Gradient, PlainGradients, gradient_of
from projunn.optim.member import Member
from projunn.optim.options import WARM, unitary_learning_rate
from projunn.optim.sharded import LocalState
from projunn.optim.stopping import steps_to_look, stopped
from projunn_kernels import FusedStep, fused_step_
from projunn_kernels.backends import on_device
from projunn_kernels.batches import surely_all

_LARGE = 128 * 128  # numbers of a parameter that is no longer copied into a bank


class Rule(Protocol):
    """What is asked of an optimizer; `projunn.optim.base.UnitaryOptimizer` has it."""

    _checked: tuple[tuple[Any, ...], ...]
    _fresh: tuple[int, ...]

    def _averages(self, group: dict[str, Any]) -> dict[str, bool]: ...

    def _kernel_rule(self, group: dict[str, Any]) -> Any: ...

    def _complete_state(self, member: Member, on_device: bool = False) -> None: ...

    def _start_basis(self, member: Member, factorization: str) -> None: ...


class Together:
    """The members of a step, with their gradients and state, in groups that are alike.

    Args:
        rule: the optimizer.
        members: its unitary parameters that have a gradient.
        keep: whether steps of the same members may follow.
    """

    def __init__(self, rule: Rule, members: list[Member], keep: bool) -> None:
        self.members = members
        self._gradients: list[Gradient] = []
        for member in members:
            gradient = gradient_of(member)
            if isinstance(gradient, DenseGradient):
                rule._complete_state(member)
            self._gradients.append(gradient)
        self._groups = list({id(member.group): member.group for member in members}.values())
        self._options = rule._checked, [rule._averages(group) for group in self._groups]
        counts = [member.state["step"] for member in members]
        if keep and len(counts) > 1 and all(count.device.type == "cpu" for count in counts):
            together = torch.stack(counts)  # which one call advances
            for member, count in zip(members, together, strict=True):
                member.state["step"] = count
            counts = [together]
        self._steps = counts
        self._parts = _parts(rule, members, self._gradients, keep)
        # Processes that share a parameter must not find different answers; a trace cannot follow one.
        watched = keep and not any(isinstance(member.state, LocalState) for member in members)
        for part in self._parts:
            part.watched = watched
        self._states = [member.state for member in members]
        self._values = [*chain.from_iterable(map(dict.values, self._states))]
        self._quick = PlainGradients.of(self._gradients) if keep else None

    def renew(self, rule: Rule, members: list[Member]) -> bool:
        """Take up the gradients of the next step; False if more than those has changed."""
        if members != self.members or rule._checked is not self._options[0]:
            return False
        if [rule._averages(group) for group in self._groups] != self._options[1]:
            return False
        values = [*chain.from_iterable(map(dict.values, self._states))]
        if len(values) != len(self._values) or not all(map(is_, values, self._values)):
            return False
        if self._quick is None or not self._quick.renew([member.grad for member in members]):
            for member, gradient in zip(members, self._gradients, strict=True):
                if not isinstance(gradient, DenseGradient) or not gradient.renew(member.grad):
                    return False
        return all(part.is_alike() and part.is_where_it_was() for part in self._parts)

    def step(self, rule: Rule) -> None:
        """Take the steps of all."""
        torch._foreach_add_(self._steps, 1)
        for part in self._parts:
            part.follow(rule)
        for part in self._parts:
            part.take()
        for part in self._parts:
            part.settle(rule)


class _Part:
    """Parameters that step in one call, or one that steps alone."""

    def __init__(self, members: list[Member], gradients: list[Any], alone: bool) -> None:
        self.members, self.gradients, self.alone = members, gradients, alone
        self._groups = list({id(member.group): member.group for member in members}.values())
        # The number of the last step, and of that in which something is due.
        self._last, self._due = -1, 0
        self.watched = False  # whether it is looked whether steps have stopped
        self._masks: Sequence[Tensor] = ()
        # What kernels do of the rule, and the directions that they have found in this step.
        self._following: Following | None = None
        self._directions: list[Tensor] | None = None
        if alone:
            return
        first = gradients[0]
        self.factorization = first.factorization
        states = [gradient.state for gradient in gradients]
        self._counts_on_device = states[0]["step"].device.type != "cpu"
        self._on_a_gpu = first.stored_weight.device.type != "cpu"
        basis, probe = WARM[self.factorization]
        self._tensors = {
            "weights": [gradient.stored_weight for gradient in gradients],
            "bases": [state[basis] for state in states],
            "probes": [state[probe] for state in states],
            "skipped": [state["skipped"] for state in states],
            "missed": [state["missed"] for state in states],
        }
        if first.active is None and on_device(first.stored_weight):
            self._following = Following(gradients)

    def is_alike(self) -> bool:
        """Whether the options of its groups, of which a schedule may have changed some, are the same."""
        if len(self._groups) == 1:
            return True
        shape = self.gradients[0].grad.shape
        first, *others = (_options(group, shape) for group in self._groups)
        return all(options == first for options in others)

    def is_where_it_was(self) -> bool:
        """Whether the state is still in the memory of which something is kept."""
        return True

    def follow(self, rule: Rule) -> None:
        """Find the directions of the rule, whose averages move."""
        if self._following is not None:
            self._directions = self._following.directions(rule, self._groups)
            if self._directions is not None:
                return
        for gradient in self.gradients:
            gradient.follow(rule)

    def take(self) -> None:
        """Take the steps."""
        first = self.gradients[0]
        if self.alone:
            first.take()
            self._masks = (first.taken,)
            return
        rate = unitary_learning_rate(first.group, first.grad.shape)
        scale = rate if isinstance(rate, Tensor) else None
        sign = -1.0 if first.group["maximize"] else 1.0
        directions, tensors = self._directions, self._tensors
        if directions is None:
            directions = [gradient.store(gradient.direction) for gradient in self.gradients]
        elif self._following is not None:  # the rule has counted what was missed
            tensors = tensors | {"missed": self._following.not_counted}
        taken = fused_step_(
            FusedStep(
                directions=directions,
                rate=sign if scale is not None else sign * rate,
                scale=scale,
                retraction=first.group["retraction"],
                pairs=first.parameter.pairs,
                active=first.active,
                factorization=self.factorization,
                **tensors,
            )
        )
        self._taken, self._all_taken = taken, surely_all(taken)
        self._masks = (taken,) if len(self.gradients) == 1 else ()

    def settle(self, rule: Rule) -> None:
        """Count what was missed, polish what is due, and look whether steps have stopped."""
        due = self._is_due()
        counted = not self.alone and self._all_counted()
        if counted and not due:
            return
        polished = counted and self._on_a_gpu and polish_alike(self.members, self._taken)
        if polished and self._counts_on_device:  # of which nobody looks whether their steps have stopped
            return
        masks = self._masks or self._taken.unbind()
        for member, gradient, taken in zip(self.members, self.gradients, masks, strict=True):
            mask = member.mask(taken, gradient.active, gradient.sound)
            if due and not polished:
                polish(member, mask)
        if due and self.watched:
            self._look(rule)
        if due:
            quiet = min(min(steps_to_polish(m), steps_to_look(m)) for m in self.members)
            self._due = self._last + quiet

    def _is_due(self) -> bool:
        """Whether a polish or a look may be due: so it may where the host does not see steps go by."""
        count: Tensor = self.members[0].state["step"]
        before, self._last = self._last, int(count.item()) if count.device.type == "cpu" else -1
        return not before + 1 == self._last < self._due

    def _look(self, rule: Rule) -> None:
        """Let those step along the tangent part from now on whose steps have stopped."""
        answers = stopped(self.members, self.gradients)
        for member, gradient, (has,) in zip(self.members, self.gradients, answers, strict=True):
            if has and isinstance(gradient, DenseGradient):
                rule._start_basis(member, "tangent")
            elif has:
                gradient.redraw()

    def _all_counted(self) -> bool:
        """Whether the counters of the steps need nothing that the call has not done."""
        if self.gradients[0].active is not None:
            return False
        if self._directions is not None or self._all_taken:
            return True
        return not [g for g in self.gradients if g.sound is not None]


class _Bank(_Part):
    """Small parameters on a CPU, whose matrices step as one bank.

    Copies of weights and gradients cost less than a call of every operation for each.  The state is not
    copied, if ``keep`` is set: that of each parameter becomes a view of the bank's.
    """

    def __init__(self, members: list[Member], gradients: list[Any], keep: bool) -> None:
        first, states = members[0], [member.state for member in members]
        self._owners, self._sources = members, gradients
        self._weights = [gradient.stored_weight for gradient in gradients]
        self._states: dict[str, tuple[list[Tensor], Tensor]] = {}
        state = {"step": states[0]["step"], "skipped": torch.zeros_like(states[0]["skipped"])}
        for name in states[0]:
            if name in state:
                continue
            own = [one[name] for one in states]
            state[name] = torch.stack(own)
            if keep:
                for one, part in zip(states, state[name], strict=True):
                    one[name] = part
            else:
                self._states[name] = own, state[name]
        self._seats = [value for one in states for value in one.values()]
        self._addresses = list(map(Tensor.data_ptr, self._seats))
        pairs, weights = first.parameter.pairs, torch.stack(self._weights)
        bank = UnitaryParameter(weights, False, pairs=pairs, blocks=1)
        shown = tuple(member.parameter for member in members)
        member = Member(first.index, bank, torch.empty_like(weights), state, first.group, shown=shown)
        super().__init__([member], [DenseGradient(member)], alone=False)
        self._stepped = self._tensors["weights"][0].unbind()
        groups = {id(owner.group): owner.group for owner in members}
        self._groups = list(groups.values())

    def is_where_it_was(self) -> bool:
        return self._addresses == list(map(Tensor.data_ptr, self._seats))

    def follow(self, rule: Rule) -> None:
        bank = self.gradients[0]
        bank.feed(torch.stack([gradient.grad for gradient in self._sources]))
        bank.follow(rule)

    def take(self) -> None:
        torch.stack(self._weights, out=self._tensors["weights"][0])
        super().take()

    def settle(self, rule: Rule) -> None:
        super().settle(rule)
        torch._foreach_copy_(self._weights, self._stepped)
        for own, bank in self._states.values():
            torch._foreach_copy_(own, bank.unbind())
        if not self._all_taken:
            missed = self._taken.expand(self._tensors["missed"][0].shape).logical_not()
            counts = missed.reshape(len(self._owners), -1).sum(1)
            for owner, count in zip(self._owners, counts, strict=True):
                owner.state["skipped"].add_(count)

    def _look(self, rule: Rule) -> None:
        (answers,) = stopped(self.members, self.gradients, len(self._owners))
        for owner, has in zip(self._owners, answers, strict=True):
            if has:
                rule._start_basis(owner, "tangent")


def part_from_banks(state: dict[str, Any]) -> None:
    """Give tensors of their own to entries that are views of a bank: a trace would follow those."""
    for name, value in state.items():
        if value.untyped_storage().nbytes() != value.numel() * value.element_size():
            state[name] = value.clone()


def _parts(rule: Rule, members: list[Member], gradients: list[Gradient], keep: bool) -> list[_Part]:
    """The parameters, those that are alike together."""
    together: dict[tuple[Any, ...], tuple[list[Member], list[Any]]] = {}
    alone = []
    for member, gradient in zip(members, gradients, strict=True):
        options = None
        if isinstance(gradient, DenseGradient):
            options = _options(member.group, gradient.grad.shape)
        if not isinstance(gradient, DenseGradient) or options is None:
            alone.append(_Part([member], [gradient], alone=True))
            continue
        p, active = gradient.parameter, gradient.active
        small = active is None and p.numel() <= _LARGE and not on_device(p)
        # Only those of one step and one state can be a bank.
        now = (int(member.state["step"].item()), member.index in rule._fresh) if small else None
        listed = None if active is None else id(p)
        likeness = (
            *(gradient.layout, gradient.grad.dtype, options, listed, gradient.factorization),
            *(now, tuple(member.state)),
        )
        found = together.setdefault(likeness, ([], []))
        found[0].append(member)
        found[1].append(gradient)
    parts = []
    for likeness, (alike, theirs) in together.items():
        rank = alike[0].group["rank"]
        bank = likeness[-2] is not None and len(alike) >= (3 if rank == 1 else 2)
        parts.append(_Bank(alike, theirs, keep) if bank else _Part(alike, theirs, alone=False))
    return [*alone, *parts]


def _options(group: dict[str, Any], shape: Sequence[int]) -> tuple[Any, ...] | None:
    """The options that parameters of one call share, of (.., m, n); None if each steps alone."""
    if group["factorization"] not in WARM:
        return None
    rate = unitary_learning_rate(group, shape)
    same_rate = id(group) if isinstance(rate, Tensor) else rate
    options = (group["rank"], group["retraction"], group["factorization"], group["maximize"])
    return (*options, same_rate)
