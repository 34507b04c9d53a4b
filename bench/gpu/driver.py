"""Runs the stages one after the other, keeps what they give, and writes the summary.

The driver touches no GPU: every stage runs in processes of its own, those of `bench.gpu.pool` and
`bench.gpu.suite`.
"""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch._dynamo  # which optimizers import at their first step: once here, not in every worker

from bench.gpu import checks, history, profiles, suite, summary
from bench.gpu.case import Absent, Row, interleaved, one_of_each_kind
from bench.gpu.machine import Machine
from bench.gpu.pool import Pool, run_case
from bench.gpu.stages import INTERLEAVED, ON_ALL_CORES, SECONDS, SOURCES, machine_cases
from bench.gpu.targets import judged

DRY_SECONDS = 600.0
LONGEST, SHORTEST = 45.0, 8.0  # seconds that a single case may take: a check, at least a timing
LARGEST = 15 << 20  # bytes of a file among the results
FILES = ("summary.txt", "checks.jsonl", "rows.jsonl", "profile.txt", "log.txt", history.NAME)
CACHED = 2  # files of the library's cache that are kept beside these


class Driver:
    """A run of ``make gpu``; the arguments are those of the command line.

    Args:
        begun: `time.monotonic` at which the process was started, by which the run's seconds count.
    """

    def __init__(
        self,
        out: Path,
        *,
        dry: bool = False,
        quick: bool = False,
        workers: int | None = None,
        only: list[str] | None = None,
        sanitizer: bool = False,
        begun: float | None = None,
    ) -> None:
        self.out, self.dry, self.quick, self.sanitizer = out, dry, quick, sanitizer
        self.workers = workers or (2 if dry else len(os.sched_getaffinity(0)))
        self.stages = [name for name in SECONDS if only is None or name in only or name == "machine"]
        self.begun = time.monotonic() if begun is None else begun
        self.machine: Row = {}
        self.rows: list[Row] = []
        self.cache = Path(tempfile.mkdtemp(prefix="projunn-cache-"))
        self._verdicts = 0  # lines of the kernels' checks of themselves that have been noted

    def run(self) -> int:
        """The exit status: 0, 1 for failures, 2 where there is no GPU, 130 for Ctrl-C."""
        self.out.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (self.out / name).unlink(missing_ok=True)
        interrupted = False
        previous = signal.signal(signal.SIGTERM, _interrupt)
        try:
            if not self._find_machine():
                print("make gpu: PyTorch sees no GPU", file=sys.stderr)
                return 2
            for name in self.stages[1:]:
                self._stage(name, lambda name=name: self._cases(name))
            if self.sanitizer:
                self._stage("sanitizer", self._sanitize)
        except KeyboardInterrupt:
            interrupted = True
            self._note(
                {
                    "name": "stage interrupted",
                    "stage": "run",
                    "seconds": 0.0,
                    "outcome": "stopped by a signal",
                }
            )
        finally:
            signal.signal(signal.SIGTERM, previous)
            shutil.rmtree(self.cache, ignore_errors=True)
        if not self.machine:
            return 130
        print(self._conclude(), flush=True)
        return 130 if interrupted else 1 if self.failures() else 0

    # what a stage is

    def _stage(self, name: str, work: Callable[[], str]) -> None:
        """Do the work of a stage, whatever comes of it, and keep its outcome and its seconds."""
        started = time.monotonic()
        print(f"== {name}", file=self._log_stream(), flush=True)
        try:
            outcome = work()
        except Absent as absent:
            outcome = f"left out: {absent}"
        except Exception as error:
            traceback.print_exc(file=self._log_stream())
            outcome = f"FAILED: {type(error).__name__}: {error}"
        self._end_stage(name, started, outcome)

    def _end_stage(self, name: str, started: float, outcome: str) -> None:
        seconds = round(time.monotonic() - started, 1)
        print(f"== {name} ({seconds:.0f} s): {outcome}", flush=True)
        self._note({"name": f"stage {name}", "stage": "run", "seconds": seconds, "outcome": outcome})
        self.note_verdicts()
        self._keep_cache()
        self._write_summary()

    def _cases(self, name: str) -> str:
        """Run the cases of a stage; a sentence about them."""
        seconds = self._seconds(name)
        if name == "tests":
            return self._tests(seconds)
        if seconds <= 0:
            return "left out: no time was left"
        on, source = Machine(dry=self.dry), SOURCES[name]
        cases = source(on)
        if self.dry:
            names = one_of_each_kind(cases)
            names = names[-2:] if name in ("compile", "profile") else names
        elif name in INTERLEAVED:
            dates = history.passed(self.machine["gpu"]) if name == "checks" else {}
            names = interleaved(cases, dates)
        else:
            names = [case.name for case in cases]
        workers = self.workers if name in ON_ALL_CORES else 1
        pool = self.pool
        if name == "checks":  # of the kernels: else one that fails would give way to PyTorch, and pass
            without = {"PROJUNN_SELFCHECK": "off"}
            pool = dataclasses.replace(pool, environment=pool.environment | without)
        longest = DRY_SECONDS if self.dry else self._longest(name, seconds)
        done = []
        for row in pool.outcomes(source, names, workers=workers, seconds=seconds, longest=longest):
            done.append(row)
            if name != "compile":
                self._note({"stage": name} | row)
        return _sentence(done, len(cases), workers)

    def _tests(self, seconds: float) -> str:
        with tempfile.TemporaryDirectory() as folder:
            rows, ending = suite.tests(
                workers=1 if self.dry else self.workers,
                seconds=seconds,
                log=self._log,
                report=Path(folder) / "tests.jsonl",
                dry=self.dry,
            )
        for row in rows:
            self._note({"stage": "tests"} | row)
        skipped = sum(row["outcome"] == "skipped" for row in rows)
        failed = sum(bool(row["problem"]) for row in rows)
        words = f"{len(rows) - skipped} run, {failed} failed, {skipped} skipped"
        return f"{words}; {ending}" if ending else words

    def _sanitize(self) -> str:
        status = suite.sanitizer(self._log)
        if status is None:
            return f"killed after {suite.SANITIZER_SECONDS:.0f} s"
        return "no errors" if status == 0 else f"FAILED: exit status {status}"

    def _seconds(self, name: str) -> float:
        """The seconds of a stage: its own, or what is left of the run, if that is less."""
        if self.dry:
            return DRY_SECONDS
        whole = sum(seconds[self.quick] for seconds in SECONDS.values())
        left = whole - (time.monotonic() - self.begun)
        return min(SECONDS[name][self.quick], left)

    def _longest(self, name: str, seconds: float) -> float:
        """The seconds that a case may take; where cases follow each other, half of what there is."""
        return min(LONGEST if name in INTERLEAVED else max(seconds / 2, SHORTEST), seconds)

    def _find_machine(self) -> bool:
        """Describe the machine; False if PyTorch sees no GPU on it.

        Workers are forked, which costs nothing.  Where a forked one cannot use the GPU, because an
        import has touched it in this process, they are started afresh, which takes seconds each.
        """
        if not self.dry and torch.version.cuda is None and torch.version.hip is None:
            return False
        for way in ("fork", "spawn"):
            context = multiprocessing.get_context(way)
            self.pool = Pool(context, self.dry, self._log, {"PROJUNN_CACHE": str(self.cache)})
            limits = {"workers": 1, "seconds": 60.0, "longest": 50.0}
            for row in self.pool.outcomes(machine_cases, ["machine"], **limits):
                if row["problem"]:
                    print(f"== machine, processes by {way}: {row['problem']}", file=sys.stderr)
                    continue
                self.machine = row
                self._note({"stage": "machine"} | row)
                self._end_stage("machine", self.begun, f"{row['gpu']}, processes by {way}")
                return True
        return False

    # what is kept

    @property
    def _log(self) -> Path:
        return self.out / "log.txt"

    def _log_stream(self) -> "_Appending":
        return _Appending(self._log)

    def _note(self, row: Row) -> None:
        """Keep a row, and write it down at once."""
        self.rows.append(row)
        if row["stage"] in ("tests", "checks"):
            self._append("checks.jsonl", [row])
            return
        if row["stage"] == "profile" and "kernels" in row:
            with (self.out / "profile.txt").open("a") as file:
                file.write(profiles.as_text(row))
        self._append("rows.jsonl", [row])

    def _append(self, name: str, rows: Iterable[Row]) -> None:
        known = {k: self.machine[k] for k in _SHARED if k in self.machine} | {"quick": self.quick}
        with (self.out / name).open("a") as file:
            for row in rows:
                shared = {} if name == "checks.jsonl" else known
                file.write(json.dumps(shared | row) + "\n")

    def note_verdicts(self) -> None:
        """Notes new verdicts of kernels that checked themselves: a failed one gave way to PyTorch."""
        file = self.cache / "verdicts.jsonl"
        for line in file.read_text().splitlines()[self._verdicts :] if file.exists() else ():
            self._verdicts += 1
            verdict = json.loads(line)
            row = {"stage": "checks", "kind": "self-check", "name": f"self-check {verdict['kernel']}"}
            self._note(row | {"problem": verdict["problem"], "seconds": 0.0})

    def _keep_cache(self) -> None:
        """The table, the verdicts, and what else the library has left in its cache."""
        files = sorted(file for file in self.cache.iterdir() if file.suffix in (".json", ".jsonl"))
        for file in files[:CACHED]:
            shutil.copy(file, self.out / file.name)

    def _judged(self) -> list[Row]:
        seconds = round(time.monotonic() - self.begun, 1)
        found: list[Row] = [{"name": "run", "seconds": seconds}]
        for stage in ("tests", "checks"):
            own = [row for row in self.rows if row["stage"] == stage and not row.get("cut")]
            if own:
                failed = sum(bool(row["problem"]) for row in own)
                found.append({"name": stage, "failed": failed})
        return judged([*self.rows, *found], self.quick)

    def _write_summary(self) -> list[Row]:
        targets = self._judged()
        seconds = time.monotonic() - self.begun
        page = summary.page(self.machine, self.rows, targets, seconds)
        (self.out / "summary.txt").write_text(page)
        return targets

    def _conclude(self) -> str:
        """Everything that is written at the end; the page."""
        targets = self._write_summary()
        self._append("rows.jsonl", targets)
        with self._log.open("a") as log:
            log.write(summary.table(targets))
        own = [row for row in self.rows if row["stage"] == "checks"]
        date = self.machine.get("date", "")
        history.write(self.out, self.machine["gpu"], own, date)
        for file in self.out.iterdir():
            _shorten(file)
        return (self.out / "summary.txt").read_text()

    def failures(self) -> bool:
        stages = (row for row in self.rows if row["stage"] == "run")
        kept = (row for row in self.rows if row["stage"] in ("tests", "checks") and not row.get("cut"))
        return any("FAILED" in row["outcome"] for row in stages) or any(row["problem"] for row in kept)


_SHARED = ("date", "commit", "device", "cpu", "cores", "python", "torch", "triton")


class _Appending:
    """Prints to the end of a file that others write to as well."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def write(self, text: str) -> int:
        with self._file.open("a") as stream:
            return stream.write(text)

    def flush(self) -> None:
        """Nothing is held back."""


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _sentence(rows: list[Row], count: int, workers: int) -> str:
    """``310 of 700 run in 16 processes, 2 failed, 3 absent, 1 cut``."""
    numbers = {
        "failed": sum(bool(row["problem"]) and not row.get("cut") for row in rows),
        "absent": sum("absent" in row for row in rows),
        "cut": sum(bool(row.get("cut")) for row in rows),
    }
    parts = [f"{len(rows) - numbers['cut'] - numbers['absent']} of {count} run"]
    parts[0] += f" in {workers} processes" if workers > 1 else ""
    return ", ".join([*parts, *(f"{number} {what}" for what, number in numbers.items() if number)])


def _shorten(file: Path) -> None:
    """Leave out the middle of a file that is too large to be kept."""
    size = file.stat().st_size
    if size <= LARGEST:
        return
    content = file.read_bytes()
    half = LARGEST // 2 - 100
    left_out = f"\n... {size - 2 * half} bytes left out ...\n".encode()
    file.write_bytes(content[:half] + left_out + content[-half:])


def small_checks(dry: bool) -> int:
    """The small checks in this process, for compute-sanitizer."""
    on = Machine(dry=dry)
    rows = [run_case(on, case) for case in checks.small_cases(on)]
    failed = [row for row in rows if row["problem"]]
    for row in failed:
        print(f"FAILED {row['name']}: {row['problem']}")
    print(f"{len(rows)} checks run, {len(failed)} failed")
    return 1 if failed else 0
