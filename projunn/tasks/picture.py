"""The picture of a run: loss against the naive answer, unitarity defect, energy of the gradient.

A picture shows what was measured: few points are marked one by one, an axis of values within a decade is
linear and starts at zero, and what does not fit on an axis is said.  The legend stands below the axes.
"""

from math import isfinite
from typing import ClassVar, Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from projunn.tasks.measurements import BLUE, LogPoint, Trained

_AXIS = {"step": "step", "seconds": "training time (s)"}
_FEW = 25  # points of a curve that are marked one by one
_FLOOR = 1e-8  # of the defects that are drawn


class Scored(Protocol):
    """The attributes of a task that the picture shows."""

    loss_name: str
    scores_training_loss: ClassVar[bool]
    naive: float


def draw_run(figure: Figure, task: Scored, models: list[Trained], axis: str, rank: int) -> None:
    """Draw a run into an empty figure; the arguments are those of `projunn.tasks.Task.draw`."""
    figure.set_size_inches(12, 4.6)
    loss, defect, energy = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    models = [model for model in models if model.points]
    _draw_loss(loss, task, models, axis)
    _draw_defect(defect, models, axis)
    _draw_energy(energy, models, axis, rank)
    legend_below(figure, loss)


def draw_curve(axes: Axes, model: Trained, axis: str, heights: list[float], label: str = "") -> None:
    """Draw a measurement of a model over the axis; few points are marked."""
    mark = "o" if len(heights) <= _FEW else ""
    axes.plot(model.at(axis), heights, color=model.color, marker=mark, ms=4, linewidth=2, label=label)


def finish_axis(axes: Axes, axis: str) -> None:
    """Name the axis of steps or seconds, which starts at 0 and has whole numbers of steps."""
    axes.set_xlabel(_AXIS[axis])
    axes.set_xlim(left=0, right=max(1e-3, axes.get_xlim()[1]))
    if axis == "step":
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def scale_heights(axes: Axes, heights: list[float]) -> None:
    """A logarithmic axis for positive heights over more than a decade, else one from 0."""
    finite = [h for h in heights if isfinite(h)]
    if finite and min(finite) > 0 and max(finite) > 10 * min(finite):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(
            LogLocator(subs=(1,) if max(finite) > 1e3 * min(finite) else (1, 2, 5))
        )
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)


def legend_below(figure: FigureBase, axes: Axes) -> None:
    """A legend of the lines of some axes, outside of all axes, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower left", ncols=3, frameon=False, fontsize=9)


def _draw_loss(axes: Axes, task: Scored, models: list[Trained], axis: str) -> None:
    heights = [task.naive]
    for model in models:
        last = model.points[-1]
        losses = [p.test_loss for p in model.points]
        heights += losses
        label = f"{model.name}: {last.test_loss:.3g} after {last.step} steps, {last.seconds:.0f} s"
        draw_curve(axes, model, axis, losses, label)
    if task.scores_training_loss:
        for model in models:
            losses = [p.train_loss for p in model.points]
            heights += losses
            mark = "." if len(losses) <= _FEW else ""
            (line,) = axes.plot(model.at(axis), losses, color=model.color, marker=mark, linewidth=1)
            line.set(alpha=0.4, label=f"{model.name}, in training")
    label = f"a naive guess: {task.naive:.3g}"
    axes.axhline(task.naive, color="black", linestyle=":", linewidth=1.2, label=label)
    axes.set(ylabel=task.loss_name, title="loss on held-out data")
    lost = {m.name for m in models for p in m.points if not isfinite(p.test_loss)}
    if lost:
        said = f"not finite, not drawn: {', '.join(sorted(lost))}"
        axes.text(0.99, 0.98, said, transform=axes.transAxes, ha="right", va="top", color="#b00020")
    scale_heights(axes, heights)
    finish_axis(axes, axis)


def _draw_defect(axes: Axes, models: list[Trained], axis: str) -> None:
    top = 1e-5
    for model in models:
        defects = [max(p.defect, _FLOOR) for p in model.points if p.defect is not None]
        if len(defects) == len(model.points):
            draw_curve(axes, model, axis, defects)
            top = max([top, *(2 * d for d in defects if isfinite(d))])
    axes.set(yscale="log", ylim=(_FLOOR, max(1e-4, top)), title="unitarity defect")
    axes.set_ylabel("‖WᴴW − I‖ / √n, the largest")
    axes.grid(axis="y", alpha=0.3)
    finish_axis(axes, axis)


def _draw_energy(axes: Axes, models: list[Trained], axis: str, rank: int) -> None:
    shown = [m for m in models if any(p.energy is not None for p in m.points)]
    for model in shown:
        points: list[LogPoint] = [p for p in model.points if p.energy is not None]
        part = Trained(model.name, model.color, model.network, points)
        draw_curve(axes, part, axis, [p.energy or 0.0 for p in points])
    axes.set(ylim=(0, 1.02), title=f"gradient within rank {rank}", ylabel="share of its energy")
    if not shown:
        said = "not measured: the gradients\nare sketched"
        axes.text(0.5, 0.5, said, transform=axes.transAxes, ha="center", va="center", color=BLUE)
    axes.grid(axis="y", alpha=0.3)
    finish_axis(axes, axis)
