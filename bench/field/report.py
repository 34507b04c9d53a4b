"""Tables and pictures of a comparison, from its rows alone."""

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from bench.field import pace
from bench.field.cases import CASES, Case
from bench.field.protocol import kept, rows

Row = dict[str, Any]

_MADE = (
    "Made by `python -m bench.field` from `field.jsonl` and `field_pace.jsonl`,"
    " by [the protocol](../../docs/protocol.md)."
)


@dataclass(frozen=True)
class Line:
    """A method in a table: its rows, one a seed, and its scores when the budget was spent.

    Args:
        rows: at the best rate.
        step_s: seconds of a step.
        scores: of each seed, the loss, infinite if it diverged, and the accuracy.
        steps: that the budget has.
    """

    rows: list[Row]
    step_s: float
    scores: list[tuple[float, float | None]]
    steps: float

    @property
    def loss(self) -> float:
        return mean(loss for loss, _ in self.scores)


def by_method(found: list[Row], case: Case, paces: dict[str, float], seconds: float) -> dict[str, Line]:
    """The methods that have all of their rows at a budget, best mean loss first."""
    lines = {}
    for one in case.contenders:
        if one.name not in paces:
            continue
        step_s = paces[one.name]
        own, steps = kept(found, case, one, step_s, seconds), seconds / step_s
        if own:
            lines[one.name] = Line(own, step_s, [score_at(row, steps) for row in own], steps)
    return dict(sorted(lines.items(), key=lambda item: item[1].loss))


def score_at(row: Row, steps: float) -> tuple[float, float | None]:
    """Loss and accuracy of a training after some steps.

    Between two points of its curve it is the geometric mean of their losses, and the mean of their
    accuracies, weighted by distance.
    """
    if row["loss"] is None:
        return math.inf, None
    for (before, _, loss, right), (after, _, next_loss, next_right) in pairwise(row["curve"]):
        if after >= steps:
            part = (steps - before) / (after - before)
            between = None if right is None else (1 - part) * right + part * next_right
            return loss ** (1 - part) * next_loss**part, between
    return row["loss"], row["accuracy"]


def table(lines: dict[str, Line], case: Case, seconds: float) -> list[str]:
    """Lines of Markdown: the last loss, its least and most of the seeds, and what it cost."""
    if not lines:
        return []
    first = next(iter(lines.values())).rows[0]
    spread = "mean (least to most)" if case.seeds > 1 else "one seed"
    text = [
        f"### {case.name}: {seconds:g} s of CPU time for each training",
        "",
        f"A naive guess scores {first['naive']:.4g}.",
        "",
        f"| method | rate | loss, {spread} | accuracy | steps | defect |",
        "|---|---|---|---|---|---|",
    ]
    for name, line in lines.items():
        right = [accuracy for _, accuracy in line.scores if accuracy is not None]
        defects = [row["defect"] for row in line.rows if row["defect"] is not None]
        rate = line.rows[0]["rate"]
        cells = (
            name,
            f"{rate:g}" if rate else "",
            _losses([loss for loss, _ in line.scores]),
            f"{mean(right):.1%}" if right else "",
            f"{line.steps:.0f}",
            f"{max(defects):.1e}" if defects else "",
        )
        text.append(f"| {' | '.join(cells)} |")
    return [*text, ""]


def _losses(losses: list[float]) -> str:
    spread = f" ({_number(min(losses))} to {_number(max(losses))})" if len(losses) > 1 else ""
    return _number(mean(losses)) + spread


def _number(value: float) -> str:
    return "diverged" if math.isinf(value) else f"{value:.3g}"


def tables(folder: Path, since: str = "", seconds: float | None = None) -> str:
    """The tables of all cases that have rows, or rows of a date or later.

    Args:
        folder: of the rows.
        since: ISO 8601.
        seconds: the budget, in place of each case's own.
    """
    found = rows(folder, since)
    text = []
    for case in CASES.values():
        budget = seconds or case.seconds
        text += table(by_method(found, case, pace.known(folder, case, since), budget), case, budget)
    return "\n".join(text)


def write(folder: Path) -> list[Path]:
    """``field.md``, the tables with their pictures, and the pictures; returns their paths."""
    found = rows(folder)
    text = ["# Against the field: all tables", "", _MADE, ""]
    for case in CASES.values():
        lines = by_method(found, case, pace.known(folder, case), case.seconds)
        if lines:
            text += [*table(lines, case, case.seconds), f"![{case.name}](field-{case.name}.png)", ""]
    page = folder / "field.md"
    page.write_text("\n".join(text))
    return [page, *draw(folder)]


def draw(folder: Path, since: str = "", seconds: float | None = None, suffix: str = "") -> list[Path]:
    """``field-CASE.png`` of every case that has rows: loss against steps and against seconds.

    A line is the median of the seeds, and the band around it reaches from the least to the most.
    """
    import matplotlib
    from matplotlib.figure import Figure

    found, drawn = rows(folder, since), []
    for case in CASES.values():
        paces = pace.known(folder, case, since)
        lines = by_method(found, case, paces, seconds or case.seconds)
        if not lines:
            continue
        styles = {one.name: one for one in case.contenders}
        with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
            figure = Figure(figsize=(11, 4), layout="constrained")
            axes = figure.subplots(1, 2, sharey=True)
            for name, line in lines.items():
                style = styles[name]
                steps, low, middle, high = _band([row["curve"] for row in line.rows], line.steps)
                for one, unit in zip(axes, (1.0, line.step_s), strict=True):
                    x = [unit * step for step in steps]
                    one.plot(
                        x, middle, color=style.color, linestyle=style.dashes, label=name, linewidth=1.4
                    )
                    one.fill_between(x, low, high, color=style.color, alpha=0.12, linewidth=0)
            axes[0].set(title=case.name, xlabel="step", yscale="log")
            axes[0].set_ylabel("held-out loss")
            axes[1].set(xlabel="seconds of CPU time, one thread")
            axes[1].legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
            path = folder / f"field-{case.name}{suffix}.png"
            figure.savefig(path, dpi=110)
        drawn.append(path)
    return drawn


def _band(
    curves: list[list[list[float]]], most: float
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Up to some steps: where the points lie, and the least, middle and most of the seeds there."""
    steps, low, middle, high = [], [], [], []
    for points in zip(*curves, strict=False):
        at = mean(point[0] for point in points)
        if at > 1.03 * most:
            break
        losses = sorted(math.nan if point[2] is None else point[2] for point in points)
        steps.append(at)
        low.append(losses[0])
        middle.append(losses[len(losses) // 2])
        high.append(losses[-1])
    return steps, low, middle, high
