"""Which trainings a comparison has, and what is still to be done.

For each case and method: one training with the first seed at each of its rates, and then, at the rate
with the smallest last held-out loss, one with each of the other seeds.  A training whose row is already
there is not repeated, so that a comparison that was stopped goes on where it ended.

A budget is in seconds, and a method takes as many steps in it as its pace allows (`bench.field.pace`).
"""

import json
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.field import pace
from bench.field.cases import CASES, Case
from bench.field.contender import Contender
from bench.field.trial import train
from bench.records import Results

NAME = "field"
PROTOCOL = 2  # of rows: a budget is a number of steps; before, CPU time of the training itself
_ENOUGH = 0.97  # of a budget, for a training to count as one of it

Row = dict[str, Any]


def rows(folder: Path, since: str = "") -> list[Row]:
    """The rows in a folder of results, of a date (ISO 8601) or later."""
    file = folder / f"{NAME}.jsonl"
    every = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
    return [row for row in every if row["date"] >= since]


def loss_of(row: Row) -> float:
    """The last held-out loss; infinite if the training diverged."""
    return math.inf if row["loss"] is None else row["loss"]


def chosen(found: Iterable[Row]) -> float | None:
    """The rate at which the first seed ended with the smallest loss."""
    trials = [row for row in found if row["seed"] == 0]
    return min(trials, key=loss_of)["rate"] if trials else None


def reaches(row: Row, step_s: float, seconds: float) -> bool:
    """Whether a training took as many steps as a budget has, or ended because it diverged."""
    return row["loss"] is None or row["steps"] * step_s >= _ENOUGH * seconds


def kept(found: list[Row], case: Case, contender: Contender, step_s: float, seconds: float) -> list[Row]:
    """The rows of a method at its best rate, one a seed, that reach a budget; or none.

    Trials and seeds are of one protocol and budget: the latest, and then the largest.
    """
    own = [row for row in found if (row["case"], row["method"]) == (case.name, contender.name)]
    for key in sorted({(row["protocol"], row["budget_s"]) for row in own}, reverse=True):
        same = [row for row in own if (row["protocol"], row["budget_s"]) == key]
        same = [row for row in same if reaches(row, step_s, seconds)]
        best = chosen(same)
        seeds = {row["seed"]: row for row in same if row["rate"] == best}
        if set(range(case.seeds)) <= set(seeds):
            return [seeds[seed] for seed in range(case.seeds)]
    return []


def _named(contenders: tuple[Contender, ...], names: Sequence[str]) -> list[Contender]:
    """The contenders whose name, or a part of it, is given; all, if no name is."""
    whole = {one.name for one in contenders} & set(names)
    parts = [name.lower() for name in names if name not in whole]
    return [
        one
        for one in contenders
        if not names or one.name in whole or any(part in one.name.lower() for part in parts)
    ]


class Comparison:
    """The trainings of some cases.

    Args:
        results: where rows are and go.
        cases: what is compared on what.
        seconds: the budget of each training in place of each case's own.
        data: the file of images, for the cases that read one.
        since: rows of before this date do not count as done.
    """

    def __init__(
        self,
        results: Results,
        cases: list[Case],
        *,
        seconds: float | None = None,
        data: Path | None = None,
        since: str = "",
    ) -> None:
        self.results, self.cases, self.data = results, cases, data
        self.seconds, self.since = seconds, since
        self.missing: dict[str, str] = {}

    def run(self, names: Sequence[str] = ()) -> None:
        """Train what is not done, and say so: all methods, or those of some names or parts of them."""
        for case in self.cases:
            paces = self._paces(case)
            of_case = _named(case.contenders, names)
            for number, contender in enumerate(of_case, 1):
                where = f"{case.name}, {number} of {len(of_case)}: {contender.name}"
                if contender.name in paces:
                    self._contend(case, contender, paces[contender.name], where)
                if contender.name in self.missing:
                    print(f"{where} is left out: {self.missing[contender.name]}", flush=True)

    def pace(self) -> None:
        """Measure the paces of all methods again; the least of all measurements holds."""
        for case in self.cases:
            self._note_paces(case, pace.measure(case, case.contenders, self.data)[0])

    def _paces(self, case: Case) -> dict[str, float]:
        """The seconds that a step of each method takes; measured, if one of them is not known."""
        known = pace.known(self.results.folder, case, self.since)
        if all(one.name in known for one in case.contenders):
            return known
        print(f"{case.name}: seconds a step of each method", flush=True)
        measured, missing = pace.measure(case, case.contenders, self.data)
        self.missing |= missing
        added = pace.in_unit_of(known, measured)
        self._note_paces(case, added)
        return known | added

    def _note_paces(self, case: Case, paces: dict[str, float]) -> None:
        rows = [{"case": case.name, "method": name, "step_s": step} for name, step in paces.items()]
        self.results.append(pace.NAME, rows)

    def _contend(self, case: Case, contender: Contender, step_s: float, where: str) -> None:
        for rate in self._rates(case, contender):
            self._train(case, contender, rate, 0, step_s, where)
            if contender.name in self.missing:
                return
        best = chosen(self._done(case, contender, step_s))
        if best is None:
            print(f"{where} is left out: it has no rate from {case.rates_of}", flush=True)
            return
        for seed in range(1, case.seeds):
            self._train(case, contender, best, seed, step_s, where)

    def _rates(self, case: Case, contender: Contender) -> tuple[float, ...]:
        """The rates to try: its own, or its best one in the case that this one takes over rates from."""
        if case.rates_of is None:
            return contender.rates
        other = CASES[case.rates_of]
        step_s = pace.known(self.results.folder, other).get(contender.name)
        found = rows(self.results.folder)
        own = kept(found, other, contender, step_s, other.seconds) if step_s else []
        return (own[0]["rate"],) if own else ()

    def _budget(self, case: Case) -> float:
        return case.seconds if self.seconds is None else self.seconds

    def _done(self, case: Case, contender: Contender, step_s: float) -> list[Row]:
        key = (PROTOCOL, case.name, contender.name, self._budget(case))
        return [
            row
            for row in rows(self.results.folder, self.since)
            if (row["protocol"], row["case"], row["method"], row["budget_s"]) == key
            and reaches(row, step_s, self._budget(case))
        ]

    def _train(
        self, case: Case, contender: Contender, rate: float, seed: int, step_s: float, where: str
    ) -> None:
        done = [(row["rate"], row["seed"]) for row in self._done(case, contender, step_s)]
        if (rate, seed) in done:
            return
        started, budget = time.perf_counter(), self._budget(case)
        try:
            row = train(case, contender, rate, seed, max(1, round(budget / step_s)), self.data)
        except ImportError as error:
            self.missing[contender.name] = pace.what_is_missing(error)
            return
        key = {"protocol": PROTOCOL, "case": case.name, "method": contender.name}
        key |= {"rate": rate, "seed": seed, "budget_s": budget}
        self.results.append(NAME, [key | row])
        wall = time.perf_counter() - started
        print(
            f"{where}, rate {rate:g}, seed {seed}: loss {loss_of(row):.4g} after {row['steps']} steps"
            f" ({wall:.0f} s)",
            flush=True,
        )
