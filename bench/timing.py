"""Times several callables in one process, interleaved, so that every case sees the same load."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import quantiles


@dataclass(frozen=True)
class Times:
    """Milliseconds of the counted calls of one callable, one for each round."""

    milliseconds: tuple[float, ...]

    def quantile(self, percent: int) -> float:
        return _quantile(self.milliseconds, percent)

    @property
    def median(self) -> float:
        return self.quantile(50)

    def ratio(self, peer: "Times") -> float:
        """Median over the rounds of own time / the peer's time in the same round."""
        pairs = zip(self.milliseconds, peer.milliseconds, strict=True)
        return _quantile([own / other for own, other in pairs], 50)


def measure(
    cases: dict[str, Callable[[], object]],
    rounds: int,
    *,
    primed: bool = True,
    seconds: float = float("inf"),
) -> dict[str, Times]:
    """Call every case once a round, A B C A B C ..., after a round of warm-up that is not counted.

    Args:
        cases: what to time, by name.
        rounds: counted rounds.
        primed: call a case once more, not counted, right before its counted call: what it reads is
            as warm as in a training loop, which has just used the weight and written the gradient,
            instead of evicted by the case before it.
        seconds: stop after the first round that ends later than this, if there were three.
    """
    taken: dict[str, list[float]] = {name: [] for name in cases}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for call in cases.values():
            call()
        begun = time.perf_counter()
        for number in range(1, rounds + 1):
            for name, call in cases.items():
                if primed:
                    call()
                started = time.perf_counter_ns()
                call()
                taken[name].append((time.perf_counter_ns() - started) / 1e6)
            if number >= 3 and time.perf_counter() - begun > seconds:
                break
    finally:
        if collecting:
            gc.enable()
    return {name: Times(tuple(times)) for name, times in taken.items()}


def _quantile(values: list[float] | tuple[float, ...], percent: int) -> float:
    if len(values) == 1:
        return values[0]
    return quantiles(values, n=100, method="inclusive")[percent - 1]
