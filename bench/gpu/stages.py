"""The stages of ``make gpu``: how long each may take, and where its cases come from."""

import functools
from collections.abc import Callable

from bench.gpu import (
    checks,
    convolution,
    host,
    linear,
    profiles,
    recurrence,
    training,
    tuning,
    update,
)
from bench.gpu.case import Case
from bench.gpu.machine import Machine
from bench.gpu.pool import Source
from bench.gpu.timing import Timing
from bench.records import environment

# Seconds of each stage, of a whole run and of a quick one: the table in bench/gpu/__init__.py.
SECONDS = {
    "machine": (12, 12),
    "tests": (45, 12),
    "checks": (70, 32),
    "compile": (20, 10),
    "tune": (25, 4),
    "update": (36, 14),
    "host": (12, 6),
    "linear": (18, 6),
    "recurrence": (24, 8),
    "convolution": (18, 6),
    "training": (8, 5),
    "profile": (10, 5),
}

TIMINGS: dict[str, Callable[[Machine], list[Timing]]] = {
    "update": update.timings,
    "host": host.timings,
    "linear": linear.timings,
    "recurrence": recurrence.timings,
    "convolution": convolution.timings,
}


def machine_cases(on: Machine) -> list[Case]:
    return [Case("machine", "machine", lambda: environment() | on.description())]


def compile_cases(on: Machine) -> list[Case]:
    """One call of everything that is timed later and has kernels that nothing else here compiles."""
    every = [timing for timings in TIMINGS.values() for timing in timings(on)]
    return [timing.compiled(on) for timing in every if timing.compile]


def measured_cases(timings: Callable[[Machine], list[Timing]], on: Machine) -> list[Case]:
    return [timing.measured(on) for timing in timings(on)]


SOURCES: dict[str, Source] = {
    "checks": checks.cases,
    "compile": compile_cases,
    "tune": tuning.cases,
    "update": functools.partial(measured_cases, update.timings),
    "host": functools.partial(measured_cases, host.timings),
    "linear": functools.partial(measured_cases, linear.timings),
    "recurrence": functools.partial(measured_cases, recurrence.timings),
    "convolution": functools.partial(measured_cases, convolution.timings),
    "training": training.cases,
    "profile": profiles.cases,
}
ON_ALL_CORES = ("checks", "compile")
INTERLEAVED = ("checks", "compile", "tune")
