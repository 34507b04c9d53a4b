"""Kernels compiled ahead of their launch, in as many processes as there are cores.

Triton compiles one kernel at a time in a process.  Here worker processes compile what is about to be
launched, for the GPU of this process but without touching it, into Triton's cache on disk; the launch
then finds it there.  A compiler that crashes or hangs takes one kernel with it and is replaced.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import SimpleNamespace, TracebackType
from typing import Any

import torch

from projunn_kernels.triton_kernels import kernels
from projunn_kernels.tuning.passed import Passed, decoded, encoded

LONGEST = 180.0  # seconds for one kernel
_START = 120.0  # seconds for a process to import PyTorch and Triton


@dataclass(frozen=True)
class Pointer:
    """A tensor as the compiler sees it."""

    dtype: torch.dtype
    aligned: bool  # to 16 bytes
    small: bool  # its memory is below 2 GiB: AMD GPUs have instructions for those

    def data_ptr(self) -> int:
        return 0 if self.aligned else 8

    def ptr_range(self) -> int:
        return 0 if self.small else 1 << 40


@dataclass(frozen=True)
class Compilation:
    """A launch as the compiler sees it: launches that need the same binary are equal."""

    kernel: str
    arguments: tuple[Any, ...]
    types: tuple[str, ...]  # of the arguments: True == 1, but they are not the same to a compiler
    constants: tuple[tuple[str, Any], ...]


def compilation(kernel: str, arguments: Iterable[Any], constants: dict[str, Any]) -> Compilation:
    """The compilation that a launch needs."""
    seen = tuple(_as_seen(argument) for argument in arguments)
    types = tuple(type(argument).__name__ for argument in seen)
    fixed = tuple(sorted((name, encoded(value)) for name, value in constants.items()))
    return Compilation(kernel, seen, types, fixed)


def _as_seen(argument: Any) -> Any:
    """Triton compiles for the type of a number, for 1, and for multiples of 16."""
    if isinstance(argument, torch.Tensor):
        small = argument.untyped_storage().nbytes() < 1 << 31
        return Pointer(argument.dtype, argument.data_ptr() % 16 == 0, small)
    if isinstance(argument, float):
        return 0.5
    if isinstance(argument, int) and not isinstance(argument, bool) and 1 < abs(argument) < 1 << 31:
        return 16 if argument % 16 == 0 else 3
    return argument


@dataclass
class _Worker:
    """A process that compiles, and what it is at."""

    process: Any
    connection: Connection
    work: Compilation | None = None
    deadline: float = float("inf")
    started: bool = False


class Compilers:
    """Processes that compile; ``with`` ends them.

    Args:
        processes: how many there are at most.
        target: what they compile for: backend, architecture and threads of a warp, as in Triton's
            ``GPUTarget``; by default the GPU of this process.
        longest: seconds that one kernel may take.
    """

    def __init__(
        self, processes: int, target: tuple[str, Any, int] | None = None, longest: float = LONGEST
    ) -> None:
        self.processes = processes
        self._longest = longest
        self._target = _own_target() if target is None else target
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        resource_tracker.ensure_running()  # or it would take the signal mask of `_start` back

    def __enter__(self) -> "Compilers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()
        self._workers.clear()

    def compile(
        self,
        wanted: Iterable[Compilation],
        *,
        until: float = float("inf"),
        done: Callable[[int], object] = lambda count: None,
    ) -> dict[Compilation, str]:
        """Compile; returns why not for each that was compiled or could not be, empty where it was.

        Args:
            until: `time.monotonic` at which to stop; what is not compiled by then is not in the result.
            done: called with the number of kernels compiled so far.
        """
        queue, found = list(dict.fromkeys(wanted))[::-1], {}
        while (queue or any(worker.work for worker in self._workers)) and time.monotonic() < until:
            self._employ(queue)
            for worker in self._ready(until):
                work, reason = worker.work, self._answer(worker)
                if work is not None and reason is not None:
                    found[work] = reason
                    done(len(found))
        for worker in [one for one in self._workers if one.work is not None]:  # out of time
            self._dismiss(worker)
        return found

    def _employ(self, queue: list[Compilation]) -> None:
        """Give every idle process something to do, starting those that are missing."""
        idle = [worker for worker in self._workers if worker.work is None]
        while queue and (idle or len(self._workers) < self.processes):
            worker = idle.pop() if idle else self._start()
            work = queue.pop()
            try:
                keys = [function.cache_key for function in _functions(work)]
                worker.connection.send((work, keys))
            except OSError:  # it died while idle
                self._dismiss(worker)
                queue.append(work)
                continue
            worker.work = work
            worker.deadline = time.monotonic() + (self._longest if worker.started else _START)

    def _ready(self, until: float) -> list[_Worker]:
        """The processes that have an answer, or died, or are late; waits for one."""
        busy = [worker for worker in self._workers if worker.work is not None]
        limit = min(until, *(worker.deadline for worker in busy)) - time.monotonic()
        there = wait([worker.connection for worker in busy], max(0.0, limit))
        now = time.monotonic()
        return [one for one in busy if one.connection in there or one.deadline <= now]

    def _answer(self, worker: _Worker) -> str | None:
        """Why its work could not be compiled, empty if it was; None if the process has just started."""
        try:
            if not worker.connection.poll():
                self._dismiss(worker)
                if not worker.started:
                    return f"a process did not start in {_START:.0f} s"
                return f"compiling it took more than {self._longest:.0f} s"
            answer: str | None = worker.connection.recv()
        except (EOFError, OSError):
            self._dismiss(worker)
            return f"the compiler crashed (exit status {worker.process.exitcode})"
        if answer is None:
            worker.started, worker.deadline = True, time.monotonic() + self._longest
        else:
            worker.work = None
        return answer

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._target), daemon=True)
        # Ctrl-C is for this process to act upon: the others inherit that they do not get it.
        blocks = hasattr(signal, "pthread_sigmask")
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if blocks else set()
        try:
            process.start()
        finally:
            if blocks:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self._workers.append(_Worker(process, ours))
        return self._workers[-1]

    def _dismiss(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.join()
        worker.connection.close()
        self._workers.remove(worker)


def _own_target() -> tuple[str, Any, int]:
    from triton.runtime import driver

    target = driver.active.get_current_target()
    return target.backend, target.arch, target.warp_size


def _serve(connection: Connection, target: tuple[str, Any, int]) -> None:
    """A worker process: compile what comes in, until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where there is no signal mask
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # the compiler prints whole programs when it fails
        os.dup2(silence, stream)
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    there = GPUTarget(*target)
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: there,
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
        )
    )
    kernels()  # imports them all
    connection.send(None)
    while True:
        try:
            work, keys = connection.recv()
        except EOFError:
            return
        # Triton 3.6 sorts the constants of a kernel by where they lie in memory, so that its key on disk
        # can differ from process to process.  The one that counts is the launching process'.
        for function, key in zip(_functions(work), keys, strict=True):
            if function.cache_key != key:
                function.hash = key
        connection.send(_compile(kernels()[work.kernel], work))


def _functions(work: Compilation) -> list[Any]:
    """The kernel, and the functions that are passed to it."""
    passed = [value.function for _, value in work.constants if isinstance(value, Passed)]
    return [kernels()[work.kernel], *passed]


def _compile(kernel: Any, work: Compilation) -> str:
    try:
        constants = {name: decoded(value) for name, value in work.constants}
        kernel.warmup(*work.arguments, grid=(1,), **constants)
    except Exception as error:
        return (str(error).splitlines() or [""])[0] or type(error).__name__
    return ""
