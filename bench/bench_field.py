"""Training at equal budgets against other methods: `bench.field`, by the rules of ``docs/protocol.md``.

The quick form measures paces and trains for two seconds each, and repeats all of it; the other one goes
on where it was.
"""

import datetime
from dataclasses import replace

import torch

from bench.field import report
from bench.field.cases import CASES, SHORT
from bench.field.protocol import Comparison
from bench.records import Results

_SHORT_SECONDS = 2.0
_SHORT_POINTS = 4  # of a curve: the held-out batches of twelve take longer than the training


def run(results: Results, quick: bool = False) -> None:
    """Train, and print and draw what the rows say."""
    threads, since, suffix, seconds = torch.get_num_threads(), "", "", None
    if quick:
        now = datetime.datetime.now(datetime.UTC)
        since, suffix, seconds = now.isoformat(timespec="seconds"), "-short", _SHORT_SECONDS
    short = [replace(CASES[name], points=_SHORT_POINTS) for name in SHORT]
    cases = short if quick else [c for c in CASES.values() if not c.images]
    torch.set_num_threads(1)
    try:
        Comparison(results, cases, seconds=seconds, since=since).run()
    finally:
        torch.set_num_threads(threads)
    print(report.tables(results.folder, since, seconds))
    for path in report.draw(results.folder, since, seconds, suffix):
        print(path)
