"""What ``projunn autotune`` shows: a bar while it works, a table at the end."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from projunn_kernels.jit.autotune import Result

_NAMES = ("bucket", "tile", "warps", "ms", "GB/s", "closed form ms", "tried")


def show(results: "Iterator[Result]", total: int) -> bool:
    """Draw the results from the iterator and print them; False if Ctrl-C ended it.

    With ``rich`` where it is installed, one line a result where it is not.
    """
    done: list[Result] = []
    try:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        finished = _draw(results, done, lambda line: print(line, flush=True))
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn()) as progress:
            task = progress.add_task("tuning", total=total)
            finished = _draw(
                results, done, lambda line: progress.update(task, advance=1, description=line)
            )
    if done:
        _table(done)
    left = total - len(done)
    if left:
        print(f"{left} of {total} buckets not tuned: {'out of time' if finished else 'interrupted'}")
    return finished


def _draw(results: "Iterator[Result]", done: "list[Result]", say: Callable[[str], None]) -> bool:
    try:
        for result in results:
            done.append(result)
            say(result.problem.bucket)
    except KeyboardInterrupt:
        return False
    return True


def _cells(result: "Result") -> list[str]:
    r, config = result, result.config
    if config is None:
        return [r.problem.bucket, f"failed: {r.failed}", "", "", "", "", ""]
    tile = f"{config.rows}x{config.columns}{' held' if config.hold else ''}"
    times = [f"{r.milliseconds:.4f}", f"{r.gigabytes_per_second:.0f}"]
    return [
        r.problem.bucket,
        tile,
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
