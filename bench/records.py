"""Rows of results: printed as tables, appended to ``NAME.jsonl`` in a folder, never overwritten."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from bench.timing import Times

FOLDER = Path(__file__).parent / "results"
_FILE_WIDTH = 160  # characters of a line of a table that is not printed in a terminal
_SPREAD = ("p20_ms", "p80_ms")

Row = dict[str, Any]


class Results:
    """Where the rows of a run of benchmarks go.

    Args:
        folder: made when the first row is written.
        quick: the run was a short one; its rows say so.
    """

    def __init__(self, folder: Path = FOLDER, *, quick: bool = False) -> None:
        self.folder = folder
        self.quick = quick

    def append(self, name: str, rows: list[Row]) -> None:
        """Append the rows, each with its environment, to the results of benchmark ``name``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shared = environment() | {"quick": self.quick}
        with (self.folder / f"{name}.jsonl").open("a") as file:
            for row in rows:
                file.write(json.dumps(shared | row) + "\n")

    def report(self, name: str, title: str, rows: list[Row]) -> None:
        """`append`, and print as a table."""
        show(title, rows)
        self.append(name, rows)


def environment() -> Row:
    """What a number depends on besides the code."""
    try:
        triton: str | None = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = None
    git = ["git", "-C", str(FOLDER.parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # git is not installed
        commit = ""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit or None,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def timing_rows(case: Row, times: dict[str, Times], peer: str) -> list[Row]:
    """One row a callable: milliseconds, and its time as a multiple of that of ``peer``."""
    return [
        case
        | {
            "what": what,
            "rounds": len(own.milliseconds),
            "median_ms": round(own.median, 4),
            "p20_ms": round(own.quantile(20), 4),
            "p80_ms": round(own.quantile(80), 4),
            "peer": peer,
            "ratio": round(own.ratio(times[peer]), 4),
        }
        for what, own in times.items()
    ]


def show(title: str, rows: list[Row]) -> None:
    """Print rows of the same keys as a table, with ``rich`` where it is installed.

    What all of them share is left to the title, and the spread of times out where it is too narrow.
    """
    names = [n for n in rows[0] if len(rows) == 1 or any(row[n] != rows[0][n] for row in rows)]
    lines = [[_text(row[name]) for name in names] for row in rows]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(map(len, column)) for column in zip(names, *lines, strict=True)]
        print(f"\n{title}")
        for line in (names, *lines):
            print("  ".join(t.ljust(width) for t, width in zip(line, widths, strict=True)))
        return
    console = Console() if sys.stdout.isatty() else Console(width=_FILE_WIDTH)
    width = 1 + sum(3 + max(map(len, column)) for column in zip(names, *lines, strict=True))
    table = Table(title=title, title_justify="left")
    kept = [i for i, n in enumerate(names) if width <= console.width or n not in _SPREAD]
    for i in kept:
        numeric = not isinstance(rows[0][names[i]], str)
        table.add_column(names[i], justify="right" if numeric else "left", no_wrap=True)
    for line in lines:
        table.add_row(*(line[i] for i in kept))
    print()
    console.print(table)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
