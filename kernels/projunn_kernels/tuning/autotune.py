"""Times the candidates of each problem on the GPU and keeps the winners: ``projunn autotune``.

The tensors are its own, and what a kernel changes is restored before each candidate; one whose binary
spills registers is not timed.  The table of the GPU is written after every problem, so an interrupted
run keeps what it has; `tuning.forget` at the end makes it take effect in the running process too.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from projunn_kernels.configs import choice as tuning
from projunn_kernels.configs import tables
from projunn_kernels.configs.closed_form import candidates, closed_form
from projunn_kernels.configs.kernel import KERNELS, Inputs
from projunn_kernels.configs.problem import Config, Device, Problem
from projunn_kernels.launching import intercepted

Run = Callable[[], object]
Timer = Callable[[Run], float]

_RATE = 1e-3


@dataclass(frozen=True)
class Result:
    """The winner of a problem; ``config`` None: no candidate ran, ``failed`` says why."""

    problem: Problem
    config: Config | None
    milliseconds: float = float("nan")
    gigabytes_per_second: float = float("nan")
    closed_form_milliseconds: float = float("nan")
    tried: int = 0
    failed: str = ""


def autotune(
    problems: Iterable[Problem],
    device: torch.device,
    properties: Device,
    timer: Timer,
    *,
    seconds: float = float("inf"),
) -> Iterator[Result]:
    """Tune one problem after another; each result is in the user's table when it is yielded.

    Args:
        problems: their buckets are tuned once each.
        timer: milliseconds of a callable, `cold_time` on a GPU.
        seconds: no problem is begun later than this.
    """
    begun, done = time.monotonic(), set()
    try:
        for problem in problems:
            if problem.bucket in done:
                continue
            if time.monotonic() - begun > seconds:
                return
            done.add(problem.bucket)
            result = _tune(problem, device, properties, timer)
            if result.config is not None:
                entry = tables.entry(result.config, result.milliseconds, result.gigabytes_per_second)
                tables.write_table(properties, {problem.bucket: entry})
            yield result
    finally:
        tuning.forget()


def _tune(problem: Problem, device: torch.device, properties: Device, timer: Timer) -> Result:
    try:
        run, restore = _case(problem, device)
    except torch.OutOfMemoryError as error:
        return Result(problem, None, failed=str(error).splitlines()[0])
    times: dict[Config, float] = {}
    failed = ""
    for config in candidates(problem, properties):
        restore()
        with tuning.using({problem.operation: config}):
            try:
                if spills(run):
                    failed = "it spills registers"
                    continue
                times[config] = timer(run)
            except Exception as error:  # out of registers or shared memory: not a candidate
                failed = (str(error).splitlines() or [type(error).__name__])[0]
    if not times:
        return Result(problem, None, failed=failed)
    best = min(times, key=lambda config: times[config])
    first = times.get(closed_form(problem, properties), float("nan"))
    rate = traffic(problem) / times[best] / 1e6
    return Result(problem, best, times[best], rate, first, len(times))


def spills(run: Run) -> bool:
    """Whether a kernel that ``run`` launches keeps registers in memory, by its binary."""
    binaries: list[Any] = []

    class Noting:
        def __init__(self, kernel: Any) -> None:
            self._kernel = kernel

        def __getitem__(self, grid: object) -> Any:
            return lambda **arguments: binaries.append(self._kernel[grid](**arguments))

    with intercepted(Noting):
        run()
    return any(getattr(binary, "n_spills", 0) for binary in binaries)  # interpreted: there is none


def traffic(problem: Problem) -> int:
    """Bytes that a launch has to move at least; `basis` is timed within a whole retraction."""
    return 4 * problem.width * KERNELS[problem.operation].numbers(problem)


def _case(problem: Problem, device: torch.device) -> tuple[Run, Run]:
    """A launch of the first variant on fresh tensors, and what puts them back."""
    kernel = KERNELS[problem.operation]
    case = kernel.case(problem, Inputs(device), **next(kernel.variants_of(problem)))
    changed = [case.tensors[name] for name in case.changed]
    copies = [None if tensor is None else tensor.clone() for tensor in changed]

    def restore() -> None:
        for tensor, copy in zip(changed, copies, strict=True):
            if tensor is not None and copy is not None:
                tensor.copy_(copy)

    return case.run, restore


def cold_time(run: Run, repetitions: int = 15) -> float:
    """Median milliseconds on the current GPU, from a CUDA graph and with nothing of it in L2.

    The launches are captured once, so that the host's time for them is not in it; before each replay a
    buffer larger than any L2 is overwritten.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # compiles, and fills the tables of addresses
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repetitions)]
    graph.replay()
    for before, after in marks:
        flush.zero_()
        before.record()
        graph.replay()
        after.record()
    torch.cuda.synchronize()
    return median(before.elapsed_time(after) for before, after in marks)
