"""How the rules are tiled: one configuration each, which is not tuned."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from projunn_kernels.configs.closed_form import sizes
from projunn_kernels.configs.kernel import Case, Inputs, Kernel
from projunn_kernels.configs.problem import Config, Device, Problem, power_of_two
from projunn_kernels.products.tiles import small_product
from projunn_kernels.rules import eager
from projunn_kernels.rules.arguments import RULES, RuleNumbers, RuleStep

_STEPS, _WARPS, _MOST = 5, 4, 1024


def _tiles(problem: Problem, device: Device) -> Config:
    return Config(1, min(_MOST, power_of_two(problem.m * problem.n)), _WARPS)


def _product_tiles(problem: Problem, device: Device) -> Config:
    """Half as large as those of `adjoint_product`: the tiles of averages are in registers too."""
    p, columns = problem, min(power_of_two(problem.n), 64 if problem.columns <= 4 else 32)
    return Config(max(1, min(power_of_two(p.m), 2048 // (p.columns * p.width * columns))), columns, 4)


def has_form(rule: str, mean: bool, other: bool, nesterov: bool) -> bool:
    """Whether a rule has these averages."""
    if nesterov and rule != "momentum":
        return False
    return (mean or rule == "rmsprop") and not (other and rule not in ("rmsprop", "adamw"))


def _allowed(problem: Problem, variant: Mapping[str, Any]) -> bool:
    form = {name: value for name, value in variant.items() if name != "counted"}
    return has_form(**form) and (variant["rule"] == "adamw" or not variant["counted"])


def drawn_averages(
    problem: Problem, inputs: Inputs, rule: str, mean: bool, other: bool
) -> dict[str, Tensor | None]:
    """Random averages of a rule, None for those that it does not have, and the counters."""
    p, shape = problem, (problem.matrices, problem.m, problem.n)
    others = p.dtype if rule == "rmsprop" else torch.float32
    squares = inputs.normal(*shape) if rule in ("rmsprop", "adamw") else None
    if squares is not None and not inputs.hollow:
        squares.abs_()
    return {
        "means": inputs.normal(*shape, dtype=p.dtype) if mean else None,
        "squares": squares,
        "others": inputs.normal(*shape, dtype=others) if other else None,
        "missed": inputs.full(1, p.matrices, dtype=torch.int64),
    }


def rule_of(tensors: Mapping[str, Any], gradients: Tensor, rule: str, nesterov: bool) -> RuleStep:
    """The step of a rule for the one parameter of a case."""
    lists: dict[str, Any] = {
        name: [] if tensors.get(name) is None else [tensors[name]] for name in (*CHANGED, "counted")
    }
    numbers = RuleNumbers(1e9, 0.9, 0.1, 0.99, 0.01, 1e-4, 0.8).in_order()
    options: dict[str, Any] = {"rule": rule, "nesterov": nesterov, "steps": _STEPS}
    return RuleStep(gradients=[gradients], numbers=numbers, **options, **lists)


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
    p = problem

    def step(tensors: Mapping[str, Any]) -> RuleStep:
        return rule_of(tensors, tensors["gradients"], rule, nesterov)

    def results(tensors: dict[str, Any], directions: Tensor) -> list[Tensor]:
        changed = (tensors[name] for name in CHANGED)
        return [directions, *(tensor for tensor in changed if tensor is not None)]

    def launch(**tensors: Any) -> list[Tensor]:
        from projunn_kernels.rules.launch import Followed

        directions = Followed(step(tensors))(step(tensors))
        return [] if inputs.hollow else results(tensors, _finite(directions))

    def in_eager(**tensors: Any) -> list[Tensor]:
        return results(tensors, _finite(eager.follow_rule(step(tensors))))

    tensors = {
        "gradients": inputs.normal(p.matrices, p.m, p.n, dtype=p.dtype),
        **drawn_averages(p, inputs, rule, mean, other),
        "counted": inputs.full(_STEPS, dtype=torch.int64) if counted else None,
    }
    if not inputs.hollow and p.matrices > 1:
        tensors["gradients"][0, -1, -1] = torch.inf  # type: ignore[index]
    return Case(tensors, launch, in_eager, changed=CHANGED)


def _product_case(
    problem: Problem, inputs: Inputs, *, rule: str, mean: bool, other: bool, nesterov: bool
) -> Case:
    """The directions, ``D^H R`` and the averages."""
    p = problem

    def step(tensors: Mapping[str, Any]) -> RuleStep:
        return rule_of(tensors, tensors["gradients"], rule, nesterov)

    def results(tensors: dict[str, Any], directions: Tensor, product: Tensor) -> list[Tensor]:
        """Without what the kernel does not write, of a gradient that is not finite."""
        changed = (tensors[name] for name in CHANGED)
        known = torch.where(product.isnan().any(-1).any(-1)[:, None, None], 7.0, directions)
        return [known, _finite(product), *(tensor for tensor in changed if tensor is not None)]

    def launch(**tensors: Any) -> list[Tensor]:
        from projunn_kernels.launching import address_table
        from projunn_kernels.rules.launch import FollowedProduct

        run = FollowedProduct(step(tensors), address_table([tensors["basis"]]), p.k)
        directions = run(step(tensors), address_table([tensors["gradients"]]))
        directions = torch.view_as_complex(directions) if p.pairs else directions
        return [] if inputs.hollow else results(tensors, directions, run.partial.sum(1))

    def in_eager(**tensors: Any) -> list[Tensor]:
        (directions,) = eager.follow_rule(step(tensors))
        product = tensors["basis"].mH @ directions
        return results(tensors, directions, product.conj())

    tensors = {
        "gradients": inputs.normal(p.matrices, p.m, p.n, dtype=p.dtype),
        "basis": inputs.normal(p.matrices, p.m, p.k, dtype=p.dtype, scale=p.m**-0.5),
        **drawn_averages(p, inputs, rule, mean, other),
    }
    if not inputs.hollow and p.matrices > 1:
        tensors["gradients"][0, -1, -1] = torch.inf  # type: ignore[index]
    return Case(tensors, launch, in_eager, changed=CHANGED)


CHANGED = ("means", "squares", "others", "missed")  # in the step of a rule


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
RULE_PRODUCT = Kernel(
    name="rule_product",
    functions=("rule_product_kernel",),
    closed_form=_product_tiles,
    case=_product_case,
    small=small_product,
    variants={"rule": RULES, **dict.fromkeys(("mean", "other", "nesterov"), (False, True))},
    allowed=lambda problem, variant: has_form(**variant),
    compiled=sizes("rule_product", [(1, 1024, 1024), (3, 100, 100)]),
    numbers=lambda problem: 4 * problem.matrices * problem.m * problem.n,
)
