"""The optimizer step under ``torch.compile``: one graph, whose tensors it changes in place.

Dynamo does not trace an optimizer's ``_init_group``: it calls it, while it traces the step, with empty
lists, and takes what they hold afterwards as inputs of the graph.  So everything that a step changes is
created and listed there, before the trace looks at any state.

    plain parameters      torch.optim's step, traced: Inductor fuses it
    unitary parameters    one operator for each group, which runs what the eager step runs: the same
                          numbers bit for bit, complex ones (as pairs of reals) too, for which
                          Inductor has no code

What the operator needs beside tensors is in a `_Plan`, made in the same call of ``_init_group``; what
makes it invalid (another optimizer, state, option or set of gradients) makes Dynamo trace again.
"""

import inspect
import itertools
import weakref
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from projunn.factored import FactoredTensor
from projunn.manifold import UnitaryParameter
from projunn.optim.member import Member
from projunn_kernels.operation import Operation, nothing


class Traceable(Protocol):
    """What a traced step asks of an optimizer; `projunn.optim.base.UnitaryOptimizer` has it."""

    plain_rule: ClassVar[Any]
    param_groups: list[dict[str, Any]]
    state: Any
    _plans: tuple[Any, ...]

    def _init_group(self, group: dict[str, Any], *lists: list[Any], unitary: bool = False) -> Any: ...

    def _complete_state(self, member: Member, on_device: bool = False) -> None: ...

    def _unitary_step(self, members: list[Member]) -> None: ...


_RATES = ("lr", "base_lr", "unitary_lr")
_numbers = itertools.count()  # not ids: a graph in Inductor's cache fits the next process too


class _Plan:
    """Which parameters a traced step is for, and what their tensors are called."""

    def __init__(self, optimizer: Traceable, group: int) -> None:
        self.optimizer = weakref.ref(optimizer)
        self.group = group
        self.entries: list[tuple[int, bool, int, tuple[str, ...]]] = []  # index, pairs, blocks, names


_plans: "weakref.WeakValueDictionary[int, _Plan]" = weakref.WeakValueDictionary()


def traced_step(optimizer: Traceable) -> None:
    """A step, to be traced."""
    calls = []
    for group in optimizer.param_groups:
        weights: list[Tensor] = []
        gradients: list[Tensor] = []
        states: list[Tensor] = []
        plan = optimizer._init_group(group, weights, gradients, states, unitary=True)
        rates = [group[name] for name in _RATES if isinstance(group[name], Tensor)]
        calls.append((plan, weights, gradients, states, rates))
    # Below its decorators, which break the graph.  It calls optimizer._init_group.
    inspect.unwrap(optimizer.plain_rule.step)(optimizer)
    for plan, weights, gradients, states, rates in calls:
        if weights:
            _traced_unitary_step(
                plan=plan, weights=weights, gradients=gradients, states=states, rates=rates
            )


def fill_unitary(
    optimizer: Traceable,
    group: dict[str, Any],
    weights: list[Tensor],
    gradients: list[Tensor],
    states: list[Tensor],
) -> int:
    """List the unitary parameters of a group and their state; the number of the plan."""
    groups = optimizer.param_groups
    position = next(i for i, g in enumerate(groups) if g is group)
    if position == 0:
        _complete_states(optimizer)
    plan, number = _Plan(optimizer, position), next(_numbers)
    for index, p in enumerate(group["params"], sum(len(g["params"]) for g in groups[:position])):
        if isinstance(p, UnitaryParameter) and p.grad is not None:
            state = optimizer.state[p]
            weights.append(p)
            gradients.append(p.grad)
            states.extend(state.values())
            plan.entries.append((index, p.pairs, p.blocks, tuple(state)))
    _plans[number] = plan
    optimizer._plans = (*optimizer._plans, plan)  # lives as long as the optimizer
    return number


def _complete_states(optimizer: Traceable) -> None:
    """Create all state that is missing, before Dynamo looks at any.

    It looks once; when the trace then changes an entry, as torch's SGD does, Dynamo writes back what it
    saw, and what was created meanwhile is gone.
    """
    for index, (group, p) in enumerate((g, p) for g in optimizer.param_groups for p in g["params"]):
        if not isinstance(p, UnitaryParameter) or p.grad is None:
            continue
        if isinstance(p.grad, FactoredTensor):
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
        optimizer._complete_state(member, on_device=True)
    rule = optimizer.plain_rule._init_group
    lists = len(inspect.signature(inspect.unwrap(rule)).parameters) - 2  # but self and group
    for group in optimizer.param_groups:
        fill_plain(optimizer, group, *([] for _ in range(lists)))


def fill_plain(optimizer: Traceable, group: dict[str, Any], *lists: list[Any]) -> Any:
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


def _unitary_step(
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
    group = dict(optimizer.param_groups[planned.group])
    given = iter(rates)
    group |= {name: next(given) for name in _RATES if isinstance(group[name], Tensor)}
    remaining = iter(states)
    members: list[Member] = []
    with torch.no_grad():
        for entry, weight, gradient in zip(planned.entries, weights, gradients, strict=True):
            index, pairs, blocks, names = entry
            p = UnitaryParameter(weight.detach(), False, pairs=pairs, blocks=blocks)
            state = {name: next(remaining) for name in names}
            members.append(Member(index, p, gradient, state, group))
        optimizer._unitary_step(members)


_traced_unitary_step = Operation(
    name="optimizer_step_",
    eager=_unitary_step,
    fake=nothing,
    on="weights",
    mutates=("weights", "states"),
)
