"""The picture of a run: loss against the naive answer, unitarity defect, energy of the gradient."""

from math import isfinite
from typing import ClassVar, Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from projunn.tasks.measurements import BLUE, LogPoint, Trained

_AXIS = {"step": "step", "seconds": "seconds of training"}


class Scored(Protocol):
    """The attributes of a task that the picture shows."""

    loss_name: ClassVar[str]
    scores_training_loss: ClassVar[bool]
    naive: float


def draw_run(figure: Figure, task: Scored, models: list[Trained], axis: str, rank: int) -> None:
    """Draw a run into an empty figure; the arguments are those of `projunn.tasks.Task.draw`."""
    loss, defect, energy = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    _draw_loss(loss, task, [model for model in models if model.points], axis)
    unitary = [p for model in models for p in model.points if p.defect is not None]
    _draw_defect(defect, unitary, axis)
    _draw_energy(energy, unitary, axis, rank)


def _draw_loss(axes: Axes, task: Scored, models: list[Trained], axis: str) -> None:
    for model in models:
        points, at, color = model.points, model.at(axis), model.color
        if task.scores_training_loss:
            axes.plot(at, [p.train_loss for p in points], color=color, alpha=0.3, linewidth=1)
        label = f"{model.name} ({points[-1].test_loss:.2g} after {points[-1].seconds:.0f} s)"
        axes.plot(at, [p.test_loss for p in points], color=color, linewidth=2, label=label)
    axes.axhline(task.naive, color="black", linestyle=":", linewidth=1.2)
    axes.annotate(
        f"naive {task.naive:.3g}",
        (1, task.naive),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        xytext=(-4, 4),
        ha="right",
    )
    title = "loss on held-out data"
    if models and task.scores_training_loss:
        title += " (faint: in training)"
    axes.set(xlabel=_AXIS[axis], ylabel=task.loss_name, yscale="log", title=title)
    if models:
        axes.legend(loc="best", framealpha=0.85, edgecolor="none")


def _draw_defect(axes: Axes, points: list[LogPoint], axis: str) -> None:
    defects = [max(p.defect or 0.0, 1e-9) for p in points]
    axes.plot([getattr(p, axis) for p in points], defects, color=BLUE)
    top = max([1e-5, *(2 * d for d in defects if isfinite(d))])
    axes.set(xlabel=_AXIS[axis], yscale="log", ylim=(1e-8, max(1e-4, top)))
    axes.set_title("unitarity defect  ‖WᴴW − I‖ / √n")
    axes.grid(axis="y", alpha=0.3)


def _draw_energy(axes: Axes, points: list[LogPoint], axis: str, rank: int) -> None:
    shown = [p for p in points if p.energy is not None]
    at = [getattr(p, axis) for p in shown]
    axes.plot(at, [p.energy or 0.0 for p in shown], color=BLUE)
    axes.set(xlabel=_AXIS[axis], ylim=(0, 1.02), title=f"gradient energy at rank {rank}")
    axes.grid(axis="y", alpha=0.3)
