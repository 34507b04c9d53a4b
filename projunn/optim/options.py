"""The options of unitary parameters in a parameter group: their checks, and their learning rate."""

from typing import Any

import torch
from torch import Tensor

from projunn.lowrank import FACTORIZATIONS
from projunn_kernels import RETRACTIONS

# The default unitary learning rate is lr / 32: lr_divider in the experiments of arXiv 2203.05483.
_LR_DIVIDER = 32


def unitary_learning_rate(group: dict[str, Any]) -> Any:
    """The learning rate of a group's unitary parameters: a float, or a tensor if ``lr`` is one."""
    lr, unitary_lr, base_lr = group["lr"], group["unitary_lr"], group["base_lr"]
    if unitary_lr is None:
        return lr / _LR_DIVIDER
    if isinstance(base_lr, Tensor):  # without waiting for its device
        return unitary_lr * torch.where(base_lr != 0, lr / base_lr, 1.0)
    return unitary_lr * (lr / base_lr) if base_lr else unitary_lr


def check_options(group: dict[str, Any]) -> None:
    """Raise ValueError if an option of a parameter group is out of its range."""
    rank, every, unitary_lr = group["rank"], group["polish_every"], group["unitary_lr"]
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ValueError(f"rank: got {rank!r}, wanted a positive integer")
    for name, allowed in (("retraction", RETRACTIONS), ("factorization", FACTORIZATIONS)):
        if group[name] not in allowed:
            raise ValueError(f"{name}: got {group[name]!r}, wanted one of {', '.join(allowed)}")
    if unitary_lr is not None and not isinstance(unitary_lr, Tensor) and not unitary_lr >= 0:
        raise ValueError(f"unitary_lr: got {unitary_lr!r}, wanted a number >= 0 or None (lr / 32)")
    if every is not None and (not isinstance(every, int) or every < 0):
        raise ValueError(
            f"polish_every: got {every!r}, wanted a number of steps, 0 (never) or None (automatic)"
        )
