"""Measurements as data: what is built, how it is timed, and what the row says of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import projunn
from bench.gpu.case import Case, Row, Step
from bench.gpu.machine import Machine, matmul_precision
from bench.gpu.weights import cheap_initialization


@dataclass(frozen=True)
class Timing:
    """One measurement.

    Attributes:
        name: of the row, which the targets find it by.
        kind: as of a `Case`.
        build: makes the step that is timed.
        way: ``captured``: from a CUDA graph, nothing of it in cache.  ``graph``: from a CUDA graph, at
            a training loop's pace.  ``eager``: the same without a graph.  ``issue``: how long the host
            takes.
        says: what else the row says.
        compile: whether to call it once ahead, in parallel with others, so that its kernels are in
            Triton's cache when it is timed.
        backend: ``"torch"``, or what users get.
        seconds: what the time of ``graph``, ``eager`` or ``issue`` may take, about.
    """

    name: str
    kind: str
    build: Callable[[], Step]
    way: str = "captured"
    says: Row = field(default_factory=dict)
    compile: bool = True
    precision: str = "highest"
    backend: str | None = None
    seconds: float = 0.3

    def measured(self, on: Machine) -> Case:
        """The measurement; its row holds ``ms``, or ``issue_us`` and ``total_us``."""

        def call() -> Row:
            row: dict[str, Any] = {"way": self.way, "precision": self.precision} | self.says
            with _setting(self.precision, self.backend or on.kernels):
                step = self.build()
                if self.way == "issue":
                    return row | on.issue_time(step, self.seconds)
                if self.way == "captured":
                    ms = on.cold_time(step)
                else:
                    ms = on.step_time(on.captured(step) if self.way == "graph" else step, self.seconds)
            row["ms"] = round(ms, 5)
            if "bytes" in row:
                row["gb_per_s"] = round(row["bytes"] / ms / 1e6, 1)
            return row

        return Case(self.name, self.kind, call)

    def compiled(self, on: Machine) -> Case:
        """One eager call, which leaves the binaries of its kernels in Triton's cache."""

        def call() -> Row:
            with _setting(self.precision, self.backend or on.kernels):
                self.build()()
            return {}

        return Case(self.name, self.kind, call)


@contextmanager
def _setting(precision: str, backend: str) -> Iterator[None]:
    """The precision and the backend of a measurement, and layers whose weights are made quickly."""
    with matmul_precision(precision), projunn.backend(backend), cheap_initialization():
        yield
