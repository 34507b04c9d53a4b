"""Times the candidates of each problem on the GPU and keeps the winners: ``projunn autotune``.

The tensors are its own, and what a kernel changes is restored before each candidate; one whose binary
spills registers is not timed.  Candidates are compiled ahead, by `projunn_kernels.tuning.compilers`,
for a few problems at a time; then they are timed, one at a time and with nothing beside them.  The
table of the GPU is written after every problem, so an interrupted run keeps what it has; `forget` at
the end makes it take effect in the running process too.

A candidate wins if it is faster than the closed form by 2 %, twice: the fastest of thirty has been lucky
once.  Where none wins, the closed form stays, and the table says that it was compared.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from projunn_kernels.configs import choice as tuning
from projunn_kernels.configs import tables
from projunn_kernels.configs.closed_form import candidates, closed_form
from projunn_kernels.configs.problem import SPECTRAL_OPERATIONS, TIME_LOOPS, Config, Device, Problem
from projunn_kernels.tuning.compilers import Compilation, Compilers, compilation
from projunn_kernels.tuning.fingerprints import fingerprints
from projunn_kernels.tuning.interception import intercepted, kernels
from projunn_kernels.tuning.plan import Plan

Run = Callable[[], object]
Timer = Callable[[Run], float]
Launch = tuple[str, tuple[Any, ...], dict[str, Any]]

NEEDED_GAIN = 0.02
_RATE = 1e-3


@dataclass(frozen=True)
class Result:
    """The winner of a problem; ``config`` None: no candidate ran, ``failed`` says why.

    ``kept``: the closed form stays, and the times are its own.
    """

    problem: Problem
    config: Config | None
    milliseconds: float = float("nan")
    gigabytes_per_second: float = float("nan")
    closed_form_milliseconds: float = float("nan")
    tried: int = 0
    failed: str = ""
    kept: bool = False


@dataclass(frozen=True)
class Progress:
    """What the autotuner is at.

    Attributes:
        what: in words.
        timed, candidates: configurations timed so far, and in all.
        seconds_left: about how long the rest takes.
    """

    what: str
    timed: int
    candidates: int
    seconds_left: float


@dataclass(frozen=True)
class _Prepared:
    """What is known of a problem before its candidates are timed.

    Attributes:
        compilations: what each candidate needs.
        kernels: the fingerprints of the kernels that are launched otherwise for other candidates.
        failed: why the problem cannot be run at all.
    """

    problem: Problem
    compilations: dict[Config, list[Compilation]]
    kernels: dict[str, str]
    failed: str = ""

    def needed(self) -> Iterator[Compilation]:
        """All that the candidates need."""
        return (one for some in self.compilations.values() for one in some)


def autotune(
    problems: Iterable[Problem] | Plan,
    device: torch.device,
    properties: Device,
    timer: Timer,
    *,
    seconds: float = float("inf"),
    compilers: Compilers | None = None,
    tell: Callable[[Progress], object] = lambda progress: None,
) -> Iterator[Result]:
    """Tune one problem after another; each result is in the user's table when it is yielded.

    Args:
        problems: their buckets are tuned once each.
        timer: milliseconds of a callable, `projunn_kernels.tuning.timing.cold_time` on a GPU.
        seconds: no problem is begun later than this.
        compilers: compile ahead; without them every launch compiles for itself.
        tell: is called whenever there is progress.
    """
    begun = time.monotonic()
    if not isinstance(problems, Plan):
        problems = Plan(problems, properties, 0 if compilers is None else compilers.processes)
    plan, position = problems, 0
    outcomes: dict[Compilation, str] = {}  # why it could not be compiled, empty where it could

    def say(what: str) -> None:
        tell(Progress(what, plan.timed, plan.candidates, plan.seconds_left))

    try:
        while position < len(plan.problems) and time.monotonic() - begun < seconds:
            batch = plan.batch(position)
            position += len(batch)
            started = time.monotonic()
            prepared = [_prepare(problem, device, properties) for problem in batch]
            if compilers is not None:
                needed = dict.fromkeys(one for each in prepared for one in each.needed())
                todo = [one for one in needed if one not in outcomes]
                ahead = partial(_say_compiled, say, len(todo))
                ahead(0)
                outcomes |= compilers.compile(todo, until=begun + seconds, done=ahead)
            plan.compiled(batch, time.monotonic() - started)
            for each in prepared:
                if time.monotonic() - begun > seconds:
                    return
                say(each.problem.bucket)
                started = time.monotonic()
                result = _tune(each, device, properties, timer, outcomes)
                plan.note_timed(each.problem, time.monotonic() - started)
                if result.config is not None:
                    _write(result, each, properties)
                yield result
    finally:
        tuning.forget()


def _say_compiled(say: Callable[[str], object], total: int, count: int) -> None:
    say(f"compiling, {count} of {total} kernels")


def _prepare(problem: Problem, device: torch.device, properties: Device) -> _Prepared:
    """Which kernels the candidates of a problem launch, and how; nothing is launched."""
    try:
        run, _ = _case(problem, device)
    except torch.OutOfMemoryError as error:
        return _Prepared(problem, {}, {}, _first_line(error))
    found, failed = {}, ""
    for config in candidates(problem, properties):
        with tuning.using({problem.operation: config}):
            try:
                found[config] = launches(run)
            except Exception as error:  # not a candidate
                failed = _first_line(error)
    variants: dict[str, list[Any]] = {}
    for made in found.values():
        for name, _, constants in made:
            known = variants.setdefault(name, [])
            if constants not in known:
                known.append(constants)
    configured = [name for name, known in variants.items() if len(known) > 1] or list(variants)
    return _Prepared(
        problem,
        {config: [compilation(*launch) for launch in made] for config, made in found.items()},
        {name: fingerprints()[name] for name in configured},
        "" if found else failed,
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def launches(run: Run) -> list[Launch]:
    """The launches that ``run`` would make: each kernel's name, arguments and constants."""
    names = {id(kernel): name for name, kernel in kernels().items()}
    made: list[Launch] = []

    class Noting:
        def __init__(self, kernel: Any) -> None:
            self._name = names[id(kernel)]

        def __getitem__(self, grid: object) -> Any:
            return lambda *args, **constants: made.append((self._name, args, constants))

    with intercepted(Noting):
        run()
    return made


def _tune(
    prepared: _Prepared,
    device: torch.device,
    properties: Device,
    timer: Timer,
    outcomes: dict[Compilation, str],
) -> Result:
    problem = prepared.problem
    if prepared.failed:
        return Result(problem, None, failed=prepared.failed)
    try:
        run, restore = _case(problem, device)
    except torch.OutOfMemoryError as error:
        return Result(problem, None, failed=_first_line(error))

    def time_of(config: Config) -> float:
        restore()
        with tuning.using({problem.operation: config}):
            return timer(run)

    times: dict[Config, float] = {}
    failed = ""
    for config, needed in prepared.compilations.items():
        reasons = [outcomes[one] for one in needed if outcomes.get(one)]
        if reasons:
            failed = reasons[0]
            continue
        restore()
        try:
            with tuning.using({problem.operation: config}):
                spilled = spills(run)
            if spilled:
                failed = "it spills registers"
            else:
                times[config] = time_of(config)
        except Exception as error:  # out of registers or shared memory: not a candidate
            failed = _first_line(error)
    if not times:
        return Result(problem, None, failed=failed)
    best, usual = min(times, key=lambda config: times[config]), closed_form(problem, properties)
    first = times.get(usual, float("nan"))
    if usual in times and best != usual and _wins(times[best], first):
        first, times[best] = time_of(usual), time_of(best)
    kept = usual in times and not _wins(times[best], first)
    best, spent = (usual, first) if kept else (best, times[best])
    rate = traffic(problem) / spent / 1e6
    return Result(problem, best, spent, rate, first, len(times), kept=kept)


def _wins(milliseconds: float, closed_form_milliseconds: float) -> bool:
    return milliseconds <= (1 - NEEDED_GAIN) * closed_form_milliseconds


def _write(result: Result, prepared: _Prepared, properties: Device) -> None:
    first = result.closed_form_milliseconds
    entry = tables.Entry(
        None if result.kept else result.config,
        result.milliseconds,
        first if first == first else None,  # not a number: it did not run
        prepared.kernels,
    )
    tables.write_table(properties, {result.problem.bucket: entry})


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
    from projunn_kernels.products.launch import adjoint_partials, product_columns
    from projunn_kernels.rank_update.launch import rank_update
    from projunn_kernels.retraction.launch import turn, turn_rows
    from projunn_kernels.step.launch import fused_step

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
            return fused_step(*lists, _RATE, None, "exp", None, True)
    elif p.operation == "adjoint_product":
        columns = left.mT.contiguous()

        def run() -> object:
            return adjoint_partials(weight, columns, None)
    elif p.operation == "product":
        columns = right.mT.contiguous()

        def run() -> object:
            return product_columns(weight, columns, None)
    elif p.operation == "turn_rows":
        q = normal(p.blocks, 2 * p.columns, p.n)
        t = _RATE * q
        taken = torch.ones(p.blocks, dtype=torch.int8, device=device)

        def run() -> object:
            return turn_rows(weight, q, t, taken, None)
    elif p.operation == "rank_update":
        small = _RATE * left

        def run() -> object:
            return rank_update(weight, small, right)
    else:

        def run() -> object:
            return turn(weight, left, right, "exp", -_RATE)

    copies = [tensor.clone() for tensor in changed]

    def restore() -> None:
        for tensor, copy in zip(changed, copies, strict=True):
            tensor.copy_(copy)

    return run, restore


def _time_loop_case(p: Problem, device: torch.device) -> Run:
    """modReLU, which has the most to do."""
    from projunn_kernels.time_loop import launch as L

    pair = (2,) if p.pairs else ()
    x, g = (torch.randn(p.blocks, p.m, p.n, *pair, device=device) for _ in range(2))
    weight = torch.randn(p.n, p.n, *pair, device=device) / (p.n * p.width) ** 0.5
    bias = torch.zeros(p.n, device=device)
    if p.operation == "recurrence":
        return lambda: L.forward(x, x[0], weight, bias, "modrelu")
    return lambda: L.backward(g, x, weight, bias, "modrelu")


def _spectral_case(p: Problem, device: torch.device) -> Run:
    """On a line of points that has ``blocks`` frequencies."""
    from projunn_kernels.convolution import launch as L

    size = [p.blocks if p.pairs else 2 * p.blocks - 1]
    x = torch.randn(p.k, p.n, p.blocks, 2, device=device)
    if p.operation == "spectral_gradient":
        y = torch.randn(p.k, p.m, p.blocks, 2, device=device)
        return lambda: L.spectral_gradient(y, x, size, not p.pairs, 1.0)
    own = None if p.pairs else torch.randn(1, p.m, p.n, device=device)
    weight = torch.randn(p.blocks - (not p.pairs), p.m, p.n, 2, device=device)
    return lambda: L.spectral_product(x, weight, own, size, False)
