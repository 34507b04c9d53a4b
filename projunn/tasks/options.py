"""The options of ``projunn train`` that tasks declare, and all options that a task is made from."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import torch


def at_least_one(name: str, got: int) -> None:
    """Raise ValueError if a count is below 1."""
    if got < 1:
        raise ValueError(f"{name}: got {got}, wanted at least 1")


def above_zero(name: str, got: float | None) -> None:
    """Raise ValueError if a number is not finite or not above 0; None stands for no number."""
    if got is not None and not 0 < got < float("inf"):
        raise ValueError(f"{name}: got {got}, wanted a finite number above 0")


def one_of(name: str, got: str, wanted: Iterable[str]) -> None:
    """Raise ValueError if a word is none of those that are wanted."""
    if got not in wanted:
        raise ValueError(f"{name}: got {got!r}, wanted one of {', '.join(wanted)}")


@dataclass(frozen=True)
class Option:
    """An option of ``projunn train`` that only some tasks have.

    Several tasks may declare an option of one name, each in its own words and with its own choices.

    Args:
        name: the name of the flag, with underscores; also the attribute of `TaskOptions`.
        kind: int, float, str, or bool.  A bool becomes a flag without a value.
        default: the value that holds where neither the user nor ``Task.defaults`` gives another.
        help: what ``projunn train --help`` says about it.
        group: the heading that ``--help`` lists it under.
        choices: the values it may have; any if there are none.
        limit: raises ValueError, given the name and a value, if the value is out of bounds.
        elsewhere: the error if it is given for a task that does not declare it, in the place of the
            general one.
        only: another option of the task, and the value of it without which this one has no effect.
    """

    name: str
    kind: type
    default: Any
    help: str
    group: Literal["task", "model", "optimizer"] = "task"
    choices: tuple[str, ...] = ()
    limit: Callable[[str, Any], None] | None = None
    elsewhere: str | None = None
    only: tuple[str, str] | None = None

    def check(self, got: Any) -> None:
        """Raise ValueError if the option may not have this value."""
        if self.choices:
            one_of(self.name, got, self.choices)
        if self.limit is not None:
            self.limit(self.name, got)


SKETCH_RANK = Option(
    "sketch_rank",
    int,
    None,
    "rank of sketched gradients; default: dense gradients",
    group="optimizer",
    limit=above_zero,
    elsewhere="sketch_rank: the models of this task have dense gradients; wanted none",
)


class TaskOptions(SimpleNamespace):
    """The options that a task is made from: its own, and those of every run that tasks may depend on.

    ``TaskOptions(length=100, batch_size=32).length`` is 100.

    Args:
        batch_size: examples of one training step.
        complex: whether the weights, and the numbers of a task that has a choice, are complex.
        compare: the models that are trained beside the unitary one.
        seed: the seed of the weights and of the data.
        declared: options that the task declares.  The task fills in the defaults of the others.
    """

    batch_size: int
    complex: bool
    compare: tuple[str, ...]
    seed: int

    def __init__(
        self,
        *,
        batch_size: int = 50,
        complex: bool = False,
        compare: tuple[str, ...] = (),
        seed: int = 0,
        **declared: Any,
    ) -> None:
        general = {"batch_size": batch_size, "complex": complex, "compare": compare, "seed": seed}
        super().__init__(**general, **declared)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return torch.complex64 if self.complex else torch.float32

    def completed(self, declared: Iterable[Option]) -> "TaskOptions":
        """These options and the defaults of the declared ones that are missing, all of them checked."""
        values = {option.name: option.default for option in declared} | vars(self)
        for option in declared:
            option.check(values[option.name])
        return TaskOptions(**values)
