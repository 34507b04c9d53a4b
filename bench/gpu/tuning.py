"""The autotuner's standard problems, each a case of its own; the table goes to ``PROJUNN_CACHE``."""

from collections.abc import Callable

from bench.gpu.case import Case, Row
from bench.gpu.machine import Machine
from projunn.kernels.problems import OPERATIONS, Device, Problem, device_of, standard_problems


def cases(on: Machine) -> list[Case]:
    problems = standard_problems()
    if on.dry:
        problems = [Problem(operation, False, 1, 16, 16, 2) for operation in OPERATIONS]
    found = {p.bucket: Case(p.bucket, f"tune {p.operation}", _tuned(on, p)) for p in problems}
    return list(found.values())


def _tuned(on: Machine, problem: Problem) -> Callable[[], Row]:
    def call() -> Row:
        from projunn.kernels.jit.autotune import autotune

        properties = Device("dry run") if on.dry else device_of(on.device)
        (result,) = autotune([problem], on.device, properties, on.cold_time)
        if result.config is None:
            raise RuntimeError(result.failed)
        return {
            "ms": round(result.milliseconds, 5),
            "closed_form_ms": round(result.closed_form_milliseconds, 5),
            "gain": round(result.closed_form_milliseconds / result.milliseconds - 1, 4),
            "tried": result.tried,
        }

    return call
