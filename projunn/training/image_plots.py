"""The picture of a run on images: accuracy, norm gain of every layer, filters of the first one."""

from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from projunn.nn import UnitaryConv2d
from projunn.tasks import Images
from projunn.training.learner import Learner, LogPoint
from projunn.training.plots import COLORS, STYLE, title

_SHOWN = 8


def plot_images(path: Path, task: Images, learners: list[Learner]) -> None:
    """Draw the learners of a run into a PNG file."""
    config = learners[0].config
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 6.4), layout="constrained")
        grid = figure.add_gridspec(2, _SHOWN, height_ratios=(2.4, 1))
        figure.suptitle(title(task, config), fontweight="bold")
        half = _SHOWN // 2
        axis = "step" if config.seconds is None else "seconds"
        _draw_accuracy(figure.add_subplot(grid[0, :half]), task, learners, axis)
        _draw_gains(figure.add_subplot(grid[0, half:]), learners)
        _draw_filters([figure.add_subplot(grid[1, i]) for i in range(_SHOWN)], learners[0].model)
        figure.savefig(path, dpi=130)


def _draw_accuracy(axes: Axes, task: Images, learners: list[Learner], axis: str) -> None:
    for learner in learners:
        points: list[LogPoint] = learner.points
        if not points:
            continue
        heights = [100 * (p.test_accuracy or 0.0) for p in points]
        label = f"{learner.body} ({heights[-1]:.1f} % after {points[-1].seconds:.0f} s)"
        color = COLORS[learner.body]
        at = [getattr(p, axis) for p in points]
        axes.plot(at, heights, color=color, linewidth=2, label=label)
        certified = [p.certified for p in points if p.certified is not None]
        if len(certified) == len(points):
            heights = [100 * share for share in certified]
            label = f"certified at {learner.config.certify:.3g} ({heights[-1]:.1f} %)"
            axes.plot(at, heights, "--", color=color, linewidth=1.5, label=label)
    axes.axhline(100 / task.output_size, color="black", linestyle=":", linewidth=1.2)
    axes.set(xlabel=axis, ylabel="%", ylim=(0, 101), title="accuracy on held-out images")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", framealpha=0.85, edgecolor="none")


def _draw_gains(axes: Axes, learners: list[Learner]) -> None:
    for learner in learners:
        gains = learner.points[-1].gains if learner.points else None
        if gains:
            heights = [max(g, 1e-12) for g in gains]
            axes.plot(range(1, len(heights) + 1), heights, "o-", ms=4, color=COLORS[learner.body])
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
