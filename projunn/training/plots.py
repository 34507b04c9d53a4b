"""The picture of a run: loss against the naive baseline, unitarity defect, captured energy."""

from math import isfinite
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from projunn.tasks import Task
from projunn.training.config import TrainConfig
from projunn.training.learner import LogPoint

COLORS = {
    "unitary": "#0b6e99",
    "lstm": "#d9730d",
    "gru": "#8f6ac0",
    "rnn": "#7a7a7a",
    "linear": "#d9730d",
    "plain": "#d9730d",
    "cayley": "#448361",
}
_AXIS = {"step": "step", "seconds": "seconds of training"}
STYLE: Any = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}


def plot_run(path: Path, task: Task, config: TrainConfig, points: list[LogPoint]) -> None:
    """Draw the log points of a run into a PNG file."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 4), layout="constrained")
        loss, defect, energy = figure.subplots(1, 3, width_ratios=(2, 1, 1))
        figure.suptitle(title(task, config), fontweight="bold")
        # A budget in seconds is shared by time: then the slower model's curve is as long.
        axis = "step" if config.seconds is None else "seconds"
        _draw_loss(loss, task, points, axis)
        unitary = [p for p in points if p.defect is not None]
        _draw_defect(defect, unitary, axis)
        _draw_energy(energy, config, unitary, axis)
        figure.savefig(path, dpi=130)


def title(task: Task, config: TrainConfig) -> str:
    """What was trained, in one line."""
    name = config.task
    if config.task in ("adding", "copying"):
        name += f", length {config.length}"
    if config.task == "images":
        return f"{config.dataset}: {config.model}, rank {config.rank}, {config.retraction}"
    width = f"n = {config.size}" if config.task == "unitary" else f"{config.hidden} hidden units"
    return f"{name}: {width}, rank {config.rank}, {config.retraction}"


def _draw_loss(axes: Axes, task: Task, points: list[LogPoint], axis: str) -> None:
    for body in dict.fromkeys(p.model for p in points):
        own = [p for p in points if p.model == body]
        color = COLORS[body]
        at = [getattr(p, axis) for p in own]
        if task.loss_name != "relative error":
            axes.plot(at, [p.train_loss for p in own], color=color, alpha=0.3, linewidth=1)
        label = f"{body} ({own[-1].test_loss:.2g} after {own[-1].seconds:.0f} s)"
        axes.plot(at, [p.test_loss for p in own], color=color, linewidth=2, label=label)
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
    if points and task.loss_name != "relative error":
        title += " (faint: in training)"
    axes.set(xlabel=_AXIS[axis], ylabel=task.loss_name, yscale="log", title=title)
    if points:
        axes.legend(loc="best", framealpha=0.85, edgecolor="none")


def _draw_defect(axes: Axes, points: list[LogPoint], axis: str) -> None:
    defects = [max(p.defect or 0.0, 1e-9) for p in points]
    axes.plot([getattr(p, axis) for p in points], defects, color=COLORS["unitary"])
    top = max([1e-5, *(2 * d for d in defects if isfinite(d))])
    axes.set(xlabel=_AXIS[axis], yscale="log", ylim=(1e-8, max(1e-4, top)))
    axes.set_title("unitarity defect  ‖WᴴW − I‖ / √n")
    axes.grid(axis="y", alpha=0.3)


def _draw_energy(axes: Axes, config: TrainConfig, points: list[LogPoint], axis: str) -> None:
    shown = [p for p in points if p.energy is not None]
    at = [getattr(p, axis) for p in shown]
    axes.plot(at, [p.energy or 0.0 for p in shown], color=COLORS["unitary"])
    axes.set(xlabel=_AXIS[axis], ylim=(0, 1.02), title=f"gradient energy at rank {config.rank}")
    axes.grid(axis="y", alpha=0.3)
