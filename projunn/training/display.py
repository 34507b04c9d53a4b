"""The output of a run: progress bars or log lines while it goes, and a table at the end."""

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from projunn.tasks import LogPoint, Task
from projunn.training.learner import Learner


class Display:
    """Shows a bar for each model on a terminal, and a line for each log point elsewhere."""

    def __init__(self, task: Task, learners: Iterable[Learner]) -> None:
        self.task = task
        self.console = Console(highlight=False)
        self._live = self.console.is_terminal
        self.console.print(
            f"{task.title}: {task.loss_name} on held-out data, a naive guess scores {task.naive:.4g}",
            soft_wrap=True,
        )
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("[bold]{task.description:<7}"),
            BarColumn(bar_width=12),
            TextColumn("{task.percentage:>3.0f}% {task.fields[numbers]:<36}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
        )
        for learner in learners:
            self._bars[learner.body] = self._progress.add_task(
                learner.body, total=1.0, numbers="starting"
            )
            self.advance(learner)

    def __enter__(self) -> "Display":
        if self._live:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def advance(self, learner: Learner) -> None:
        """Move a learner's bar to the share of the budget that is spent."""
        config, shares = learner.config, [0.0]
        if config.steps:
            shares.append(learner.step / config.steps)
        if config.seconds:
            shares.append(learner.seconds / config.seconds)
        bar = self._bars[learner.body]
        self._progress.update(bar, completed=min(1.0, max(shares)))
        if learner.points:
            numbers = _in_short(self.task, learner.points[-1])
        else:
            numbers = f"step {learner.step}, first loss at {config.log_every}"
        self._progress.update(bar, numbers=numbers)

    def log(self, point: LogPoint) -> None:
        """Print a new log point where there are no bars."""
        if not self._live:
            numbers = _numbers(self.task, point)
            self.console.print(f"{point.model:<8} step {point.step:>6}  {numbers}", soft_wrap=True)

    def close(self, learners: Iterable[Learner], folder: Path, interrupted: bool) -> None:
        """Print the table of results and where the files are."""
        lasts = [learner.points[-1] for learner in learners if learner.points]
        self.console.print(f"\n{self.task.loss_name} on held-out data")
        self.console.print(_table(self.task, lasts))
        for last in lasts:
            if last.skipped:
                self.console.print(f"{last.model}: {last.skipped} steps of a matrix were not taken")
        for learner in learners:
            if learner.diverged:
                self.console.print(
                    f"{learner.body}: given up at step {learner.step}, its loss was not finite any more"
                    " (100 steps in a row; try a smaller --lr, or --clip 1)",
                    soft_wrap=True,
                )
        if interrupted:
            self.console.print(
                f"Interrupted. Go on with: projunn train --resume {folder}", soft_wrap=True
            )
        files = "plot.png, metrics.jsonl, config.json, checkpoint.pt"
        self.console.print(f"Results: {folder}/ ({files})", soft_wrap=True)


def _table(task: Task, lasts: list[LogPoint]) -> Table:
    """A column for each model, a row for each number: at most 60 characters for four models."""
    table = Table()
    table.box, table.pad_edge, table.show_edge, table.collapse_padding = (
        box.SIMPLE_HEAD,
        False,
        False,
        True,
    )
    table.add_column("")
    for last in lasts:
        table.add_column(last.model, justify="right", header_style="bold")
    table.add_column("naive", justify="right")

    def add(name: str, values: list[str | None], naive: str = "") -> None:
        if any(values):
            table.add_row(name, *(value or "" for value in values), naive)

    add("steps", [str(last.step) for last in lasts])
    add("seconds", [f"{last.seconds:.1f}" for last in lasts])
    add("steps/s", [f"{last.step / last.seconds:.1f}" if last.seconds else None for last in lasts])
    add("loss", [f"{last.test_loss:.3g}" for last in lasts], f"{task.naive:.3g}")
    add("accuracy", [_or_none("{:.1%}", last.test_accuracy) for last in lasts])
    add("defect", [_or_none("{:.1e}", last.defect) for last in lasts])
    for metric in task.metrics:
        values = [metric.text(last) for last in lasts]
        if any(values):
            add((metric.heading or metric.name).format(options=task.options), values)
    return table


def _or_none(form: str, value: float | None) -> str | None:
    return None if value is None else form.format(value)


def _in_short(task: Task, point: LogPoint) -> str:
    """Loss, accuracy and one more number, in at most 36 characters."""
    more = [f"{metric.text(point)} {metric.name}" for metric in task.metrics if metric.text(point)]
    if not more and point.seconds:
        more = [f"{point.step / point.seconds:.3g} steps/s"]
    right = [] if point.test_accuracy is None else [f"{point.test_accuracy:.1%}"]
    return ", ".join([f"loss {point.test_loss:.3g}", *right, *more])


def _numbers(task: Task, point: LogPoint) -> str:
    """Loss, accuracy, speed and defect of a log point in one line."""
    text = f"loss {point.test_loss:.3g}"
    if point.test_accuracy is not None:
        text += f"  accuracy {point.test_accuracy:.1%}"
    for metric in task.metrics:
        value = metric.text(point)
        text += f"  {metric.name} {value}" if value else ""
    if point.seconds:
        text += f"  {point.step / point.seconds:.1f} steps/s"
    if point.defect is not None:
        text += f"  defect {point.defect:.1e}"
    return text
