"""Kernels by name: how often each runs in a step, and for how long."""

from collections.abc import Callable
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.gpu import host
from bench.gpu.case import Case, Row, Step
from bench.gpu.machine import Machine, matmul_precision
from bench.gpu.timing import Timing
from bench.gpu.weights import cheap_initialization

SHOWN = 14  # kernels of a step
STEPS = 3


def cases(on: Machine) -> list[Case]:
    """The steps whose host time is measured, those of other libraries left out."""
    found = []
    for timing in host.timings(on):
        if timing.compile and "compiled" not in timing.name:
            name = timing.name.replace(", issue", ", profile")
            found.append(Case(name, timing.kind, _profiled(on, timing)))
    return found


def _profiled(on: Machine, timing: Timing) -> Callable[[], Row]:
    def call() -> Row:
        with matmul_precision(timing.precision), cheap_initialization():
            return profiled(on, timing.build())

    return call


def profiled(on: Machine, step: Step) -> Row:
    """Launches, microseconds on the device, and the kernels that take longest, all by step."""
    for _ in range(on.size(2, 0)):
        step()
    on.wait()
    count = on.size(STEPS, 1)
    activity = ProfilerActivity.CPU if on.dry else ProfilerActivity.CUDA
    with profile(activities=[activity]) as records:
        for _ in range(count):
            step()
        on.wait()
    kernels = [
        {"kernel": e.key, "count": e.count / count, "us": round(_microseconds(e) / count, 2)}
        for e in records.key_averages()
        if on.dry or (e.device_type == DeviceType.CUDA and not getattr(e, "is_user_annotation", False))
    ]
    kernels.sort(key=lambda kernel: -kernel["us"])
    launches = sum(kernel["count"] for kernel in kernels)
    device = sum(kernel["us"] for kernel in kernels)
    return {"launches": launches, "device_us": round(device, 1), "kernels": kernels[:SHOWN]}


def _microseconds(event: Any) -> float:
    on_device = getattr(event, "self_device_time_total", 0.0)
    return on_device or event.self_cpu_time_total


def as_text(row: Row) -> str:
    """A section of ``profile.txt``."""
    head = (
        f"## {row['name']}: {row['device_us']} us on the device, {row['launches']:g} launches a step\n"
    )
    lines = [f"{k['us']:11.1f} us  x{k['count']:<6g} {k['kernel'][:140]}\n" for k in row["kernels"]]
    return "".join([head, *lines, "\n"])
