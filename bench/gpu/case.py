"""What a stage is made of, and in which order it is run."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

Row = dict[str, Any]
Step = Callable[[], object]


class Case(NamedTuple):
    """A check or a measurement.

    Attributes:
        name: unique among all cases of all stages.
        kind: cases of one kind stand for each other where a run is cut short.
        call: the row to record.  A check gives one number, its ``share``: the error as a multiple of
            what is allowed.  It passes up to 1.
    """

    name: str
    kind: str
    call: Callable[[], Row | float]


class Absent(Exception):
    """A case needs what this machine does not have: another library, the published code."""


def interleaved(cases: Iterable[Case], passed: Mapping[str, str]) -> list[str]:
    """Names of the cases in an order in which any beginning has seen something of everything.

    One case of every kind, then a second one of every kind, and so on.  Among cases of one kind, and
    among the kinds of a round, what never passed comes first, then what ``passed`` longest ago.

    Args:
        passed: date (ISO 8601) of the last pass, by name.
    """
    kinds: dict[str, list[str]] = {}
    for case in cases:
        kinds.setdefault(case.kind, []).append(case.name)
    for names in kinds.values():
        names.sort(key=lambda name: passed.get(name, ""))
    rounds: dict[int, list[str]] = {}
    for names in kinds.values():
        for i, name in enumerate(names):
            rounds.setdefault(i, []).append(name)
    return [
        name for i in sorted(rounds) for name in sorted(rounds[i], key=lambda name: passed.get(name, ""))
    ]


def one_of_each_kind(cases: Iterable[Case]) -> list[str]:
    """The first case of every kind: what a dry run takes."""
    first: dict[str, str] = {}
    for case in cases:
        first.setdefault(case.kind, case.name)
    return list(first.values())
