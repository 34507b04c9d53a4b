"""Tables and pictures of a comparison, from its rows alone."""

import math
from pathlib import Path
from statistics import mean
from typing import Any

from bench.field.cases import CASES, Case
from bench.field.contender import Contender
from bench.field.protocol import SEEDS, chosen, loss_of, rows

Row = dict[str, Any]

_MADE = "Made by `python -m bench.field` from `field.jsonl`, by [the protocol](../../docs/protocol.md)."


def kept(found: list[Row], case: Case, contender: Contender) -> list[Row]:
    """The rows of a method at its best rate, one a seed: those of the largest budget it has all of."""
    own = [row for row in found if (row["case"], row["method"]) == (case.name, contender.name)]
    for budget in sorted({row["budget_s"] for row in own}, reverse=True):
        of_budget = [row for row in own if row["budget_s"] == budget]
        best = chosen(of_budget)
        one_each = {row["seed"]: row for row in of_budget if row["rate"] == best}
        if set(SEEDS) <= set(one_each):
            return [one_each[seed] for seed in SEEDS]
    return []


def by_method(found: list[Row], case: Case) -> dict[str, list[Row]]:
    """The methods that have all of their rows at the same budget, best mean loss first."""
    every = {one.name: kept(found, case, one) for one in case.contenders}
    complete = {name: own for name, own in every.items() if own}
    most = max((own[0]["budget_s"] for own in complete.values()), default=0)
    same = {name: own for name, own in complete.items() if own[0]["budget_s"] == most}
    return dict(sorted(same.items(), key=lambda item: mean(map(loss_of, item[1]))))


def table(found: list[Row], case: Case) -> list[str]:
    """Lines of Markdown: the last loss, its least and most of the seeds, and what it cost."""
    methods = by_method(found, case)
    if not methods:
        return []
    first = next(iter(methods.values()))[0]
    lines = [
        f"### {case.name}: {first['budget_s']:g} s of CPU time for each training",
        "",
        f"A naive guess scores {first['naive']:.4g}.",
        "",
        "| method | rate | loss, mean (least to most) | accuracy | steps | defect |",
        "|---|---|---|---|---|---|",
    ]
    for name, own in methods.items():
        losses = [loss_of(row) for row in own]
        right = [row["accuracy"] for row in own if row["accuracy"] is not None]
        defects = [row["defect"] for row in own if row["defect"] is not None]
        cells = (
            name,
            f"{own[0]['rate']:g}" if own[0]["rate"] else "",
            f"{_number(mean(losses))} ({_number(min(losses))} to {_number(max(losses))})",
            f"{mean(right):.1%}" if right else "",
            f"{mean(row['steps'] for row in own):.0f}",
            f"{max(defects):.1e}" if defects else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _number(value: float) -> str:
    return "diverged" if math.isinf(value) else f"{value:.3g}"


def tables(folder: Path, since: str = "") -> str:
    """The tables of all cases that have rows, or rows of a date or later."""
    found = rows(folder, since)
    return "\n".join(line for case in CASES.values() for line in table(found, case))


def write(folder: Path) -> list[Path]:
    """``field.md``, the tables with their pictures, and the pictures; returns their paths."""
    found = rows(folder)
    text = ["# Against the field: all tables", "", _MADE, ""]
    for case in CASES.values():
        lines = table(found, case)
        if lines:
            text += [*lines, f"![{case.name}](field-{case.name}.png)", ""]
    page = folder / "field.md"
    page.write_text("\n".join(text))
    return [page, *draw(folder)]


def draw(folder: Path, since: str = "", suffix: str = "") -> list[Path]:
    """``field-CASE.png`` of every case that has rows: loss against steps and against seconds.

    A line is the median of the seeds, and the band around it reaches from the least to the most.
    """
    import matplotlib
    from matplotlib.figure import Figure

    found, drawn = rows(folder, since), []
    for case in CASES.values():
        methods = by_method(found, case)
        if not methods:
            continue
        styles = {one.name: one for one in case.contenders}
        with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
            figure = Figure(figsize=(11, 4), layout="constrained")
            axes = figure.subplots(1, 2, sharey=True)
            for name, own in methods.items():
                style = styles[name]
                for one, column in zip(axes, (0, 1), strict=True):
                    x, low, middle, high = _band([row["curve"] for row in own], column)
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
    curves: list[list[list[float]]], column: int
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Where the points lie, and the least, the middle and the most of the seeds there."""
    count = min(map(len, curves))
    x, low, middle, high = [], [], [], []
    for i in range(count):
        losses = sorted(math.nan if c[i][2] is None else c[i][2] for c in curves)
        x.append(mean(c[i][column] for c in curves))
        low.append(losses[0])
        middle.append(losses[len(losses) // 2])
        high.append(losses[-1])
    return x, low, middle, high
