"""Rows of results: printed as a table, appended to ``bench/results/NAME.jsonl``, never overwritten."""

import datetime
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from bench.timing import Times

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """What a number depends on besides the code."""
    try:
        triton: str | None = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = None
    git = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit or None,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
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


def record(name: str, rows: list[dict[str, Any]]) -> None:
    """Append the rows to the results of benchmark ``name``."""
    RESULTS.mkdir(exist_ok=True)
    shared = environment()
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        for row in rows:
            file.write(json.dumps({**shared, **row}) + "\n")


def timing_rows(case: dict[str, Any], times: dict[str, Times], peer: str) -> list[dict[str, Any]]:
    """One row a callable: milliseconds, and its time as a ratio to that of ``peer``."""
    return [
        {
            **case,
            "what": what,
            "median_ms": round(own.median, 4),
            "p20_ms": round(own.quantile(20), 4),
            "p80_ms": round(own.quantile(80), 4),
            "peer": peer,
            "ratio": round(own.ratio(times[peer]), 4),
        }
        for what, own in times.items()
    ]


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows as a plain table."""
    if not rows:
        return
    names = list(rows[0])
    cells = [names, *([_text(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    print(f"\n{title}")
    for line in cells:
        print("  " + "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)))


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
