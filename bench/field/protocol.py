"""Which trainings a comparison has, and what is still to be done.

For each case and method: one training with the first seed at each of its rates, and then, at the rate
with the smallest last held-out loss, one with each of the other seeds.  A training whose row is already
there is not repeated, so that a comparison that was stopped goes on where it ended.
"""

import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.field.cases import Case
from bench.field.contender import Contender
from bench.field.trial import train
from bench.records import Results

NAME = "field"
PROTOCOL = 1  # of rows; to be raised when rows of before cannot be compared with new ones
SEEDS = (0, 1, 2)

Row = dict[str, Any]


def rows(folder: Path, since: str = "") -> list[Row]:
    """The rows of this protocol in a folder of results, of a date (ISO 8601) or later."""
    file = folder / f"{NAME}.jsonl"
    every = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [row for row in every if row["protocol"] == PROTOCOL and row["date"] >= since]


def loss_of(row: Row) -> float:
    """The last held-out loss; infinite if the training diverged."""
    return math.inf if row["loss"] is None else row["loss"]


def chosen(found: Iterable[Row]) -> float | None:
    """The rate at which the first seed ended with the smallest loss."""
    trials = [row for row in found if row["seed"] == SEEDS[0]]
    return min(trials, key=loss_of)["rate"] if trials else None


class Comparison:
    """The trainings of some cases.

    Args:
        results: where rows are and go.
        cases: what is compared on what.
        seconds: the budget of each training in place of each case's own.
        seeds: of the trainings at the best rate; the first is that of the trials.
        data: the file of images, for the cases that read one.
        since: rows of before this date do not count as done.
        rates_of: another case, whose best rate each method gets in place of trials.
    """

    def __init__(
        self,
        results: Results,
        cases: list[Case],
        *,
        seconds: float | None = None,
        seeds: tuple[int, ...] = SEEDS,
        data: Path | None = None,
        since: str = "",
        rates_of: Case | None = None,
    ) -> None:
        self.results, self.cases, self.seeds, self.data = results, cases, seeds, data
        self.seconds, self.since, self.rates_of = seconds, since, rates_of
        self.missing: dict[str, str] = {}

    def run(self, names: tuple[str, ...] = ()) -> None:
        """Train all that is not done, and say so; ``names`` are parts of names of methods, or none."""
        for case in self.cases:
            of_case = [
                one
                for one in case.contenders
                if not names or any(name.lower() in one.name.lower() for name in names)
            ]
            for number, contender in enumerate(of_case, 1):
                self._contend(case, contender, f"{case.name}, {number} of {len(of_case)}")

    def _contend(self, case: Case, contender: Contender, where: str) -> None:
        for rate in self._rates(contender):
            self._train(case, contender, rate, self.seeds[0], where)
            if contender.name in self.missing:
                return
        best = chosen(self._done(case, contender))
        if best is None:
            print(f"{where}: {contender.name} is left out: it has no rate", flush=True)
            return
        for seed in self.seeds[1:]:
            self._train(case, contender, best, seed, where)

    def _rates(self, contender: Contender) -> tuple[float, ...]:
        """Those that are tried: its own, or the best of another case, if it was trained on it."""
        if self.rates_of is None:
            return contender.rates
        best = chosen(
            row
            for row in rows(self.results.folder)
            if (row["case"], row["method"], row["budget_s"])
            == (self.rates_of.name, contender.name, self.rates_of.seconds)
        )
        return () if best is None else (best,)

    def _budget(self, case: Case) -> float:
        return case.seconds if self.seconds is None else self.seconds

    def _done(self, case: Case, contender: Contender) -> list[Row]:
        return [
            row
            for row in rows(self.results.folder, self.since)
            if (row["case"], row["method"], row["budget_s"])
            == (case.name, contender.name, self._budget(case))
        ]

    def _train(self, case: Case, contender: Contender, rate: float, seed: int, where: str) -> None:
        done = [(row["rate"], row["seed"]) for row in self._done(case, contender)]
        if (rate, seed) in done:
            return
        started, budget = time.perf_counter(), self._budget(case)
        what = f"{where}: {contender.name}, rate {rate:g}, seed {seed}"
        try:
            row = train(case, contender, rate, seed, budget, self.data)
        except ImportError as error:
            self.missing[contender.name] = f"{error.name or error} is not installed"
            print(f"{where}: {contender.name} is left out: {self.missing[contender.name]}", flush=True)
            return
        key = {"protocol": PROTOCOL, "case": case.name, "method": contender.name}
        key |= {"rate": rate, "seed": seed, "budget_s": budget}
        self.results.append(NAME, [key | row])
        wall = time.perf_counter() - started
        print(
            f"{what}: loss {loss_of(row):.4g} after {row['steps']} steps, {row['seconds']:.0f} s of CPU"
            f" ({wall:.0f} s)",
            flush=True,
        )
