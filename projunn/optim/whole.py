"""Optimizers that hold one of ours for a share of their parameters, as ``ZeroRedundancyOptimizer`` does.

Each process of a job steps its own share with an optimizer of ours.  The default learning rate depends
on the number of unitary parameters of all shares, which the optimizer around it knows, and tells before
each step.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from projunn.optim.options import angle_of_each
from projunn.parameter import is_unitary
from projunn_kernels import private


def is_trained(parameter: Tensor) -> bool:
    """Whether a step can turn a parameter: one that is not frozen and has entries."""
    return parameter.requires_grad and parameter.numel() > 0


class Counts(NamedTuple):
    """The number of unitary parameters, and of those among them that are trained; the parameters."""

    every: int = 0
    trained: int = 0
    held: tuple[Tensor, ...] = ()  # a weak reference would keep PyTorch from swapping one


def count_unitary(groups: list[dict[str, Any]]) -> Counts:
    """Counts those of some parameter groups."""
    unitary = [p for group in groups for p in group["params"] if is_unitary(p)]
    return Counts(len(unitary), sum(map(is_trained, unitary)), tuple(unitary))


def watch_wholes() -> None:
    """Makes optimizers that hold one of ours tell it how many unitary parameters the others have."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        _watch()


@cache
def _watch() -> None:
    register_optimizer_step_pre_hook(_before_step)


def _before_step(optimizer: Any, *_: Any) -> None:
    """PyTorch calls this before a step of any optimizer."""
    within = private.optimizer_within(optimizer)
    if not getattr(within, "keeps_unitary", False):
        return
    whole = count_unitary(optimizer.param_groups).trained
    within.count_elsewhere(whole - count_unitary(within.param_groups).trained)
    for group in optimizer.param_groups:
        if group.get("default_angle") is not None:
            group["default_angle"] = angle_of_each(whole)
