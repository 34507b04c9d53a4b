"""Times the candidates of each problem on the GPU and keeps the winners: ``projunn autotune``.

The autotuner makes the tensors itself, and restores what a kernel changes before each candidate.  A
candidate whose binary spills registers is not timed.  Candidates are compiled ahead, by
`projunn_kernels.tuning.compilers`, for a few problems at a time; then they are timed, one at a time and
with nothing beside them.  The table of the GPU is written after every problem, so an interrupted run
keeps what it has; `forget` at the end makes it take effect in the running process too.

A candidate wins if it is faster than the closed form by 2 %, twice: the fastest of thirty has been lucky
once.  Where none wins, the closed form stays, and the table says that it was compared.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from projunn_kernels.configs import choice as tuning
from projunn_kernels.configs import tables
from projunn_kernels.configs.closed_form import candidates, closed_form
from projunn_kernels.configs.fingerprints import fingerprints
from projunn_kernels.configs.kernel import KERNELS, Inputs
from projunn_kernels.configs.problem import Config, Device, Problem
from projunn_kernels.launching import intercepted
from projunn_kernels.tuning.aot_problems import recorded
from projunn_kernels.tuning.compilers import Compilation, Compilers, compilation
from projunn_kernels.tuning.plan import Plan

Run = Callable[[], object]
Timer = Callable[[Run], float]
Launch = tuple[str, tuple[Any, ...], dict[str, Any]]

NEEDED_GAIN = 0.02
_TIMED_STEPS = 100  # of a loop over time on a GPU; in the interpreter, times mean nothing


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
    """How far the autotuner has got.

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
        """All compilations that the candidates need."""
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
    of_each: list[dict[str, list[Any]]] = []  # constants of all launches of a kernel, by candidate
    for made in found.values():
        of_each.append({})
        for name, _, constants in made:
            of_each[-1].setdefault(name, []).append(constants)
    names = list(dict.fromkeys(name for constants_of in of_each for name in constants_of))
    differ = [n for n in names if any(one.get(n) != of_each[0].get(n) for one in of_each)]
    configured = differ or names
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
    with recorded() as made:
        run()
    return [(kernel.__name__, arguments, constants) for kernel, arguments, constants in made]


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
            return lambda **arguments: binaries.append(self._kernel[grid](**arguments))

    with intercepted(Noting):
        run()
    return any(getattr(binary, "n_spills", 0) for binary in binaries)  # interpreted: there is none


def traffic(problem: Problem) -> int:
    """Bytes that a launch has to move at least; `basis` is timed within a whole retraction."""
    return 4 * problem.width * KERNELS[problem.operation].numbers(problem)


def _case(problem: Problem, device: torch.device) -> tuple[Run, Run]:
    """A launch of the first variant on fresh tensors, and what puts them back."""
    kernel, inputs = KERNELS[problem.operation], Inputs(device)
    if device.type != "cpu":
        inputs.steps = _TIMED_STEPS
    case = kernel.case(problem, inputs, **next(kernel.variants_of(problem)))
    changed = [case.tensors[name] for name in case.changed]
    copies = [None if tensor is None else tensor.clone() for tensor in changed]

    def restore() -> None:
        for tensor, copy in zip(changed, copies, strict=True):
            if tensor is not None and copy is not None:
                tensor.copy_(copy)

    return case.run, restore
