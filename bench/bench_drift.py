"""Drift control: the defect over a million rank-one steps, and what the polish costs.

The steps are the optimizer's own, with random rank-one gradients of norm 1, so that they never
shrink.  The cost is measured in two ways: a period of steps with its polish against one without,
taken in turn; and the time of one polish, spread over its period, against that of a step (the
steadier figure).
"""

import torch
from torch.nn.functional import normalize

from bench.records import Results, Row, show
from bench.timing import measure
from projunn import unitarity_defect
from projunn.nn import UnitaryLinear
from projunn.noticing import TOLERANCE
from projunn.optim import SGD
from projunn.optim.drift import polish_period
from projunn_kernels import polish_near_

SIZE, STEPS, CHUNK = 64, 1_000_000, 100_000
BOUND, SHARE = 1e-6, 0.02


class Walk:
    """A weight driven by random rank-one gradients of norm 1 through the optimizer."""

    def __init__(self, n: int) -> None:
        self.source = torch.Generator().manual_seed(0)
        layer = UnitaryLinear(n, n, bias=False)
        self.weight = layer.weight
        self.gradient = self.weight.grad = torch.empty(n, n)
        self.optimizer = SGD(layer.parameters(), lr=1.0, unitary_lr=0.3, factorization="lsi")
        self.period = polish_period(self.weight)
        self.taken = 0

    def worst_defect(self, steps: int) -> float:
        """Take the steps; the largest defect met, looked at just before every polish too."""
        worst = torch.zeros(())
        for _ in range(steps):
            noise = torch.randn(2, len(self.weight), generator=self.source)
            torch.outer(*normalize(noise), out=self.gradient)
            self.optimizer.step()
            self.taken += 1
            if self.taken % 97 == 0 or (self.taken + 1) % self.period == 0:
                worst = worst.maximum(unitarity_defect(self.weight))
        return worst.item()


def cost(n: int, rounds: int) -> Row:
    """What the polish adds to the time of the steps."""
    period = polish_period(torch.empty(n, n))

    def steps(polish_every: int | None) -> SGD:
        layer = UnitaryLinear(n, n, bias=False)
        layer.weight.grad = torch.randn(n, n) / n
        return SGD(layer.parameters(), lr=1e-3, polish_every=polish_every)

    def a_period(optimizer: SGD) -> None:
        for _ in range(period):
            optimizer.step()

    on, off = steps(None), steps(0)
    periods = {"on": lambda: a_period(on), "off": lambda: a_period(off)}
    pairs = measure(periods, rounds, primed=False)
    weight = UnitaryLinear(n, n, bias=False).weight.detach()
    single = measure({"step": off.step, "polish": lambda: polish_near_(weight, TOLERANCE)}, 10 * rounds)
    return {
        "n": n,
        "period": period,
        "step_ms": round(single["step"].median, 4),
        "polish_ms": round(single["polish"].median, 4),
        "share": round(single["polish"].ratio(single["step"]) / period, 5),
        "share_pairwise": round(pairs["on"].ratio(pairs["off"]) - 1, 5),
        "rounds": rounds,
    }


def run(results: Results, quick: bool = False) -> None:
    """Print and record both."""
    costs = [cost(n, 3 if quick else 15) for n in ((64,) if quick else (64, 256, 1024))]
    title = f"cost of the polish as a share of the steps; wanted: under {SHARE:g}"
    results.report("drift_cost", title, costs)

    threads, total = torch.get_num_threads(), 10_000 if quick else STEPS
    torch.set_num_threads(1)
    walk, rows = Walk(SIZE), []
    while walk.taken < total:
        defect = walk.worst_defect(min(CHUNK, total - walk.taken))
        row = {"n": SIZE, "dtype": "float32", "steps": walk.taken, "worst_defect": defect}
        results.append("drift", [row])
        rows.append(row)
    torch.set_num_threads(threads)
    show(f"largest defect of each part of a walk; wanted: under {BOUND:g}", rows)
