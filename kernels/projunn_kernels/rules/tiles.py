"""How the rules are tiled: one configuration, which is not tuned."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from projunn_kernels.configs.closed_form import sizes
from projunn_kernels.configs.kernel import Case, Inputs, Kernel
from projunn_kernels.configs.problem import Config, Device, Problem, power_of_two
from projunn_kernels.rules import eager
from projunn_kernels.rules.arguments import RULES, RuleNumbers, RuleStep

_STEPS, _WARPS, _MOST = 5, 4, 1024


def _tiles(problem: Problem, device: Device) -> Config:
    return Config(1, min(_MOST, power_of_two(problem.m * problem.n)), _WARPS)


def _allowed(problem: Problem, variant: Mapping[str, Any]) -> bool:
    rule, mean, other = (variant[name] for name in ("rule", "mean", "other"))
    if variant["nesterov"] and rule != "momentum":
        return False
    if other and rule not in ("rmsprop", "adamw"):
        return False
    return (mean or rule == "rmsprop") and (rule == "adamw" or not variant["counted"])


def _case(
    problem: Problem,
    inputs: Inputs,
    *,
    rule: str,
    mean: bool,
    other: bool,
    nesterov: bool,
    counted: bool,
) -> Case:
    p, shape = problem, (problem.matrices, problem.m, problem.n)
    numbers = RuleNumbers(1e9, 0.9, 0.1, 0.99, 0.01, 1e-4, 0.8).in_order()

    def step(tensors: Mapping[str, Any]) -> RuleStep:
        lists: dict[str, Any] = {
            name: [] if tensors[name] is None else [tensors[name]] for name in _LISTS
        }
        return RuleStep(**lists, numbers=numbers, rule=rule, nesterov=nesterov, steps=_STEPS)

    def results(tensors: dict[str, Any], directions: Tensor) -> list[Tensor]:
        changed = (tensors[name] for name in _CHANGED)
        return [directions, *(tensor for tensor in changed if tensor is not None)]

    def launch(**tensors: Any) -> list[Tensor]:
        from projunn_kernels.rules.launch import Followed

        directions = Followed(step(tensors))(step(tensors))
        return [] if inputs.hollow else results(tensors, _finite(directions))

    def in_eager(**tensors: Any) -> list[Tensor]:
        return results(tensors, _finite(eager.follow_rule(step(tensors))))

    others = p.dtype if rule == "rmsprop" else torch.float32
    squares = inputs.normal(*shape) if rule in ("rmsprop", "adamw") else None
    if squares is not None and not inputs.hollow:
        squares.abs_()
    tensors = {
        "gradients": inputs.normal(*shape, dtype=p.dtype),
        "means": inputs.normal(*shape, dtype=p.dtype) if mean else None,
        "squares": squares,
        "others": inputs.normal(*shape, dtype=others) if other else None,
        "missed": inputs.full(1, p.matrices, dtype=torch.int64),
        "counted": inputs.full(_STEPS, dtype=torch.int64) if counted else None,
    }
    if not inputs.hollow and p.matrices > 1:
        tensors["gradients"][0, -1, -1] = torch.inf  # type: ignore[index]
    return Case(tensors, launch, in_eager, changed=_CHANGED)


_CHANGED = ("means", "squares", "others", "missed")
_LISTS = ("gradients", *_CHANGED, "counted")


def _finite(directions: Tensor) -> Tensor:
    """Directions with a number in place of NaN, which no two results share."""
    return torch.where(directions.isnan(), 7.0, directions)


RULE = Kernel(
    name="rule",
    functions=("sound_kernel", "rule_kernel"),
    closed_form=_tiles,
    case=_case,
    small=lambda problem, config: Problem("rule", problem.pairs, 1, 67, 97, 2),
    variants={
        "rule": RULES,
        **dict.fromkeys(("mean", "other", "nesterov", "counted"), (False, True)),
    },
    allowed=_allowed,
    compiled=sizes("rule", [(1, 1024, 1024), (3, 5, 7), (1, 4096, 4096)], (1,)),
    numbers=lambda problem: 4 * problem.matrices * problem.m * problem.n,
)
