"""Measurements of a model on a task, and how they are shown."""

from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

# The colours of the models in pictures.  The unitary model is blue.
BLUE, ORANGE, PURPLE, GREY, GREEN = "#0b6e99", "#d9730d", "#8f6ac0", "#7a7a7a", "#448361"


@dataclass(frozen=True)
class Score:
    """Loss on held-out data, and the share of right answers where the task has answers."""

    loss: float
    accuracy: float | None = None


@dataclass(frozen=True)
class LogPoint:
    """A line of ``metrics.jsonl``.

    Args:
        model: the name of the model.
        step: how many steps it has taken.
        seconds: how long it has trained, without the evaluations.
        train_loss: the mean loss of the steps since the last point.
        test_loss, test_accuracy: the `Score`.
        defect: the largest unitarity defect of its matrices.
        energy: the share of the last gradient's energy that a step of the rank in use can follow.
        skipped: the steps of single matrices that were not taken (`UnitaryOptimizer.skipped_steps`).
        measured: the values of the metrics that tasks declare.
    """

    model: str
    step: int
    seconds: float
    train_loss: float
    test_loss: float
    test_accuracy: float | None
    defect: float | None
    energy: float | None
    skipped: int | None
    measured: dict[str, Any] = field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """The fields by name, with the entries of ``measured`` in its place."""
        values = dict(vars(self))
        return values | values.pop("measured")

    @classmethod
    def from_flat(cls, values: dict[str, Any]) -> "LogPoint":
        """The inverse of `flat`."""
        own = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        return cls(**own, measured={k: v for k, v in values.items() if k not in own})


@dataclass(frozen=True)
class Metric:
    """A number, or a list of numbers, that one task measures beside loss and accuracy.

    Args:
        name: its key in ``metrics.jsonl``.
        format: how its value is printed, for instance ``"{:.1%}"``; without one it is not printed.
        heading: the head of its column in the table of results; default: the name.  The task's options
            may stand in it, as in ``"certified at {options.certify}"``.
    """

    name: str
    format: str = ""
    heading: str = ""

    def text(self, point: LogPoint) -> str | None:
        """Its value at a point as it is printed; None if there is nothing to print."""
        value = point.measured.get(self.name)
        return None if value is None or not self.format else self.format.format(value)


@dataclass(frozen=True)
class Trained:
    """A model of a run as its picture shows it: name, colour, network, and what it has logged."""

    name: str
    color: str
    network: nn.Module
    points: list[LogPoint]

    def at(self, axis: str) -> list[float]:
        """Where its points lie on the axis: ``"step"`` or ``"seconds"``."""
        return [getattr(point, axis) for point in self.points]
