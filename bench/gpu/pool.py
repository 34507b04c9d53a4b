"""Runs cases in worker processes, and survives whatever happens to them.

A worker takes one case after the other.  One that dies, that takes too long over a case, or that cannot
go on after an error (`Machine.sound`) is replaced, and the other cases do not notice.  The parent leaves
the GPU alone, so that workers can be forked from it: they find PyTorch and Triton imported, and a new
one is there at once.
"""

import ctypes
import faulthandler
import gc
import os
import signal
import sys
import time
import traceback
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config

from bench.gpu.case import Absent, Case, Row
from bench.gpu.machine import Machine

Source = Callable[[Machine], list[Case]]

START_SECONDS = 60.0  # in which a worker has to be ready
MOST_FAILED_STARTS = 3


@dataclass(frozen=True)
class Pool:
    """Settings with which workers are made.

    Attributes:
        context: of `multiprocessing`: ``fork``, or ``spawn`` where that does not do.
        dry: see `Machine`.
        log: file that gets what the workers print.
        environment: variables that the workers are given.
    """

    context: BaseContext
    dry: bool
    log: Path
    environment: dict[str, str] = field(default_factory=dict)

    def outcomes(
        self, source: Source, names: list[str], *, workers: int, seconds: float, longest: float
    ) -> Iterator[Row]:
        """Run the cases of ``source`` in the order of ``names``; yields their rows as they come in.

        A row has what the case gave, and: ``name``, ``kind``, ``seconds``; ``problem``, empty if all
        went well; ``absent``, what the case needs and the machine lacks, if it does; ``cut``, true for a
        case that was under way when the time was up.

        Args:
            seconds: after nine tenths of these no case is begun, and after all of them none goes on.
            longest: seconds that a single case may take.
        """
        begun, waiting = time.monotonic(), deque(names)
        crew = [self._worker(source, workers) for _ in range(min(workers, len(names)))]
        failed_starts = 0
        try:
            while crew and (waiting or any(w.name for w in crew)):
                now = time.monotonic() - begun
                if now > 0.9 * seconds:
                    waiting.clear()
                idle = [w for w in crew if w.ready and not w.name]
                for worker in idle[: len(waiting)]:
                    worker.give(waiting.popleft())
                if not waiting and not any(w.name for w in crew):
                    return
                wait([w.connection for w in crew], timeout=0.1)
                for worker in list(crew):
                    row = worker.news(longest)
                    if row is None and now > seconds and worker.name:
                        row = worker.row(f"killed: the {seconds:.0f} s of the stage were up") | {
                            "cut": True
                        }
                        worker.lost = True
                    if worker.lost:
                        failed_starts = 0 if worker.ready else failed_starts + 1
                        crew.remove(worker)
                        worker.kill()
                        if waiting and failed_starts < MOST_FAILED_STARTS:
                            crew.append(self._worker(source, workers))
                    if row is not None:
                        yield row
        finally:
            for worker in crew:
                worker.kill()
        if failed_starts:
            raise RuntimeError(f"worker processes do not start; see {self.log.name}")

    def _worker(self, source: Source, workers: int) -> "_Worker":
        here, there = self.context.Pipe()
        arguments = (there, source, self.dry, str(self.log), self.environment, workers)
        process = self.context.Process(target=_work, args=arguments)
        process.start()
        there.close()
        return _Worker(process, here)


class _Worker:
    """The parent's side of a worker."""

    def __init__(self, process: Any, connection: Connection) -> None:
        self.process, self.connection = process, connection
        self.ready = False
        self.lost = False  # it is to be replaced
        self.name = ""  # of the case that it is at
        self.since = time.monotonic()

    def give(self, name: str) -> None:
        self.name, self.since = name, time.monotonic()
        try:
            self.connection.send(name)
        except OSError:
            self.lost = True  # it has died; `news` says so

    def news(self, longest: float) -> Row | None:
        """The row of a case that has come to its end, one way or another."""
        taken = time.monotonic() - self.since
        try:
            message = self.connection.recv() if self.connection.poll() else None
        except (EOFError, OSError):
            self.lost = True
            self.process.join(5)
            return self.row(f"the process died: {_status(self.process.exitcode)}") if self.name else None
        if message is None:
            if self.ready and self.name and taken > longest:
                self.lost = True
                return self.row(f"killed after {longest:.0f} s")
            self.lost = not self.ready and taken > START_SECONDS
            return None
        if not self.ready:
            self.ready = True
            return None
        self.lost = not message.pop("sound")
        self.name = ""
        return message

    def row(self, problem: str) -> Row:
        """The row of a case that did not come to its own end."""
        seconds = round(time.monotonic() - self.since, 2)
        return {"name": self.name, "seconds": seconds, "problem": problem}

    def kill(self) -> None:
        """The worker and what it has started, compilers for instance."""
        if self.process.pid is not None and self.process.is_alive():
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:  # it has not come to make its group yet
                self.process.kill()
        self.process.join(5)
        self.connection.close()


def _status(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit status {code}"


def _work(
    connection: Connection,
    source: Source,
    dry: bool,
    log: str,
    environment: dict[str, str],
    workers: int,
) -> None:
    """What a worker does until it is told to stop, or killed."""
    os.setpgid(0, 0)
    library = ctypes.CDLL(None)
    if hasattr(library, "prctl"):
        library.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: the worker does not outlive the parent
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(stream, descriptor)
    sys.stdout, sys.stderr = (os.fdopen(d, "w", buffering=1, closefd=False) for d in (1, 2))
    faulthandler.enable(sys.stderr)
    os.environ.update(environment)
    if workers > 1 or dry:  # the others need the cores
        torch._inductor.config.compile_threads = 1
        torch.set_num_threads(1)
    on = Machine(dry=dry)
    cases = {case.name: case for case in source(on)}
    gc.freeze()  # what was imported is not looked through again
    connection.send("ready")
    while True:
        case = cases[connection.recv()]
        row = run_case(on, case)
        row["sound"] = not row["problem"] or on.sound()
        if row["sound"]:
            on.release()
        connection.send(row)
        if not row["sound"]:
            os._exit(1)  # without touching the device again


def run_case(on: Machine, case: Case) -> Row:
    """The row of one case, in this process."""
    torch.manual_seed(zlib.crc32(case.name.encode()))
    row: Row = {"name": case.name, "kind": case.kind, "problem": ""}
    started = time.monotonic()
    try:
        given = case.call()
        on.wait()
        if isinstance(given, dict):
            row |= given
        else:
            row["share"] = given
            if not given <= 1:
                row["problem"] = f"the error is {given:.3g} times what is allowed"
    except Absent as absent:
        row["absent"] = str(absent)
    except Exception as error:
        row["problem"] = _words(error)
        print(f"-- {case.name}", flush=True)
        traceback.print_exc()
    row["seconds"] = round(time.monotonic() - started, 2)
    return row


def _words(error: Exception) -> str:
    """The type and the first line of an error."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
