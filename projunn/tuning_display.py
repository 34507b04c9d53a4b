"""The output of ``projunn autotune``: its progress and the time left, and a table at the end."""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from projunn_kernels.tuning.plan import duration

if TYPE_CHECKING:
    from projunn_kernels.tuning.autotune import Progress, Result

_NAMES = ("bucket", "tile", "warps", "ms", "GB/s", "closed form ms", "tried")


class Board:
    """Shows the progress of the autotuner: as a bar with ``rich``, as a line for each bucket without.

    Args:
        total: buckets to be tuned.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._done: list[Result] = []
        self._update: Callable[[Progress], object] = _nothing
        self._left: float | None = None

    def tell(self, progress: "Progress") -> None:
        """Update the display with the autotuner's progress; does nothing unless `show` is under way."""
        self._left = progress.seconds_left
        self._update(progress)

    def show(self, results: "Iterator[Result]") -> bool:
        """Draw while the results come in, then print them; False if Ctrl-C ended it."""
        try:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar
        except ImportError:
            finished = self._draw(results, self._print)
        else:
            with Bar(
                BarColumn(20),
                TextColumn("{task.percentage:>3.0f} %"),
                _time_left(),
                TextColumn("{task.description}"),
            ) as bar:
                task = bar.add_task("", total=None, ends=None)

                def update(progress: "Progress") -> None:
                    ends = time.monotonic() + progress.seconds_left
                    bar.update(
                        task,
                        description=progress.what,
                        completed=progress.timed,
                        total=progress.candidates,
                        ends=ends,
                    )

                self._update = update
                finished = self._draw(results, _nothing)
        self._update = _nothing
        self._summary(finished)
        return finished

    def _draw(self, results: "Iterator[Result]", say: "Callable[[Result], object]") -> bool:
        try:
            for result in results:
                self._done.append(result)
                say(result)
        except KeyboardInterrupt:
            return False
        return True

    def _print(self, result: "Result") -> None:
        line = f"{len(self._done)} of {self._total}  {result.problem.bucket}"
        left = "" if self._left is None else f"  about {duration(self._left)} left"
        print(line + left, flush=True)

    def _summary(self, finished: bool) -> None:
        done = self._done
        if done:
            _table(done)
            won = sum(not result.kept and result.config is not None for result in done)
            kept = sum(result.kept for result in done)
            failed = len(done) - won - kept
            text = f"a configuration beats the closed form in {won} buckets of {len(done)}"
            print(f"{text}, in {kept} it stays{f', {failed} failed' if failed else ''}")
        left = self._total - len(done)
        if left:
            reason = "out of time" if finished else "interrupted"
            print(f"{left} of {self._total} buckets not tuned: {reason}")


def _nothing(told: object) -> None:
    pass


def show(results: "Iterator[Result]", total: int) -> bool:
    """Draw the results from the iterator and print them; False if Ctrl-C ended it."""
    return Board(total).show(results)


def _time_left() -> Any:
    """A column that counts down to when the run will about end."""
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class TimeLeft(ProgressColumn):
        max_refresh = 1.0

        def render(self, task: Task) -> Text:
            ends = task.fields.get("ends")
            if ends is None:
                return Text("")
            return Text(f"about {duration(max(0.0, ends - time.monotonic()))} left")

    return TimeLeft()


def _cells(result: "Result") -> list[str]:
    r, config = result, result.config
    if config is None:
        return [r.problem.bucket, f"failed: {r.failed}", "", "", "", "", ""]
    tile = f"{config.rows}x{config.columns}{' held' if config.hold else ''}"
    times = [f"{r.milliseconds:.4f}", f"{r.gigabytes_per_second:.0f}"]
    return [
        r.problem.bucket,
        "closed form" if r.kept else tile,
        str(config.warps),
        *times,
        f"{r.closed_form_milliseconds:.4f}",
        str(r.tried),
    ]


def _table(done: "list[Result]") -> None:
    lines = [_cells(result) for result in done]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for line in (list(_NAMES), *lines):
            print("  ".join(line))
        return
    table = Table()
    for i, name in enumerate(_NAMES):
        table.add_column(name, justify="right" if i > 1 else "left")
    for line in lines:
        table.add_row(*line)
    Console().print(table)
