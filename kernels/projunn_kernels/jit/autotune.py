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
from torch import Tensor

from projunn_kernels import tables, tuning
from projunn_kernels.closed_form import candidates, closed_form
from projunn_kernels.jit.interception import intercepted
from projunn_kernels.problems import SPECTRAL_OPERATIONS, TIME_LOOPS, Config, Device, Problem

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
            return lambda *args, **constants: binaries.append(self._kernel[grid](*args, **constants))

    with intercepted(Noting):
        run()
    return any(getattr(binary, "n_spills", 0) for binary in binaries)  # interpreted: there is none


def traffic(problem: Problem) -> int:
    """Bytes that an operation has to move at least; `basis` is timed within a whole `turn`."""
    p = problem
    if p.operation in SPECTRAL_OPERATIONS:  # two spectra, and the matrices
        return p.blocks * (p.k * (p.m + p.n) + p.m * p.n) * 8
    passes = {"fused_step": 3, "adjoint_product": 1, "product": 1, "turn_rows": 2, "rank_update": 2}
    passes |= {"recurrence": 2, "recurrence_backward": 3}
    return passes.get(p.operation, 3) * p.blocks * p.m * p.n * p.width * 4


def _case(problem: Problem, device: torch.device) -> tuple[Run, Run]:
    """A launch of the operation on fresh tensors, and what puts them back."""
    from projunn_kernels.jit import launch as L

    p = problem
    if p.operation in TIME_LOOPS:
        return _time_loop_case(p, device), lambda: None
    if p.operation in SPECTRAL_OPERATIONS:
        return _spectral_case(p, device), lambda: None
    dtype = torch.complex64 if p.pairs else torch.float32

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device) / p.n**0.5

    weight = normal(p.blocks, p.m, p.n)
    left, right = normal(p.blocks, p.m, p.k), normal(p.blocks, p.n, p.k)
    changed = [weight]
    if p.operation == "fused_step":
        direction, basis, probe = normal(p.blocks, p.m, p.n), left.clone(), left.clone()
        skipped = torch.zeros((), device=device)
        changed += [basis, skipped]
        lists = ([weight], [direction], [basis], [probe], [skipped])

        def run() -> object:
            return L.fused_step(*lists, _RATE, None, "exp", None, True)
    elif p.operation == "adjoint_product":
        columns = left.mT.contiguous()

        def run() -> object:
            return L.adjoint_partials(weight, columns, None)
    elif p.operation == "product":
        columns = right.mT.contiguous()

        def run() -> object:
            return L.product_columns(weight, columns, None)
    elif p.operation == "turn_rows":
        q = normal(p.blocks, 2 * p.columns, p.n)
        t = _RATE * q
        taken = torch.ones(p.blocks, dtype=torch.int8, device=device)

        def run() -> object:
            return L.turn_rows(weight, q, t, taken, None)
    elif p.operation == "rank_update":
        small = _RATE * left

        def run() -> object:
            return L.rank_update(weight, small, right)
    else:

        def run() -> object:
            return L.turn(weight, left, right, "exp", -_RATE)

    copies = [tensor.clone() for tensor in changed]

    def restore() -> None:
        for tensor, copy in zip(changed, copies, strict=True):
            tensor.copy_(copy)

    return run, restore


def _time_loop_case(p: Problem, device: torch.device) -> Run:
    """modReLU, which has the most to do."""
    from projunn_kernels.jit import launch_recurrence as L

    pair = (2,) if p.pairs else ()
    x, g = (torch.randn(p.blocks, p.m, p.n, *pair, device=device) for _ in range(2))
    weight = torch.randn(p.n, p.n, *pair, device=device) / (p.n * p.width) ** 0.5
    bias = torch.zeros(p.n, device=device)
    if p.operation == "recurrence":
        return lambda: L.forward(x, x[0], weight, bias, "modrelu")
    return lambda: L.backward(g, x, weight, bias, "modrelu")


def _spectral_case(p: Problem, device: torch.device) -> Run:
    """On a line of points that has ``blocks`` frequencies."""
    from projunn_kernels.jit import launch_spectral as L

    size = [p.blocks if p.pairs else 2 * p.blocks - 1]
    x = torch.randn(p.k, p.n, p.blocks, 2, device=device)
    if p.operation == "spectral_gradient":
        y = torch.randn(p.k, p.m, p.blocks, 2, device=device)
        return lambda: L.spectral_gradient(y, x, size, not p.pairs, 1.0)
    own = None if p.pairs else torch.randn(1, p.m, p.n, device=device)
    weight = torch.randn(p.blocks - (not p.pairs), p.m, p.n, 2, device=device)
    return lambda: L.spectral_product(x, weight, own, size, False)


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
