"""The seconds of a method's step, measured with all methods of a case in turn in one process.

A shared machine is now faster and now slower, and trainings that run hours apart meet different ones.
Here every method meets the same: some steps of one, then some of the next, round after round.  A budget
in seconds becomes a number of steps by it, which a busy machine does not change.
"""

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median

from bench.field.cases import Case
from bench.field.contender import Contender
from bench.field.trial import Training

NAME = "field_pace"
_ROUNDS = 15
_VISIT = 0.1  # seconds of CPU time of a method in a round, at least one step


def measure(
    case: Case, contenders: Iterable[Contender], data: Path | None = None, rounds: int = _ROUNDS
) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds of CPU time a step of each method, the least over the rounds: what else runs only adds.

    Returns:
        The seconds, and for the methods that have none, what is missing.
    """
    trainings, missing = {}, {}
    for one in contenders:
        try:
            trainings[one.name] = Training(case, one, one.rates[0], 0, data)
        except ImportError as error:
            missing[one.name] = what_is_missing(error)
    times: dict[str, list[float]] = {name: [] for name in trainings}
    for number in range(rounds + 1):
        for name, training in trainings.items():
            seconds = _visit(training)
            if number:  # the first round is a warm-up
                times[name].append(seconds)
    return {name: float(f"{min(own):.4g}") for name, own in times.items()}, missing


def _visit(training: Training) -> float:
    spent, steps = 0.0, 0
    while spent < _VISIT:
        started = time.process_time()
        training.step()
        spent += time.process_time() - started
        steps += 1
    return spent / steps


def in_unit_of(known: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, float]:
    """The paces that are not known yet, scaled to the machine on which the known ones were measured."""
    both = [known[name] / measured[name] for name in measured if name in known]
    scale = median(both) if both else 1.0
    return {n: float(f"{scale * s:.4g}") for n, s in measured.items() if n not in known}


def what_is_missing(error: ImportError) -> str:
    return f"{error.name or error} is not installed"


def known(folder: Path, case: Case, since: str = "") -> dict[str, float]:
    """Seconds a step of each method: the least that rows of a date (ISO 8601) or later have."""
    file = folder / f"{NAME}.jsonl"
    rows = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
    least: dict[str, float] = {}
    for row in rows:
        if row["case"] == case.name and row["date"] >= since:
            least[row["method"]] = min(row["step_s"], least.get(row["method"], row["step_s"]))
    return least
