"""The stages that are programs of their own: the test suite, and compute-sanitizer."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from bench.gpu import reporter
from bench.gpu.case import Absent, Row

ROOT = Path(__file__).parents[2]
SANITIZER_SECONDS = 180.0
_DRY = "tests/test_diagnostics.py"


def tests(*, workers: int, seconds: float, log: Path, report: Path, dry: bool) -> tuple[list[Row], str]:
    """Run the tests that touch a GPU: a row for each that came to its end, and how they ended.

    `bench.gpu.reporter` picks them, orders them, writes them down one by one, and stops when it is time.

    Raises:
        Absent: pytest is not installed.
        RuntimeError: pytest itself failed, before or beside the tests.
    """
    if importlib.util.find_spec("pytest") is None:
        raise Absent("pytest is not installed")
    command = [sys.executable, "-m", "pytest", "-p", "bench.gpu.reporter", "-p", "no:cacheprovider"]
    if workers > 1 and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(workers)]
    command += [str(ROOT / _DRY)] if dry else [str(ROOT / "tests")]
    variables = {
        reporter.FILE: str(report),
        reporter.SECONDS: str(0.9 * seconds),
        reporter.EVERYTHING: "1" if dry else "",
        "OMP_NUM_THREADS": "1",
    }
    status = _program(command, variables, seconds, log)
    rows = report.read_text().splitlines() if report.exists() else []
    endings = {None: f"killed after {seconds:.0f} s", 0: "", 1: "", 2: "stopped when the time was up"}
    endings |= {5: "there are none"}
    if status not in endings:
        raise RuntimeError(f"pytest ended with status {status}; see {log.name}")
    return [json.loads(row) for row in rows], endings[status]


def sanitizer(log: Path) -> int | None:
    """Exit status of the small checks under compute-sanitizer; None: they were stopped.

    Raises:
        Absent: there is no compute-sanitizer.
    """
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        raise Absent("compute-sanitizer is not on the PATH")
    command = [tool, "--error-exitcode", "9", sys.executable, "-m", "bench.gpu", "--small-checks"]
    return _program(command, {}, SANITIZER_SECONDS, log)


def _program(command: list[str], variables: Mapping[str, str], seconds: float, log: Path) -> int | None:
    """Exit status of a program that prints to the log; None: it was killed when its time was up."""
    with log.open("ab") as stream:
        program = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | variables,
            stdout=stream,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        ended = time.monotonic() + seconds
        try:
            return program.wait(max(0.0, ended - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None
        finally:
            if program.poll() is None:
                os.killpg(program.pid, signal.SIGKILL)
                program.wait()
