"""What a run shows while it goes and when it is over: progress bars, log lines, a closing table."""

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from projunn.tasks import Task
from projunn.training.learner import Learner, LogPoint


class Display:
    """One bar a model on a terminal; one line a log point where the output is no terminal."""

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
        """Move a learner's bar to where it is."""
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
        """Say a new log point where there are no bars."""
        if not self._live:
            numbers = _numbers(self.task, point)
            self.console.print(f"{point.model:<8} step {point.step:>6}  {numbers}", soft_wrap=True)

    def close(self, learners: Iterable[Learner], folder: Path, interrupted: bool) -> None:
        """The table of results and where everything lies."""
        title = f"{self.task.loss_name} on held-out data; a naive guess scores {self.task.naive:.4g}"
        table = Table(title=title, title_style="")
        table.add_column("model", style="bold")
        names = ["steps", "seconds", "steps/s", "loss", "accuracy", "defect"]
        learners = list(learners)
        radius = next((learner.config.certify for learner in learners), None)
        if radius is not None:
            names.append(f"certified at {radius:.3g}")
        for name in names:
            table.add_column(name, justify="right")
        for learner in learners:
            if not learner.points:
                continue
            last = learner.points[-1]
            table.add_row(
                learner.body,
                str(last.step),
                f"{last.seconds:.1f}",
                f"{last.step / last.seconds:.1f}" if last.seconds else "",
                f"{last.test_loss:.4g}",
                "" if last.test_accuracy is None else f"{last.test_accuracy:.1%}",
                "" if last.defect is None else f"{last.defect:.1e}",
                *([] if last.certified is None else [f"{last.certified:.1%}"]),
            )
        self.console.print(table)
        for learner in learners:
            if learner.points and learner.points[-1].skipped:
                count = learner.points[-1].skipped
                self.console.print(f"{learner.body}: {count} steps of a matrix were not taken")
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
    if point.certified is not None:
        text += f"  certified {point.certified:.1%}"
    if point.seconds:
        text += f"  {point.step / point.seconds:.1f} steps/s"
    if point.defect is not None:
        text += f"  defect {point.defect:.1e}"
    return text
