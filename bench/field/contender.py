"""What a method is to the protocol: a name, the rates that are tried, and a model with its optimizer."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from projunn.tasks import Task

LR = 1e-3  # of what is not unitary, unless a method has one rate for all


class Optimizers:
    """Several optimizers that step together."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


Made = tuple[nn.Module, Optimizers]


@dataclass(frozen=True)
class Contender:
    """A method.

    Args:
        name: in tables and pictures.
        make: the model and its optimizer for a task and a learning rate, drawn from torch's generator.
            Raises ImportError where a package is missing.
        rates: the learning rates that are tried.
        color, dashes: of its line in pictures.
    """

    name: str
    make: Callable[[Task, float], Made]
    rates: tuple[float, ...]
    color: str
    dashes: str = "-"


BY_DEFAULT = 0.0  # in the place of a rate: that of the optimizer when it is given none


def low_rank(
    make: Callable[..., Made], rates: tuple[float, ...], rank: int, retraction: str, dashes: str = "-"
) -> Contender:
    """Our method, by the paper's names: ``make`` also takes the rank and the retraction."""
    letter, color = {"exp": ("T", "#0b6e99"), "polar": ("D", "#e0a100")}[retraction]
    made = partial(make, rank=rank, retraction=retraction)
    return Contender(f"projUNN-{letter}, k = {rank}", made, rates, color, dashes)


def by_default(make: Callable[..., Made], rank: int) -> Contender:
    """Our method with no rate given."""
    made = partial(make, rank=rank, retraction="exp")
    return Contender(f"projUNN-T, k = {rank}, default rate", made, (BY_DEFAULT,), "#5aa9c9", "-.")


def others(model: nn.Module, apart: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters of a model without some of them."""
    known = {id(parameter) for parameter in apart}
    return [parameter for parameter in model.parameters() if id(parameter) not in known]
