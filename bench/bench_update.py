"""The update of one orthogonal weight, gradient given: ours, and the whole step of others.

    projunn exp, polar, cayley    factorize(G, 1, "lsi") and retract_
    projunn SGD.step              the optimizer's whole step, with its defaults
    copy                          a copy of the matrix: the floor
    the others                    `bench.peers`, for real weights up to n = 2048

``ratio`` is the time as a multiple of that of ``projunn exp`` in the same round.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.peers import LR, peers
from bench.records import Results, timing_rows
from bench.timing import measure
from projunn import factorize, init, retract_
from projunn.nn import UnitaryLinear
from projunn.optim import SGD

RANK = 1
TARGET = 15  # times the fastest peer, at n = 1024
REFERENCE = "projunn exp"


def ours(n: int, dtype: torch.dtype, gradient: Tensor) -> dict[str, Callable[[], object]]:
    """Our steps, each on a weight of its own."""

    def update(retraction: str) -> Callable[[], None]:
        weight = init.haar_(torch.empty(n, n, dtype=dtype))

        def step() -> None:
            left, right = factorize(gradient, RANK, "lsi")
            retract_(weight, left * -LR, right, retraction)

        return step

    layer = UnitaryLinear(n, n, bias=False, dtype=dtype)
    layer.weight.grad = torch.view_as_real(gradient) if dtype.is_complex else gradient
    optimizer = SGD(layer.parameters(), lr=LR, rank=RANK)
    steps = {f"projunn {name}": update(name) for name in ("exp", "polar", "cayley")}
    return steps | {"projunn SGD.step": optimizer.step}


def run(results: Results, quick: bool = False) -> None:
    """Print and record a table for every size."""
    for dtype in (torch.float32, torch.complex64):
        for n in (256,) if quick else (256, 1024, 2048, 4096):
            gradient = torch.randn(n, n, dtype=dtype) / n
            cases = ours(n, dtype, gradient) | {"copy": gradient.clone}
            others: list[str] = []
            if dtype == torch.float32 and n <= 2048:
                found = peers(init.haar_(torch.empty(n, n)), gradient)
                cases, others = cases | found, list(found)
            times = measure(cases, 5 if quick else 30, seconds=5 if quick else 120)
            case = {"n": n, "rank": RANK, "dtype": str(dtype).removeprefix("torch.")}
            title = f"update step, n = {n}, rank {RANK}, {case['dtype']}"
            results.report("update", title, timing_rows(case, times, REFERENCE))
            if others:
                fastest = min(others, key=lambda name: times[name].median)
                factor = times[fastest].ratio(times[REFERENCE])
                wanted = f"; wanted: {TARGET}" if n == 1024 else ""
                print(f"fastest peer: {fastest}, {factor:.1f} times {REFERENCE}{wanted}")
