"""Drift control: the defect over a million rank-one steps, and what the polish costs."""

from typing import Any

import torch

from bench.records import record, show
from bench.timing import measure
from projunn import unitarity_defect
from projunn.drift import polish_, polish_period
from projunn.nn import UnitaryLinear
from projunn.optim import SGD


def worst_defect(n: int, steps: int) -> float:
    """The largest defect met, looked at just before polishes too."""
    torch.manual_seed(0)
    layer = UnitaryLinear(n, n, bias=False)
    optimizer = SGD(layer.parameters(), lr=1.0, unitary_lr=0.3, factorization="lsi")
    layer.weight.grad = torch.empty(n, n)
    period, worst = polish_period(layer.weight), 0.0
    for step in range(1, steps + 1):
        left, right = torch.nn.functional.normalize(torch.randn(2, n))
        torch.outer(left, right, out=layer.weight.grad)
        optimizer.step()
        if step % 97 == 0 or (step + 1) % period == 0:
            worst = max(worst, unitarity_defect(layer.weight).item())
    return worst


def share_of_polish(n: int, rounds: int) -> dict[str, Any]:
    """Time of a polish, spread over its period, against that of a step."""
    layer = UnitaryLinear(n, n, bias=False)
    layer.weight.grad = torch.randn(n, n) / n
    optimizer = SGD(layer.parameters(), lr=1e-3, polish_every=0)
    weight = layer.weight.detach()
    times = measure({"step": optimizer.step, "polish": lambda: polish_(weight)}, rounds)
    period = polish_period(weight)
    return {
        "n": n,
        "step_ms": round(times["step"].median, 4),
        "polish_ms": round(times["polish"].median, 4),
        "period": period,
        "share": round(times["polish"].ratio(times["step"]) / period, 5),
    }


def run(quick: bool = False) -> None:
    """Print and record both."""
    shares = [
        share_of_polish(n, 5 if quick else 20) for n in ((64, 256) if quick else (64, 256, 1024, 2048))
    ]
    show("cost of the polish as a share of the step", shares)
    record("drift_cost", shares)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    steps = 10_000 if quick else 1_000_000
    rows = [{"n": 64, "steps": steps, "worst_defect": worst_defect(64, steps)}]
    torch.set_num_threads(threads)
    show("unitarity defect with drift control", rows)
    record("drift", rows)
