"""What an experiment is: a name, and what is trained or measured at two scales."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from projunn.training.config import TrainConfig

SCALES = ("paper", "cpu")

Row = dict[str, Any]

# What a dry run changes, so that each of its trainings takes two steps of a small network.
_DRY: Mapping[str, Any] = {
    "size": 8,
    "length": 10,
    "hidden": 8,
    "width": 4,
    "depth": 3,
    "dataset": "digits",
    "data": None,
    "batch_size": 4,
    "steps": 2,
    "seconds": None,
    "log_every": 1,
    "device": "cpu",
}


@dataclass(frozen=True)
class Training:
    """One training of an experiment.

    Args:
        label: its name within the experiment, and that of its folder.
        task: the name of the task.
        paper: the options of ``projunn train`` with the paper's sizes and settings.
        cpu: the options that differ at the scale of two CPU cores.
        images: whether it reads the images that ``--data`` names.
    """

    label: str
    task: str
    paper: Mapping[str, Any]
    cpu: Mapping[str, Any] = field(default_factory=dict)
    images: bool = False

    def config(
        self, scale: str, *, seed: int, device: str, data: str | None = None, dry: bool = False
    ) -> TrainConfig:
        """The configuration of its run."""
        options = dict(self.paper) | (dict(self.cpu) if scale == "cpu" else {})
        options |= {"seed": seed, "device": device}
        if self.images and data is not None:
            options |= {"data": data}
        if dry:
            options |= {k: v for k, v in _DRY.items() if k in options or k in ("steps", "log_every")}
        return TrainConfig.for_task(self.task, **options)


@dataclass(frozen=True)
class Measured:
    """What a measurement is told: where its rows and its picture go, how large it is, and on what."""

    folder: Path
    scale: str
    device: str
    seed: int
    data: str | None
    dry: bool


@dataclass(frozen=True)
class Recipe:
    """An experiment: some trainings, or a measurement.

    Args:
        summary: what it shows, and where the paper has it.
        trainings: of it, in order.
        measure: writes the picture of a measurement, and returns its rows.
    """

    summary: str
    trainings: tuple[Training, ...] = ()
    measure: Callable[[Measured], list[Row]] | None = None
