"""When each check last passed, by GPU: ``bench/results/gpu_checks.json``.

A run reads the file that ships, and leaves one with its own passes added among its results, to be put in
the place of the shipped one.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from bench.gpu.case import Row

NAME = "gpu_checks.json"
SHIPPED = Path(__file__).parents[1] / "results" / NAME


def passed(gpu: str, file: Path = SHIPPED) -> dict[str, str]:
    """Date of the last pass of each check on that GPU."""
    return dict(_read(file).get(gpu, {}))


def write(folder: Path, gpu: str, checks: Iterable[Row], date: str, file: Path = SHIPPED) -> None:
    """The history with the passes of a run; what failed counts as never passed."""
    history = _read(file)
    own = history.setdefault(gpu, {})
    for check in checks:
        if check["problem"] and not check.get("cut"):
            own.pop(check["name"], None)
        elif "share" in check:
            own[check["name"]] = date
    history[gpu] = dict(sorted(own.items()))
    (folder / NAME).write_text(json.dumps(history, indent=1, sort_keys=True) + "\n")


def _read(file: Path) -> dict[str, dict[str, str]]:
    return json.loads(file.read_text()) if file.exists() else {}
