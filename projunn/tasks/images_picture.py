"""The picture of a run on images: accuracy, norm gain of every layer, filters of the first one."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from projunn.nn import UnitaryConv2d
from projunn.tasks.measurements import Trained

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
    figure.set_size_inches(12, 6.4)
    grid = figure.add_gridspec(2, _SHOWN, height_ratios=(2.4, 1))
    half = _SHOWN // 2
    accuracy = figure.add_subplot(grid[0, :half])
    _draw_accuracy(accuracy, models, axis, radius)
    accuracy.axhline(100 / classes, color="black", linestyle=":", linewidth=1.2)
    _draw_gains(figure.add_subplot(grid[0, half:]), models)
    _draw_filters([figure.add_subplot(grid[1, i]) for i in range(_SHOWN)], models[0].network)


def _draw_accuracy(axes: Axes, models: list[Trained], axis: str, radius: float | None) -> None:
    for model in models:
        points = model.points
        if not points:
            continue
        heights = [100 * (p.test_accuracy or 0.0) for p in points]
        label = f"{model.name} ({heights[-1]:.1f} % after {points[-1].seconds:.0f} s)"
        axes.plot(model.at(axis), heights, color=model.color, linewidth=2, label=label)
        if radius is not None:
            heights = [100 * p.measured["certified"] for p in points]
            label = f"certified at {radius:.3g} ({heights[-1]:.1f} %)"
            axes.plot(model.at(axis), heights, "--", color=model.color, linewidth=1.5, label=label)
    axes.set(xlabel=axis, ylabel="%", ylim=(0, 101), title="accuracy on held-out images")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", framealpha=0.85, edgecolor="none")


def _draw_gains(axes: Axes, models: list[Trained]) -> None:
    for model in models:
        gains = model.points[-1].measured["gains"] if model.points else None
        if gains:
            heights = [max(g, 1e-12) for g in gains]
            axes.plot(range(1, len(heights) + 1), heights, "o-", ms=4, color=model.color)
    axes.axhline(1, color="black", linestyle=":", linewidth=1.2)
    axes.set(xlabel="convolution", yscale="log", title="norm gain ‖K * x‖ / ‖x‖ of every layer")


def _draw_filters(axes: list[Axes], model: nn.Module) -> None:
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
    axes[0].set_title("filters of the first layer, centred", loc="left", fontsize=9)
