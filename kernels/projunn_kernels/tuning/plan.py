"""The work that a run of the autotuner has left, and about how long it takes.

    seconds = seconds of compiling / processes + seconds of timing

Both begin as guesses from the number of candidates, and follow what is measured as the run goes on.
"""

from collections.abc import Iterable

from projunn_kernels.configs.closed_form import candidates
from projunn_kernels.configs.problem import Config, Device, Problem

_Kind = tuple[str, bool, int, Config]

# Seconds for one kernel on one core, and for one candidate on a GPU.  What computes small matrices
# within a kernel takes longer, the more the larger they are.
_COMPILING, _TIMING = 1.0, 0.06
_ALGEBRA = ("fused_step", "basis")
_FIRST = 6.0  # seconds until the first processes are up
_TRUST = 10.0  # seconds of guesses after which what was measured counts as much as they do


class Plan:
    """The problems of a run, and the time that is left.

    Args:
        problems: those of one bucket count once.
        device: the properties of the GPU.
        processes: that compile; 0 if every launch compiles for itself.

    Attributes:
        problems: one of each bucket.
        candidates: configurations to be timed, in all.
        timed: how many of them were.
    """

    def __init__(self, problems: Iterable[Problem], device: Device, processes: int) -> None:
        first: dict[str, Problem] = {}
        for problem in problems:
            first.setdefault(problem.bucket, problem)
        self.problems = list(first.values())
        self.processes = processes
        self._device = device
        self._kinds: dict[_Kind, float] = {}  # to be compiled, and the guessed seconds
        for problem in self.problems:
            self._kinds |= self._costs(problem)
        self.candidates = sum(len(candidates(problem, device)) for problem in self.problems)
        self.timed = 0
        self._compiling, self._timing = _Pace(), _Pace()
        self._start = _FIRST if processes else 0.0

    def _costs(self, problem: Problem) -> dict[_Kind, float]:
        """The binaries of a problem: sizes of matrices make no difference to them."""
        p, cost = problem, _COMPILING
        if p.operation in _ALGEBRA:
            cost += 1.0 + 2.0 * p.columns
        return {(p.operation, p.pairs, p.columns, c): cost for c in candidates(p, self._device)}

    @property
    def seconds_left(self) -> float:
        """About how long the rest takes."""
        compiling = self._compiling.ratio * self._share(sum(self._kinds.values()))
        timing = self._timing.ratio * _TIMING * (self.candidates - self.timed)
        return self._start + compiling + timing

    def batch(self, position: int) -> list[Problem]:
        """The next problems, from a position on, to compile together: enough for all processes."""
        found: list[Problem] = []
        kinds: set[_Kind] = set()
        for problem in self.problems[position:]:
            if found and len(kinds) >= 2 * self.processes:
                break
            found.append(problem)
            kinds |= self._costs(problem).keys() & self._kinds.keys()
        return found

    def compiled(self, problems: Iterable[Problem], seconds: float) -> None:
        """Note that the candidates of these problems are compiled, and how long that took."""
        guessed = 0.0
        for problem in problems:
            for kind in self._costs(problem):
                guessed += self._kinds.pop(kind, 0.0)
        self._compiling.note(self._share(guessed) + self._start, seconds)
        self._start = 0.0

    def note_timed(self, problem: Problem, seconds: float) -> None:
        """Note that the candidates of a problem are timed, and how long that took."""
        count = len(candidates(problem, self._device))
        self.timed += count
        self._timing.note(_TIMING * count, seconds)

    def _share(self, seconds: float) -> float:
        return seconds / max(1, self.processes)


class _Pace:
    """How long things take, as a multiple of what was guessed."""

    def __init__(self) -> None:
        self._guessed = self._measured = _TRUST

    @property
    def ratio(self) -> float:
        return self._measured / self._guessed

    def note(self, guessed: float, measured: float) -> None:
        self._guessed += guessed
        self._measured += measured


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``1 h 05 min``: to a reader's precision."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
