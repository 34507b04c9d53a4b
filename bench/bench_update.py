"""The update of one orthogonal weight, gradient given: ours, and the whole step of others.

ours        factorize(G, 1, "lsi") and retract_, for each retraction; and optim.SGD's whole step
copy        a copy of the matrix: the floor
the others  `bench.peers`
"""

from collections.abc import Callable
from typing import Any

import torch

from bench.peers import peers
from bench.records import record, show, timing_rows
from bench.timing import measure
from projunn import factorize, init, retract_
from projunn.nn import UnitaryLinear
from projunn.optim import SGD

LR = 1e-3


def ours(n: int, rank: int, dtype: torch.dtype, gradient: torch.Tensor) -> dict[str, Callable[[], None]]:
    """Our steps, each on a weight of its own."""
    cases: dict[str, Callable[[], None]] = {}

    def update(retraction: str) -> Callable[[], None]:
        weight = init.haar_(torch.empty(n, n, dtype=dtype))

        def step() -> None:
            left, right = factorize(gradient, rank, "lsi")
            retract_(weight, left * -LR, right, retraction)

        return step

    for retraction in ("exp", "polar", "cayley"):
        cases[f"projunn {retraction}"] = update(retraction)
    layer = UnitaryLinear(n, n, bias=False, dtype=dtype)
    layer.weight.grad = torch.view_as_real(gradient) if dtype.is_complex else gradient
    optimizer = SGD(layer.parameters(), lr=LR, rank=rank)
    cases["projunn SGD.step"] = optimizer.step
    return cases


def run(quick: bool = False) -> None:
    """Print and record the table for every size."""
    sizes = (256,) if quick else (256, 1024, 2048)
    for dtype in (torch.float32, torch.complex64):
        for n in sizes:
            rows: list[dict[str, Any]] = []
            gradient = torch.randn(n, n, dtype=dtype) / n
            cases = ours(n, 1, dtype, gradient)
            cases["copy"] = gradient.clone
            rounds = 5 if quick else 20
            if dtype == torch.float32:
                cases.update(peers(init.haar_(torch.empty(n, n)), gradient))
                rounds = 5 if n > 256 else 20
            times = measure(cases, rounds)
            case = {"n": n, "rank": 1, "dtype": str(dtype).removeprefix("torch.")}
            rows = timing_rows(case, times, "projunn exp")
            show(f"update step, n = {n}, rank 1, {case['dtype']}", rows)
            others = [name for name in times if not name.startswith(("projunn", "copy"))]
            if others:
                fastest = min(others, key=lambda name: times[name].median)
                factor = times[fastest].ratio(times["projunn exp"])
                print(f"  fastest peer: {fastest}, {factor:.1f} times projunn exp")
            record("update", rows)
