"""The training step of one linear layer: unitary with sketched gradients, unconstrained, and others.

A step is forward, mean square loss against a fixed target, backward and the optimizer, of one bias-free
n x n layer.  ``first`` is a network's first layer, whose input is data.  The input of an ``inner`` one
asks for its gradient, a product that both layers pay: 2/3 of the unconstrained step is then the least.

    projunn sketched    UnitaryLinear(sketch_rank=1) and SGD, rank 1
    projunn dense       UnitaryLinear and SGD, rank 1
    nn.Linear + SGD     the unconstrained layer
    nn.Linear + AdamW   likewise
    the others          nn.Linear kept orthogonal by POGO, geoopt, geotorch, PyTorch's parametrization

``ratio`` is the time as a multiple of that of ``nn.Linear + SGD`` in the same round.  Two more tables
show the sketched step over n and over the rank k, with the slope of log time over log n, or k.
"""

import itertools
from collections.abc import Callable
from math import log

import torch
from torch import Tensor, nn

from bench.peers import LR, trained_peers
from bench.records import Results, timing_rows
from bench.timing import measure
from projunn.nn import UnitaryLinear
from projunn.optim import SGD

REFERENCE = "nn.Linear + SGD"
TARGETS = {1024: 0.95, 2048: 0.95, 4096: 0.75}


def training_step(
    layer: nn.Module, optimizer: torch.optim.Optimizer, input: Tensor, target: Tensor
) -> Callable[[], None]:
    """The whole step as a callable."""

    def step() -> None:
        optimizer.zero_grad()
        input.grad = None
        nn.functional.mse_loss(layer(input), target).backward()
        optimizer.step()

    return step


def cases(
    n: int, rows: int, rank: int, others: bool, inner: bool = True
) -> dict[str, Callable[[], None]]:
    """Every layer with its own weights, on the same input."""
    input, target = torch.randn(rows, n, requires_grad=inner), torch.randn(rows, n)

    def ours(sketch_rank: int | None) -> Callable[[], None]:
        layer = UnitaryLinear(n, n, bias=False, sketch_rank=sketch_rank)
        return training_step(layer, SGD(layer.parameters(), lr=LR, rank=rank), input, target)

    def plain(rule: type[torch.optim.Optimizer]) -> Callable[[], None]:
        layer = nn.Linear(n, n, bias=False)
        return training_step(layer, rule(layer.parameters(), lr=LR), input, target)

    steps = {
        "projunn sketched": ours(rank),
        "projunn dense": ours(None),
        REFERENCE: plain(torch.optim.SGD),
        "nn.Linear + AdamW": plain(torch.optim.AdamW),
    }
    if others:
        for name, (layer, optimizer) in trained_peers(n).items():
            steps[name] = training_step(layer, optimizer, input, target)
    return steps


def run(results: Results, quick: bool = False) -> None:
    """Print and record a table for every size."""
    sizes = (256,) if quick else (1024, 2048, 4096)
    for n, rows, place in itertools.product(sizes, (64, 512), ("first", "inner")):
        steps = cases(n, rows, rank=1, others=n <= 1024, inner=place == "inner")
        times = measure(steps, 5 if quick else 40, seconds=5 if quick else 25)
        case = {"n": n, "rows": rows, "rank": 1, "dtype": "float32", "layer": place}
        title = f"training step of a network's {place} linear layer, n = {n}, {rows} rows, rank 1"
        results.report("linear", title, timing_rows(case, times, REFERENCE))
        ratio = times["projunn sketched"].ratio(times[REFERENCE])
        print(f"projunn sketched / {REFERENCE}: {ratio:.2f}; wanted: {TARGETS.get(n, 1)}")
    curves(results, quick)


def curves(results: Results, quick: bool = False) -> None:
    """The sketched step over n at 64 rows, and over k at one n; each table with its slopes."""
    sizes = (64, 128) if quick else (256, 512, 1024, 2048, 4096, 8192)
    ranks = (1, 2) if quick else (1, 2, 4, 8, 16, 32, 64)
    for name, values in (("n", sizes), ("k", ranks)):
        steps = {}
        for value in values:
            n, k = (value, 1) if name == "n" else (sizes[-3 if not quick else 0], value)
            steps[f"{name}={value}"] = cases(n, 64, k, others=False)["projunn sketched"]
        times = measure(steps, 3 if quick else 15, seconds=5 if quick else 30)
        medians = [times[key].median for key in steps]
        rows = [
            {"curve": name, name: value, "rows": 64, "median_ms": round(own, 4), "slope": slope}
            for value, own, slope in zip(values, medians, slopes(values, medians), strict=True)
        ]
        results.report("linear_curves", f"sketched training step over {name}, 64 rows", rows)


def slopes(values: tuple[int, ...], times: list[float]) -> list[float]:
    """log(t2 / t1) / log(v2 / v1) from each value to the one before; 0 for the first."""
    points = list(zip(values, times, strict=True))
    later = itertools.pairwise(points)
    return [0.0] + [round(log(t2 / t1) / log(v2 / v1), 2) for (v1, t1), (v2, t2) in later]
