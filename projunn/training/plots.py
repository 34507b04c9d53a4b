"""The picture of a run, as a PNG file: a title, and what the task draws under it."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from projunn.tasks import Task
from projunn.tasks.measurements import Trained
from projunn.training.config import TrainConfig
from projunn.training.learner import Learner

_STYLE: Any = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}


def plot_run(path: Path, task: Task, config: TrainConfig, learners: list[Learner]) -> None:
    """Draw the learners of a run into a PNG file."""
    models = [Trained(x.body, task.color(x.body), x.model, x.points) for x in learners]
    # With a budget in seconds the axis is time, along which the curves of all models are equally long.
    axis = "step" if config.seconds is None else "seconds"
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(12, 4), layout="constrained")
        title = f"{task.title}, rank {config.rank}, {config.retraction}"
        figure.suptitle(title, fontweight="bold")
        task.draw(figure, models, axis, config.rank)
        figure.savefig(path, dpi=130)
