"""The unitary parameters that take their steps in one call."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from projunn.manifold import UnitaryParameter
from projunn.optim.by_kernels import Following
from projunn.optim.drift import polish, polish_alike, steps_to_polish
from projunn.optim.gradient import DenseGradient, FactoredGradient
from projunn.optim.member import Member, OptimizerLike
from projunn.optim.options import WARM, unitary_learning_rate
from projunn.optim.stopping import is_looked_at, steps_to_look, stopped
from projunn_kernels import (
    FactoredStep,
    FollowedStep,
    FusedStep,
    RuleStep,
    factored_step_,
    followed_step_,
    fused_step_,
)
from projunn_kernels.backends import on_device
from projunn_kernels.batches import surely_all

_NOTHING = torch.empty(0, device="cpu")  # in the place of a gradient that is no longer needed


class Part:
    """Parameters that step in one call, or one that steps alone.

    Args:
        members: the parameters.
        gradients: their gradients.
    """

    def __init__(self, members: list[Member], gradients: list[Any]) -> None:
        self.members, self.gradients = members, gradients
        self._groups = list({id(member.group): member.group for member in members}.values())
        self._shape: Sequence[int] = gradients[0].shape  # (.., m, n)
        self._on_a_gpu = members[0].parameter.device.type != "cpu"
        # The number of the last step, and of the first one after which a polish or a look may be due.
        self._last, self._due = -1, 0
        self.watched = False  # whether it is asked if steps have stopped (`projunn.optim.stopping`)
        self._directions: list[Tensor] | None = None  # of this step, if kernels have found them
        self._taken: Tensor

    def is_as_it_was(self, optimizer: OptimizerLike) -> bool:
        """Whether the options of its groups still agree: a schedule may have changed those of one."""
        if len(self._groups) == 1:
            return True
        first, *others = (shared_options(optimizer, group, self._shape) for group in self._groups)
        return all(options == first for options in others)

    def follow(self, optimizer: OptimizerLike) -> None:
        """Have the rule find the directions, which moves its averages."""
        for gradient in self.gradients:
            gradient.follow(optimizer)

    def take(self) -> None:
        """Take the steps."""
        raise NotImplementedError

    def _rate(self) -> tuple[float, Tensor | None]:
        """The learning rate, as ``rate`` and ``scale`` of a step."""
        group = self.gradients[0].group
        rate = unitary_learning_rate(group, self._shape)
        sign = -1.0 if group["maximize"] else 1.0
        if not isinstance(rate, Tensor):
            return sign * float(rate), None
        p = self.members[0].parameter
        if self._on_a_gpu and rate.device.type == "cpu":
            return sign * rate.item(), None
        return sign, rate.to(p.device, p.dtype.to_real()) if self._on_a_gpu else rate

    def settle(self, optimizer: OptimizerLike) -> None:
        """Count what was missed, polish what is due, and look whether steps have stopped."""
        due = self._is_due() and optimizer._polishes
        counted = self._all_counted()
        if counted and not due:
            return
        polished = counted and self._on_a_gpu and polish_alike(self.members, self._taken)
        if polished and self._last < 0:  # counted on the device: nobody asks if they have stopped
            return
        masks = (self._taken,) if len(self.members) == 1 else self._taken.unbind()
        for member, gradient, taken in zip(self.members, self.gradients, masks, strict=True):
            mask = member.mask(taken, gradient.active, gradient.sound_if_asked)
            if due and not polished:
                polish(member, mask)
        if due and self.watched:
            self._look(optimizer)
        if due:
            quiet = min(min(steps_to_polish(m), steps_to_look(m)) for m in self.members)
            self._due = self._last + quiet

    def forget(self) -> None:
        """Let go of gradients and directions, which the next backward would otherwise find in memory."""
        self._directions = None
        for member, gradient in zip(self.members, self.gradients, strict=True):
            member.grad = _NOTHING
            if isinstance(gradient, DenseGradient):
                gradient.grad = gradient.direction = _NOTHING

    def _is_due(self) -> bool:
        """Whether a polish or a look may be due; always where the host has not seen every step."""
        count: Tensor = self.members[0].state["step"]
        before, self._last = self._last, int(count.item()) if count.device.type == "cpu" else -1
        return not before + 1 == self._last < self._due

    def _look(self, optimizer: OptimizerLike) -> None:
        """Parameters whose steps have stopped step along the tangent part from now on."""
        answers = stopped(self.members, self.gradients)
        for member, gradient, (has,) in zip(self.members, self.gradients, answers, strict=True):
            if has and isinstance(gradient, DenseGradient):
                optimizer._start_basis(member, "tangent")
            elif has:
                gradient.redraw()

    def _all_counted(self) -> bool:
        """Whether the call has counted every step that was missed."""
        if self.gradients[0].active is not None:
            return False
        if self._directions is not None or self._all_taken:
            return True
        return not [g for g in self.gradients if g.sound_if_asked is not None]

    def _has_taken(self, taken: Tensor) -> None:
        """Keep the mask of the steps taken: of one parameter (*batch), else (parameters, *batch)."""
        self._taken, self._all_taken = taken, not self._on_a_gpu and surely_all(taken)


def _changed_by_step(
    members: list[Member], weights: list[Tensor], factorization: str
) -> dict[str, list[Tensor]]:
    """The tensors that a step changes, and the probes of its bases, by the names of its arguments."""
    basis, probe = WARM[factorization]
    states = [member.state for member in members]
    names = {"bases": basis, "probes": probe, "skipped": "skipped", "missed": "missed"}
    found = {name: [state[own] for state in states] for name, own in names.items()}
    return {"weights": weights, **found}


class Alone(Part):
    """A parameter whose factors are drawn at random or found by SVD."""

    def take(self) -> None:
        (gradient,) = self.gradients
        gradient.take()
        self._has_taken(gradient.taken)

    def _all_counted(self) -> bool:
        return False


class Alike(Part):
    """Parameters of one layout with dense gradients, or gradients of some of their matrices."""

    def __init__(self, members: list[Member], gradients: list[DenseGradient]) -> None:
        super().__init__(members, gradients)
        first = gradients[0]
        self.factorization = first.factorization
        weights = [gradient.stored_weight for gradient in gradients]
        self._tensors = _changed_by_step(members, weights, self.factorization)
        self._plain = first.active is None and all(gradient.is_plain for gradient in gradients)
        self._along: list[Tensor] | None = None  # the gradients, if the step is along them as they are
        # The rule as kernels follow it, if they do; and its part of a step that is one with the rule's.
        self._following: Following | None = None
        self._followed: RuleStep | None = None
        self._shown = False  # whether somebody looks at the directions of that step
        self._follows_in_a_pass = False
        if first.active is None and on_device(first.stored_weight):
            self._following = Following(gradients)
            kind: dict[str, Any] = {"pairs": first.parameter.pairs, **self._tensors}
            step = FusedStep(directions=[], rate=0.0, factorization=self.factorization, **kind)
            self._follows_in_a_pass = step.follows_in_a_pass

    def follow(self, optimizer: OptimizerLike) -> None:
        self._along = self._directions = self._followed = None
        if self._plain and not [group for group in self._groups if optimizer._averages(group)]:
            self._along = [gradient.grad for gradient in self.gradients]
            return
        if self._following is not None:
            step = self._following.step_of(optimizer, self._groups)
            if step is not None and self._takes_gradients():
                self._followed = step
                return
            if step is not None:
                self._directions = self._following.directions(step)
                return
        super().follow(optimizer)

    def _takes_gradients(self) -> bool:
        """Whether the step finds its directions from the gradients, and others see them if they want."""
        if not self._follows_in_a_pass or self.gradients[0].group["averages"] != "gradient":
            return False
        self._shown = self.watched and is_looked_at(self.members[0])
        return self.factorization != "single_pass" or not self._shown

    def take(self) -> None:
        first = self.gradients[0]
        rate, scale = self._rate()
        options = {"rate": rate, "scale": scale, "retraction": first.group["retraction"]}
        given: dict[str, Any] = options | self._tensors
        if self._followed is not None:
            given["factorization"] = self.factorization
            if self._shown:
                grad = first.grad
                seen = given["directions"] = grad.new_empty(len(self.gradients), *grad.shape)
                for gradient, direction in zip(self.gradients, seen.unbind(), strict=True):
                    gradient.direction = direction
            self._has_taken(followed_step_(FollowedStep(**(vars(self._followed) | given))))
            return
        directions = self._directions if self._along is None else self._along
        if directions is None:
            directions = [gradient.store(gradient.direction) for gradient in self.gradients]
        elif self._along is None and self._following is not None:  # the rule has counted what was missed
            given["missed"] = self._following.not_counted
        step = FusedStep(
            directions=directions,
            pairs=first.parameter.pairs,
            active=first.active,
            factorization=self.factorization,
            **given,
        )
        self._has_taken(fused_step_(step))

    def forget(self) -> None:
        """Let go also of the gradients that served as directions."""
        super().forget()
        self._along = self._followed = None

    def _all_counted(self) -> bool:
        return self._along is not None or self._followed is not None or super()._all_counted()

    def _look(self, optimizer: OptimizerLike) -> None:
        for gradient, along in zip(self.gradients, self._along or (), strict=False):
            gradient.direction = along
        super()._look(optimizer)


class Sketched(Part):
    """Parameters of one layout with gradients in factors."""

    def __init__(self, members: list[Member], gradients: list[FactoredGradient]) -> None:
        super().__init__(members, gradients)
        weights = [member.parameter.detach() for member in members]
        self._tensors = _changed_by_step(members, weights, "subspace")

    def take(self) -> None:
        first = self.gradients[0]
        lefts, rights = zip(*(gradient.direction for gradient in self.gradients), strict=True)
        rate, scale = self._rate()
        step = FactoredStep(
            lefts=list(lefts),
            rights=list(rights),
            rate=rate,
            scale=scale,
            sketched=[gradient.factors[0] for gradient in self.gradients],
            retraction=first.group["retraction"],
            pairs=first.parameter.pairs,
            **self._tensors,
        )
        self._has_taken(factored_step_(step))
        starts = [gradient.start_of_sketch() for gradient in self.gradients]
        torch._foreach_copy_(starts, self._tensors["bases"])


class Bank(Alike):
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
        self._state_tensors = [value for one in states for value in one.values()]
        self._addresses = list(map(Tensor.data_ptr, self._state_tensors))
        pairs, weights = first.parameter.pairs, torch.stack(self._weights)
        bank = UnitaryParameter(weights, False, pairs=pairs, blocks=1)
        shown = tuple(member.parameter for member in members)
        member = Member(first.index, bank, torch.empty_like(weights), state, first.group, shown=shown)
        super().__init__([member], [DenseGradient(member)])
        self._stepped = self._tensors["weights"][0].unbind()
        groups = {id(owner.group): owner.group for owner in members}
        self._groups = list(groups.values())

    def is_as_it_was(self, optimizer: OptimizerLike) -> bool:
        """Also whether the state of the members is still where it was."""
        moved = self._addresses != list(map(Tensor.data_ptr, self._state_tensors))
        return not moved and super().is_as_it_was(optimizer)

    def follow(self, optimizer: OptimizerLike) -> None:
        bank = self.gradients[0]
        torch.stack(self._weights, out=self._tensors["weights"][0])
        bank.feed(torch.stack([gradient.grad for gradient in self._sources]))
        bank.follow(optimizer)

    def settle(self, optimizer: OptimizerLike) -> None:
        super().settle(optimizer)
        torch._foreach_copy_(self._weights, self._stepped)
        for own, bank in self._states.values():
            torch._foreach_copy_(own, bank.unbind())
        if not self._all_taken:
            missed = self._taken.expand(self._tensors["missed"][0].shape).logical_not()
            counts = missed.reshape(len(self._owners), -1).sum(1)
            for owner, count in zip(self._owners, counts, strict=True):
                owner.state["skipped"].add_(count)

    def forget(self) -> None:
        """Let go also of the gradients that were copied into the bank."""
        super().forget()
        for owner, gradient in zip(self._owners, self._sources, strict=True):
            owner.grad = gradient.grad = _NOTHING

    def _look(self, optimizer: OptimizerLike) -> None:
        (answers,) = stopped(self.members, self.gradients, len(self._owners))
        for owner, has in zip(self._owners, answers, strict=True):
            if has:
                optimizer._start_basis(owner, "tangent")


def part_from_banks(state: dict[str, Any]) -> None:
    """Replaces the entries of a state that are views of a bank by copies: a trace would follow views."""
    for name, value in state.items():
        if value.untyped_storage().nbytes() != value.numel() * value.element_size():
            state[name] = value.clone()


# Options that do not change the steps of unitary parameters, or only by their learning rate.
_IGNORED = {"lr", "unitary_lr", "default_angle", "weight_decay", "foreach", "differentiable", "fused"}


def shared_options(
    optimizer: OptimizerLike, group: dict[str, Any], shape: Sequence[int]
) -> tuple[Any, ...]:
    """The options on which a step of matrices (.., m, n) depends: those of one call have the same."""
    rate = unitary_learning_rate(group, shape)
    same_rate = id(group) if isinstance(rate, Tensor) else rate
    options = [group.get(name) for name in optimizer.defaults if name not in _IGNORED]
    return (*(v if type(v) in _COMPARABLE else _comparable(v) for v in options), same_rate)


_COMPARABLE = {bool, int, float, str, type(None)}


def _comparable(value: Any) -> Any:
    """A value that can be a key of a dictionary: tensors are equal to themselves alone."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_comparable, value))
    return id(value) if isinstance(value, Tensor) else value
