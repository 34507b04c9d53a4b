"""The autotuner's standard problems, each a case of its own; the table goes to ``PROJUNN_CACHE``."""

from collections.abc import Callable

from bench.gpu.case import Case, Row
from bench.gpu.machine import Machine
from projunn_kernels.configs.closed_form import standard_problems, tuned
from projunn_kernels.configs.problem import Device, Problem, device_of


def cases(on: Machine) -> list[Case]:
    problems = standard_problems()
    if on.dry:
        problems = [Problem(operation, False, 1, 16, 16, 2) for operation in tuned()[:2]]
    found = {p.bucket: Case(p.bucket, f"tune {p.operation}", _tuned(on, p)) for p in problems}
    return list(found.values())


def _tuned(on: Machine, problem: Problem) -> Callable[[], Row]:
    def call() -> Row:
        from projunn_kernels.tuning.autotune import autotune
        from projunn_kernels.tuning.timing import cold_time

        properties = Device("dry run") if on.dry else device_of(on.device)
        timer = on.cold_time if on.dry else cold_time
        (result,) = autotune([problem], on.device, properties, timer)
        if result.config is None:
            raise RuntimeError(result.failed)
        return {
            "ms": round(result.milliseconds, 5),
            "closed_form_ms": round(result.closed_form_milliseconds, 5),
            "gain": round(result.closed_form_milliseconds / result.milliseconds - 1, 4),
            "tried": result.tried,
        }

    return call
