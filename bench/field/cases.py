"""The tasks of the comparison, their sizes, and the budget of each training on a CPU."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.field import choices, convolutions, matrices, recurrent
from bench.field.contender import Contender
from projunn.tasks import TASKS, Task, TaskOptions


@dataclass(frozen=True)
class Case:
    """A task of fixed sizes.

    Args:
        name: on the command line and in rows.
        task: the name of the task.
        contenders: the methods.
        seconds: of CPU time, the budget of one training, as steps at the pace of the method.
        options: those of the task.
        images: how many the file that ``--data`` names has to hold out; 0 if the task reads none.
        points: of a curve, at equal distances.
        seeds: of the trainings at the best rate; the first is that of the trials.
        rates_of: another case, whose best rate each method gets in place of trials.
    """

    name: str
    task: str
    contenders: tuple[Contender, ...]
    seconds: float
    options: dict[str, Any] = field(default_factory=dict)
    images: int = 0
    points: int = 12
    seeds: int = 3
    rates_of: str | None = None

    def make(self, seed: int, data: Path | None = None) -> Task:
        """The task for a seed.

        Raises:
            ValueError: another number of images is held out, so that scores would be of other data.
        """
        task = TASKS[self.task]
        given = self.options | ({"data": str(data)} if self.images else {})
        taken = {"batch_size", *(option.name for option in task.declares)}
        chosen = {**task.defaults_for(given), **given}
        made = task(TaskOptions(**{k: v for k, v in chosen.items() if k in taken}, seed=seed))
        if self.images and len(made.test_data()[1]) != self.images:
            found = f"{data} holds {len(made.test_data()[1]):,} images out"
            raise ValueError(f"data: {found}, wanted {self.images:,} for {self.name} (docs/protocol.md)")
        return made


_ALL = (
    Case("unitary", "unitary", matrices.CONTENDERS, 5, {"size": 512}),
    Case("copying-200", "copying", recurrent.CONTENDERS, 14, {"length": 200}),
    Case("adding-200", "adding", recurrent.CONTENDERS, 120, {"length": 200}),
    Case("copying-1000", "copying", recurrent.CONTENDERS, 46, {"length": 1000}),
    Case(
        "adding-750",
        "adding",
        recurrent.CONTENDERS,
        1950,
        {"length": 750},
        seeds=1,
        rates_of="adding-200",
    ),
    Case("pixels-digits", "pixels", recurrent.CONTENDERS, 9.5, {"permuted": True}),
    Case(
        "pixels-mnist",
        "pixels",
        recurrent.CONTENDERS,
        30,
        {"permuted": True, "hidden": 116, "batch_size": 128},
        images=2000,
        points=4,  # an evaluation takes as long as ten steps
    ),
    Case("choices-copying", "copying", choices.CONTENDERS, 9, {"length": 200}),
    Case("choices-pixels", "pixels", choices.CONTENDERS, 8, {"permuted": True}),
    Case("images-digits", "images", convolutions.CONTENDERS, 8, {"width": 8}),
    Case("images-mnist", "images", convolutions.CONTENDERS, 32, {"width": 8}, images=2000),
    Case(
        "deep-mnist",
        "images",
        convolutions.CONTENDERS,
        48,
        {"model": "deep", "width": 8, "depth": 100, "augment": False},
        images=1000,
        points=3,
    ),
)
CASES = {case.name: case for case in _ALL}
SHORT = ("unitary", "copying-200")
