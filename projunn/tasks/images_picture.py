"""The picture of a run on images: accuracy, norm gain of every layer, filters of the first one."""

from math import isfinite
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator
from torch import nn

from projunn.nn import UnitaryConv2d
from projunn.tasks.measurements import Trained
from projunn.tasks.picture import draw_curve, finish_axis, legend_below, scale_heights

_SHOWN = 8  # filters


def draw_images(
    figure: Figure, models: list[Trained], axis: str, classes: int, radius: float | None
) -> None:
    """Draw a run into an empty figure; the filters are those of its first model.

    Args:
        figure, models, axis: as in `projunn.tasks.Task.draw`.
        classes: how many answers there are to guess from.
        radius: that of the certified accuracy, or None if it was not measured.
    """
    figure.set_size_inches(12, 7)
    parts: Any = figure.subfigures(2, 1, height_ratios=(3, 1))
    above, below = parts
    accuracy, gains = above.subplots(1, 2)
    _draw_accuracy(accuracy, [model for model in models if model.points], axis, radius)
    label = f"a guess: {100 / classes:.3g} %"
    accuracy.axhline(100 / classes, color="black", linestyle=":", linewidth=1.2, label=label)
    _draw_gains(gains, models)
    legend_below(above, accuracy)
    _draw_filters(below, models[0].network)


def _draw_accuracy(axes: Axes, models: list[Trained], axis: str, radius: float | None) -> None:
    for model in models:
        points, last = model.points, model.points[-1]
        heights = [100 * (p.test_accuracy or 0.0) for p in points]
        label = f"{model.name}: {heights[-1]:.1f} % after {last.step} steps, {last.seconds:.0f} s"
        draw_curve(axes, model, axis, heights, label)
        if radius is not None:
            heights = [100 * p.measured["certified"] for p in points]
            label = f"{model.name}, certified at {radius:.3g}: {heights[-1]:.1f} %"
            axes.plot(model.at(axis), heights, "s--", color=model.color, ms=3, label=label)
    axes.set(ylabel="right answers (%)", ylim=(0, 101), title="accuracy on held-out images")
    finish_axis(axes, axis)


def _draw_gains(axes: Axes, models: list[Trained]) -> None:
    every = [1.0]
    for number, model in enumerate(models):
        gains = model.points[-1].measured["gains"] if model.points else None
        if gains:
            heights = [max(g, 1e-12) for g in gains]
            every += heights
            wider = len(models) - 1 - number  # than those drawn on it
            places = range(1, len(heights) + 1)
            axes.plot(places, heights, "o-", ms=4 + 3 * wider, lw=2 + 2 * wider, color=model.color)
    axes.axhline(1, color="black", linestyle=":", linewidth=1.2)
    axes.annotate("norm kept", (0.01, 1), xycoords=("axes fraction", "data"), va="bottom", fontsize=9)
    unitary = [m for m in models if any(isinstance(x, UnitaryConv2d) for x in m.network.modules())]
    gains = [g for m in unitary if m.points for g in m.points[-1].measured["gains"] or ()]
    why = " (unitary below 1: fewer outputs)" if min(gains, default=1.0) < 1 - 1e-3 else ""
    axes.set(xlabel=f"convolution, from the input on{why}", ylabel="‖K * x‖ / ‖x‖")
    axes.set_title("norm gain of every convolution, at the end")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    scale_heights(axes, every)
    if axes.get_yscale() == "linear":
        axes.set_ylim(top=1.15 * max(height for height in every if isfinite(height)))


def _draw_filters(figure: FigureBase, model: nn.Module) -> None:
    axes: list[Axes] = list(figure.subplots(1, _SHOWN))
    for ax in axes:
        ax.set_axis_off()
    layer = next((m for m in model.modules() if isinstance(m, UnitaryConv2d)), None)
    if layer is None:
        return
    height, width = layer.spatial_size
    with torch.no_grad():
        taps = layer.spatial_filter()[:, 0].roll((height // 2, width // 2), (-2, -1)).cpu()
    for ax, picture in zip(axes, taps, strict=False):
        top = float(picture.abs().max()) or 1.0
        ax.imshow(picture.numpy(), cmap="RdBu", vmin=-top, vmax=top)
    title = "filters of the first layer, centred; each scaled to its own largest tap (blue: above 0)"
    figure.suptitle(title, fontsize=9)
