"""A pytest plugin for ``make gpu``: tests that touch the GPU, some of every file first, written down.

`pytest -p bench.gpu.reporter`; `bench.gpu.suite` says by environment variables where to and how long.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE, SECONDS, EVERYTHING = "GPU_TESTS_FILE", "GPU_TESTS_SECONDS", "GPU_TESTS_EVERYTHING"
FIXTURES = {"kernels", "device"}  # of tests that run on the GPU where there is one
MARKS = ("requires_cuda", "kernels")  # ditto, of single cases
_begun = time.monotonic()


def touches_gpu(item: Any) -> bool:
    """Whether a test asks for a GPU, or runs on one where it can."""
    if item.get_closest_marker("interpreter_only") is not None:
        return False
    marked = any(item.get_closest_marker(name) is not None for name in MARKS)
    return marked or bool(FIXTURES & set(getattr(item, "fixturenames", ())))


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    if not os.environ.get(EVERYTHING):
        left_out = [item for item in items if not touches_gpu(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if touches_gpu(item)]
    items[:] = list(dealt([(str(item.path), item) for item in items]))


def dealt(items: list[tuple[str, Any]]) -> Iterator[Any]:
    """The first of every file, then the second of every file, and so on."""
    files: dict[str, list[Any]] = {}
    for file, item in items:
        files.setdefault(file, []).append(item)
    for i in range(max(map(len, files.values()), default=0)):
        for own in files.values():
            yield from own[i : i + 1]


def pytest_configure(config: Any) -> None:
    """Outcomes are written by the process that all of them report to, no worker of pytest-xdist."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Reporter())


class _Reporter:
    def pytest_runtest_logreport(self, report: Any) -> None:
        """Write down the outcome of a test."""
        _write(report)


def _write(report: Any) -> None:
    if FILE not in os.environ:
        return
    if report.when != "call" and report.passed:
        return
    if report.when == "teardown" and report.skipped:
        return
    row = {"name": report.nodeid, "kind": "test", "seconds": round(report.duration, 2)}
    row["outcome"] = report.outcome if report.when == "call" or report.skipped else "error"
    row["problem"] = _words(report.longrepr) if report.failed else ""
    with Path(os.environ[FILE]).open("a") as file:
        file.write(json.dumps(row) + "\n")


def _words(failure: Any) -> str:
    """The message of a failure, its first line."""
    crash = getattr(failure, "reprcrash", None)
    lines = str(failure if crash is None else crash.message).strip().splitlines()
    return lines[0][:300] if lines else "failed"


class Clock:
    """Stops a session whose time is up."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def pytest_runtest_logfinish(self) -> None:
        if time.monotonic() - _begun > float(os.environ.get(SECONDS, "inf")):
            self._session.shouldstop = "the seconds of the stage are up"


def pytest_sessionstart(session: Any) -> None:
    session.config.pluginmanager.register(Clock(session), "gpu-tests-clock")
