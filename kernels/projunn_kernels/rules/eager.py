"""The rules in PyTorch."""

from typing import Any

import torch
from torch import Tensor

from projunn_kernels.rules.arguments import RuleNumbers, RuleStep


def follow_rule(step: RuleStep) -> Tensor:
    """Move the averages: see `projunn_kernels.follow_rule_`."""
    numbers = RuleNumbers(*step.numbers)
    directions = []
    for i, gradient in enumerate(step.gradients):
        mean, square, other = (
            lists[i] if lists else None for lists in (step.means, step.squares, step.others)
        )
        size = torch.linalg.vector_norm(gradient, torch.inf, dim=(-2, -1))
        sound, missed = size < numbers.limit, step.missed[i]
        count = step.counted[i] if step.counted else step.steps
        taken = (count - missed).double()[..., None, None]
        averages = {"mean": mean, "square": square, "other": other}
        own = {name: _as_numbers(step, gradient, t) for name, t in averages.items() if t is not None}
        direction, moved = _direction(step, numbers, gradient, own, taken)
        everywhere = sound[..., None, None]
        for name, average in own.items():
            average.copy_(torch.where(everywhere, moved[name], average))
        missed.add_(sound.logical_not())
        directions.append(torch.where(everywhere, direction, torch.nan))
    return torch.stack(directions)


def _as_numbers(step: RuleStep, gradient: Tensor, average: Tensor) -> Tensor:
    """An average of the state in the shape of the gradient; shares memory."""
    return torch.view_as_complex(average) if step.pairs and average.ndim > gradient.ndim else average


def _direction(
    step: RuleStep, numbers: RuleNumbers, gradient: Tensor, own: dict[str, Tensor], taken: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The direction and the averages of one parameter as they are after the step."""
    moved: dict[str, Tensor] = {}
    if "mean" in own:
        moved["mean"] = numbers.mean_decay * own["mean"] + numbers.mean_weight * gradient
    if "square" in own:
        moved["square"] = numbers.square_decay * own["square"] + numbers.square_weight * _square(
            gradient
        )
    if step.rule == "momentum":
        mean = moved["mean"]
        return (gradient + numbers.momentum * mean if step.nesterov else mean), moved
    if step.rule == "lion":
        return torch.lerp(gradient, own["mean"], numbers.momentum).sgn(), moved
    average = moved["square"]
    if step.rule == "adamw":
        if "other" in own:
            average = moved["other"] = torch.maximum(own["other"], average)
        shares = [
            (1 - beta**taken).to(average.dtype) for beta in (numbers.mean_decay, numbers.square_decay)
        ]
        spread = average.sqrt() * shares[1] ** -0.5 + numbers.eps
        return moved["mean"] / (spread * shares[0]), moved
    if "mean" in own:
        average = (average - _square(moved["mean"])).clamp_min(0)
    direction = gradient / (average.sqrt() + numbers.eps)
    if "other" in own:
        direction = moved["other"] = numbers.momentum * own["other"] + direction
    return direction, moved


def _square(tensor: Any) -> Tensor:
    """|z|^2, real."""
    return torch.view_as_real(tensor).square().sum(-1) if tensor.is_complex() else tensor.square()
