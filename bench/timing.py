"""Times of several callables in one process, taken in turn, so that they share the machine's moods."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import quantiles


@dataclass(frozen=True)
class Times:
    """Seconds of the repetitions of one callable."""

    seconds: list[float]

    def quantile(self, percent: int) -> float:
        """In milliseconds."""
        if len(self.seconds) == 1:
            return self.seconds[0] * 1e3
        return quantiles(self.seconds, n=100, method="inclusive")[percent - 1] * 1e3

    @property
    def median(self) -> float:
        return self.quantile(50)

    def ratio(self, other: "Times") -> float:
        """Median over the rounds of own time / other's time in the same round."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return Times([a / b for a, b in pairs]).median / 1e3


def measure(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, Times]:
    """Run every callable once a round, A B C A B C ..., after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    enabled = gc.isenabled()
    gc.disable()
    try:
        for number in range(rounds + 1):
            for name, call in cases.items():
                call()  # the caches are this callable's own, as they are in a training loop
                started = time.perf_counter_ns()
                call()
                elapsed = time.perf_counter_ns() - started
                if number:
                    seconds[name].append(elapsed / 1e9)
    finally:
        if enabled:
            gc.enable()
    return {name: Times(values) for name, values in seconds.items()}
