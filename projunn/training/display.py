"""The output of a run: progress bars or log lines while it goes, and a table at the end."""

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

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
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("[bold]{task.description:<8}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[numbers]}"),
            TimeRemainingColumn(),
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
            numbers = _numbers(self.task, learner.points[-1])
        else:
            numbers = f"step {learner.step}, first loss at step {config.log_every}"
        self._progress.update(bar, numbers=numbers)

    def log(self, point: LogPoint) -> None:
        """Print a new log point where there are no bars."""
        if not self._live:
            numbers = _numbers(self.task, point)
            self.console.print(f"{point.model:<8} step {point.step:>6}  {numbers}", soft_wrap=True)

    def close(self, learners: Iterable[Learner], folder: Path, interrupted: bool) -> None:
        """Print the table of results and where the files are."""
        title = f"{self.task.loss_name} on held-out data; a naive guess scores {self.task.naive:.4g}"
        table = Table(title=title, title_style="")
        table.add_column("model", style="bold")
        lasts = [learner.points[-1] for learner in learners if learner.points]
        metrics = [m for m in self.task.metrics if any(m.text(last) for last in lasts)]
        names = ["steps", "seconds", "steps/s", "loss", "accuracy", "defect"]
        names += [(m.heading or m.name).format(options=self.task.options) for m in metrics]
        for name in names:
            table.add_column(name, justify="right")
        for last in lasts:
            table.add_row(
                last.model,
                str(last.step),
                f"{last.seconds:.1f}",
                f"{last.step / last.seconds:.1f}" if last.seconds else "",
                f"{last.test_loss:.4g}",
                "" if last.test_accuracy is None else f"{last.test_accuracy:.1%}",
                "" if last.defect is None else f"{last.defect:.1e}",
                *(metric.text(last) or "" for metric in metrics),
            )
        self.console.print(table)
        for last in lasts:
            if last.skipped:
                self.console.print(f"{last.model}: {last.skipped} steps of a matrix were not taken")
        for learner in learners:
            if learner.diverged:
                self.console.print(
                    f"{learner.body}: given up at step {learner.step}, its loss was not finite any more"
                    " (try a smaller --lr)"
                )
        if interrupted:
            self.console.print(
                f"Interrupted. Go on with: projunn train --resume {folder}", soft_wrap=True
            )
        files = "plot.png, metrics.jsonl, config.json, checkpoint.pt"
        self.console.print(f"Results: {folder}/ ({files})", soft_wrap=True)


def _numbers(task: Task, point: LogPoint) -> str:
    """Loss, accuracy, speed and defect of a log point in one line."""
    text = f"loss {point.test_loss:.3g} (naive {task.naive:.3g})"
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
