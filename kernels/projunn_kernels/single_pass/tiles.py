"""How the passes of a step that reads its direction once are tiled."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from projunn_kernels.configs.closed_form import around, neighbours, sizes, warps_for
from projunn_kernels.configs.kernel import Case, Inputs, Kernel, no_complex_half
from projunn_kernels.configs.problem import Config, Device, Problem, power_of_two
from projunn_kernels.constants import PROBE
from projunn_kernels.rules.arguments import NO_RULE, RULES, RuleStep
from projunn_kernels.rules.eager import follow_rule
from projunn_kernels.rules.tiles import CHANGED, drawn_averages, has_form, rule_of
from projunn_kernels.step import eager
from projunn_kernels.step.arguments import FusedStep
from projunn_kernels.step.tiles import step_of

# Real numbers of a row, which stays in registers beside a sum of rows; tiles have 16 columns or more.
MAX_WIDTH = 8192
_RATE = 0.25


def _both_tiles(problem: Problem, device: Device) -> Config:
    p, n = problem, power_of_two(problem.n)
    columns = min(n, max(64, min(256, n // 32)) // p.width)
    return Config(max(16, min(power_of_two(p.m), 2048 // (columns * p.width))), columns, 4)


def _both_candidates(problem: Problem, device: Device) -> list[Config]:
    first = _both_tiles(problem, device)
    # With 64, RMSprop with all of its averages spills on sm_90, and a table has one entry for all rules.
    found = neighbours(problem, first, around(first.columns), tiles=2)
    return [config for config in found if config.rows >= 16]


def _row_tiles(problem: Problem, device: Device) -> Config:
    p, n = problem, power_of_two(problem.n)
    rows = max(1, min(power_of_two(p.m), 4096 // (n * p.width)))
    return Config(rows, n, warps_for(rows * n * p.width, 16))


def _row_candidates(problem: Problem, device: Device) -> list[Config]:
    first = _row_tiles(problem, device)
    return neighbours(problem, first, (first.columns,))


def _small_both(problem: Problem, config: Config) -> Problem:
    """Two tiles and a tail each way, and rows enough to be split."""
    m = max(2 * config.rows + 3, 131)
    return Problem(problem.operation, problem.pairs, 1, m, max(2 * config.columns + 5, m), 3)


def _small_rows(problem: Problem, config: Config) -> Problem:
    """Rows as wide as they are, two panels of them and a tail."""
    m = min(max(3 * config.rows - 1, 19), problem.n)
    return Problem(problem.operation, problem.pairs, 1, m, problem.n, 3)


def _case(
    problem: Problem,
    inputs: Inputs,
    *,
    gradient: torch.dtype | None = None,
    rule: str = "none",
    mean: bool = False,
    other: bool = False,
    nesterov: bool = False,
) -> Case:
    """Three steps, of which the second has its W^H R from the first, and the third looks at it.

    In those two one matrix has no direction, and one has one that is not finite.
    """
    p = problem
    direction = p.dtype if gradient is None else gradient
    rate = _RATE / p.n**0.5 if rule == "lion" else _RATE  # whose directions are that much longer

    def step(tensors: dict[str, Any], number: int) -> FusedStep:
        return step_of(tensors, tensors["directions"][number], rate, factorization="single_pass")

    def by_rule(tensors: dict[str, Any], number: int) -> RuleStep | None:
        given = tensors["directions"][number]
        return None if rule == "none" else rule_of(tensors, given, rule, nesterov)

    def results(tensors: dict[str, Any]) -> list[Tensor]:
        """W, what is warm in R and V, the counters, and the averages."""
        warm = (tensors["basis"] - PROBE * tensors["probe"]).split([p.m, p.n], -2)
        averages = (tensors[name] for name in CHANGED if tensors[name] is not None)
        return [tensors["weight"], *warm, tensors["skipped"], *averages]

    def launch(**tensors: Any) -> list[Tensor]:
        from projunn_kernels.single_pass.launch import SinglePass

        run = SinglePass(step(tensors, 0), rule=by_rule(tensors, 0))
        changed = (tensors["weight"], tensors["basis"])
        for number in range(2):
            run(step(tensors, number), rule=by_rule(tensors, number))
            increment_version([t for t in changed if not t.is_inference()])
        last = step(tensors, 1), by_rule(tensors, 1)
        SinglePass(last[0], run.ahead, mend=True, rule=last[1])(last[0], rule=last[1])
        return [] if inputs.hollow else results(tensors)

    def in_eager(**tensors: Any) -> list[Tensor]:
        tensors["directions"] = tensors["directions"].to(tensors["weight"].dtype)
        for number in (0, 1, 1):
            along, followed = step(tensors, number), by_rule(tensors, number)
            if followed is not None:
                directions = list(follow_rule(followed))
                missed = [torch.zeros_like(tensors["missed"])]
                along = replace(along, directions=directions, missed=missed)
            eager.fused_step(along)
        return results(tensors)

    tensors = {
        "weight": inputs.unitary(p.matrices, p.m, p.n, p.dtype),
        "directions": inputs.normal(2, p.matrices, p.m, p.n, dtype=direction, scale=p.n**-0.5),
        "basis": inputs.normal(p.matrices, p.m + p.n, 1, dtype=p.dtype, scale=p.n**-0.5),
        "probe": inputs.normal(p.matrices, p.m + p.n, 1, dtype=p.dtype, scale=p.n**-0.5),
        "skipped": inputs.full(0.0),
        **_averages(p, inputs, rule, mean, other),
    }
    if p.matrices > 1 and not inputs.hollow:
        later = tensors["directions"][1]  # type: ignore[index]
        later[-1, -1, -1] = torch.inf
        if rule == "none" and p.matrices > 2:
            later[0] = 0.0
    return Case(tensors, launch, in_eager, changed=("weight", "basis", "skipped", *CHANGED))


def _averages(
    problem: Problem, inputs: Inputs, rule: str, mean: bool, other: bool
) -> dict[str, Tensor | None]:
    """Averages of steps as long as those along the gradient; the squares are far from zero."""
    found = drawn_averages(problem, inputs, rule, mean, other)
    if not inputs.hollow:
        for name in ("means", "others"):
            if (tensor := found[name]) is not None:
                tensor.mul_(problem.n**-0.5)
        if (squares := found["squares"]) is not None:
            squares.add_(1.0)
    return found


def _allowed(problem: Problem, variant: Mapping[str, Any]) -> bool:
    form = {name: value for name, value in variant.items() if name != "gradient"}
    if form["rule"] == "none":
        return form == NO_RULE and no_complex_half(problem, variant)
    return has_form(**form) and variant["gradient"] is None


def _problem(name: str) -> Any:
    def problem(matrices: int, m: int, n: int, k: int, pairs: bool) -> Problem | None:
        found = Problem(name, pairs, k, m, n, matrices)
        return found if k == 1 and m <= n and n * found.width <= MAX_WIDTH else None

    return problem


def _standard(name: str) -> list[Problem]:
    lengths = {False: (1024, 4096, 2048, 8192), True: (1024, 4096, 2048)}
    return [Problem(name, pairs, 1, n, n, 1) for pairs in (False, True) for n in lengths[pairs]]


_COMPILED = [(1, n, n) for n in (1024, 9, 4096, 1000)]
BOTH_PRODUCTS = Kernel(
    name="both_products",
    functions=("both_products_kernel",),
    closed_form=_both_tiles,
    candidates=_both_candidates,
    case=_case,
    small=_small_both,
    variants={
        "gradient": (None, torch.bfloat16, torch.float16),
        "rule": ("none", *RULES),
        **dict.fromkeys(("mean", "other", "nesterov"), (False, True)),
    },
    allowed=_allowed,
    problem=_problem("both_products"),
    standard=_standard("both_products"),
    compiled=sizes("both_products", _COMPILED, (1,)),
)
ROTATE_AHEAD = Kernel(
    name="rotate_ahead",
    functions=("rotate_ahead_kernel", "ahead_is_sound_kernel"),
    closed_form=_row_tiles,
    candidates=_row_candidates,
    case=_case,
    small=_small_rows,
    variants={},
    problem=_problem("rotate_ahead"),
    standard=_standard("rotate_ahead"),
    compiled=[*sizes("rotate_ahead", _COMPILED, (1,)), Problem("rotate_ahead", False, 1, 8192, 8192, 1)],
    numbers=lambda problem: 2 * problem.matrices * problem.m * problem.n,
)
