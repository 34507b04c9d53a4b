"""The optimizer step under ``torch.compile``: one graph, whose tensors it changes in place.

Dynamo does not trace an optimizer's ``_init_group``: it calls it, while it traces the step, with empty
lists, and takes what they hold afterwards as inputs of the graph.  So everything that a step changes is
created and listed there, before the trace looks at any state.

    plain parameters      torch.optim's step, traced: Inductor fuses it
    unitary parameters    one operator for each group, which runs what the eager step runs: the same
                          numbers bit for bit.  It changes its arguments in place.
    those of a complex    one more operator for each group.  Inductor compiles no operator that changes
    dtype                 complex tensors (torch 2.11 to 2.13), so this one takes them as pairs of
                          reals and returns new ones, which the graph copies back.

What the operator needs beside tensors is in a `_Plan`, made in the same call of ``_init_group``; what
makes it invalid (another optimizer, state, option or set of gradients) makes Dynamo trace again.
"""

import inspect
import itertools
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from projunn.factored import FactoredTensor
from projunn.manifold import UnitaryParameter
from projunn.optim.member import Member, OptimizerLike
from projunn.optim.parts import part_from_banks
from projunn.optim.recognition import check_parameter
from projunn.parameter import constrained, is_unitary, notice, recognise
from projunn_kernels.operation import Operation, nothing

_RATES = ("lr", "base_lr", "unitary_lr")
_numbers = itertools.count()  # not ids, so that a graph in Inductor's cache fits the next process


@dataclass(frozen=True)
class _Entry:
    """A parameter of a traced step: its number, its layout, and the names of its state.

    ``numbers`` are the names of state that holds complex numbers.
    """

    index: int
    pairs: bool
    blocks: int
    singletons: int
    names: tuple[str, ...]
    numbers: frozenset[str]


class _Plan:
    """Which parameters a traced step is for, and what their tensors are called."""

    def __init__(self, optimizer: OptimizerLike, group: int) -> None:
        self.optimizer = weakref.ref(optimizer)
        self.group = group
        self.entries: list[_Entry] = []

    def check(self, optimizer: OptimizerLike) -> None:
        """Raises RuntimeError if a parameter is plain since the trace, which Dynamo does not notice."""
        groups = optimizer.param_groups
        start = sum(len(group["params"]) for group in groups[: self.group])
        members = [groups[self.group]["params"][entry.index - start] for entry in self.entries]
        if not all(map(is_unitary, members)):
            recognise()  # a conversion of the module may have changed their class
        if not all(map(is_unitary, members)):
            raise RuntimeError(
                "params: a unitary parameter was made a plain one (projunn.unconstrain) after its step"
                " was compiled; make the optimizer anew, and compile the step of that"
            )


_plans: "weakref.WeakValueDictionary[int, _Plan]" = weakref.WeakValueDictionary()


def traced_step(optimizer: OptimizerLike) -> None:
    """The step of an optimizer in the form that Dynamo traces: see the top of this file."""
    assert constrained[0]  # of which Dynamo makes a guard, as of the types of parameters it does not
    calls = []
    for group in optimizer.param_groups:
        for kind in ("real", "complex"):
            weights: list[Tensor] = []
            gradients: list[Tensor] = []
            states: list[Tensor] = []
            plan = optimizer._init_group(group, weights, gradients, states, unitary=kind)
            rates = [group[name] for name in _RATES if isinstance(group[name], Tensor)]
            if weights:
                calls.append((kind, plan, weights, gradients, states, rates))
    # The step without its decorators, which would break the graph.  It calls optimizer._init_group.
    inspect.unwrap(optimizer.plain_rule.step)(optimizer)
    for kind, plan, weights, gradients, states, rates in calls:
        if kind == "real":
            _traced_step_(plan=plan, weights=weights, gradients=gradients, states=states, rates=rates)
            continue
        results = _traced_step(
            plan=plan,
            weights=[_reals(t) for t in weights],
            gradients=[_reals(t) for t in gradients],
            states=[_reals(t) for t in states],
            rates=rates,
        )
        for old, new in zip([*weights, *states], results, strict=True):
            _reals(old).copy_(new)


def _reals(tensor: Tensor) -> Tensor:
    """Complex numbers as pairs of reals; shares memory."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def fill_unitary(
    optimizer: OptimizerLike,
    group: dict[str, Any],
    weights: list[Tensor],
    gradients: list[Tensor],
    states: list[Tensor],
    *,
    kind: str,
) -> int:
    """List the unitary parameters of a group and their state; returns the number of the plan.

    ``kind`` is ``"complex"`` for those of a complex dtype, ``"real"`` for the others.
    """
    groups = optimizer.param_groups
    position = next(i for i, g in enumerate(groups) if g is group)
    if position == 0:
        optimizer.check_options()
        optimizer._count_unitary()
        _complete_states(optimizer)
    plan, number = _Plan(optimizer, position), next(_numbers)
    for index, p in enumerate(group["params"], sum(len(g["params"]) for g in groups[:position])):
        of_kind = p.is_complex() == (kind == "complex")
        if isinstance(p, UnitaryParameter) and p.grad is not None and of_kind:
            state = optimizer.state[p]
            weights.append(p)
            gradients.append(p.grad)
            states.extend(state.values())
            numbers = frozenset(name for name, value in state.items() if value.is_complex())
            layout = p.pairs, p.blocks, p.singletons
            plan.entries.append(_Entry(index, *layout, tuple(state), numbers))
    _plans[number] = plan
    optimizer._plans = (*optimizer._plans, plan)  # lives as long as the optimizer
    return number


def _complete_states(optimizer: OptimizerLike) -> None:
    """Create all state that is missing, before Dynamo looks at any.

    It looks once; when the trace then changes an entry, as torch's SGD does, Dynamo writes back what it
    saw, and what was created meanwhile is gone.
    """
    arrived = []
    for index, (group, p) in enumerate((g, p) for g in optimizer.param_groups for p in g["params"]):
        if not isinstance(p, UnitaryParameter) or p.grad is None:
            continue
        check_parameter(p)
        if p.sketch is not None or isinstance(p.grad, FactoredTensor):
            raise TypeError(
                f"params: a unitary parameter of shape {tuple(p.shape)} has a sketched gradient, whose"
                " step is not traced: call optimizer.step() outside of torch.compile"
            )
        if p.grad.layout != torch.strided:
            raise TypeError(
                f"params: a unitary parameter of shape {tuple(p.shape)} has a {p.grad.layout} gradient,"
                " wanted a dense one under torch.compile"
            )
        member = Member(index, p, p.grad, optimizer.state[p], group)
        if "step" not in member.state:
            arrived.append(p)
        optimizer._complete_state(member, on_device=True)
        part_from_banks(member.state)
    notice(arrived, f"At the first step of {type(optimizer).__name__}", kept=True)
    rule = optimizer.plain_rule._init_group
    lists = len(inspect.signature(inspect.unwrap(rule)).parameters) - 2  # without self and group
    for group in optimizer.param_groups:
        fill_plain(optimizer, group, *([] for _ in range(lists)))


def fill_plain(optimizer: OptimizerLike, group: dict[str, Any], *lists: list[Any]) -> Any:
    """List the other parameters and their state as the plain rule does."""
    plain = [p for p in group["params"] if not isinstance(p, UnitaryParameter)]
    if optimizer.plain_rule is torch.optim.SGD and group["momentum"] and not group["dampening"]:
        # torch creates this buffer in the step, and traces the second step anew because of it.
        for p in plain:
            if p.grad is not None and p.grad.layout == torch.strided:
                state = optimizer.state[p]
                if state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(p)
    own = {**group, "params": plain}
    return optimizer.plain_rule._init_group(optimizer, own, *lists)


def _step_in_place(
    plan: int,
    weights: list[Tensor],
    gradients: list[Tensor],
    states: list[Tensor],
    rates: list[Tensor],
) -> None:
    """The step of a group's unitary parameters.  It touches its arguments and no other tensor."""
    planned = _plans[plan]
    optimizer = planned.optimizer()
    assert optimizer is not None  # Dynamo's guards hold the optimizer
    optimizer._together = None  # which does not see these steps
    planned.check(optimizer)
    group = dict(optimizer.param_groups[planned.group])
    given = iter(rates)
    group |= {name: next(given) for name in _RATES if isinstance(group[name], Tensor)}
    remaining = iter(states)
    members: list[Member] = []
    with torch.no_grad():
        for entry, weight, gradient in zip(planned.entries, weights, gradients, strict=True):
            p = UnitaryParameter(
                weight.detach(),
                False,
                pairs=entry.pairs,
                blocks=entry.blocks,
                singletons=entry.singletons,
            )
            state = {name: next(remaining) for name in entry.names}
            members.append(Member(entry.index, p, gradient, state, group))
        optimizer._unitary_step(members)


def _step_of_copies(
    plan: int,
    weights: list[Tensor],
    gradients: list[Tensor],
    states: list[Tensor],
    rates: list[Tensor],
) -> list[Tensor]:
    """`_step_in_place` of copies, for complex parameters, whose tensors come as pairs of reals.

    Returns new weights, then the new state, each as it came.
    """
    results = [t.clone(memory_format=torch.contiguous_format) for t in (*weights, *states)]
    new_weights, new_states = results[: len(weights)], results[len(weights) :]
    held = (name in entry.numbers for entry in _plans[plan].entries for name in entry.names)
    _step_in_place(
        plan,
        [torch.view_as_complex(weight) for weight in new_weights],
        [torch.view_as_complex(gradient) for gradient in gradients],
        [
            torch.view_as_complex(t) if numbers else t
            for t, numbers in zip(new_states, held, strict=True)
        ],
        rates,
    )
    return results


def _like(weights: list[Tensor], states: list[Tensor], **_: Any) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in (*weights, *states)]


_traced_step_ = Operation(
    name="optimizer_step_",
    eager=_step_in_place,
    fake=nothing,
    on="weights",
    mutates=("weights", "states"),
)
_traced_step = Operation(name="optimizer_step", eager=_step_of_copies, fake=_like, on="weights")
