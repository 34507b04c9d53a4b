"""Which configuration of the Triton kernels is in force: the tile sizes and warps of a launch, and why.

It comes from the first of these that has it:

1. the user's table, written by ``projunn autotune``: ``<gpu>.json`` in `tables.cache_folder`;
2. the table that ships for that GPU, ``kernels/configs/<gpu>.json``;
3. `closed_form`, from the sizes, which always works.

Nothing here imports triton or touches a device at import.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from projunn_kernels.closed_form import closed_form
from projunn_kernels.problems import OPERATIONS, Config, Device, Problem
from projunn_kernels.tables import tables_of


@cache
def _read_tables(device: Device) -> tuple[tuple[str, dict[str, Config]], ...]:
    return () if device == Device() else tuple(tables_of(device))


_given: dict[str, Config] = {}


@contextmanager
def using(configs: dict[str, Config]) -> Iterator[None]:
    """Inside, launches of these operations take these configurations: for the autotuner."""
    before = dict(_given)
    _given.update(configs)
    try:
        yield
    finally:
        _given.clear()
        _given.update(before)


def config_for(problem: Problem, device: Device) -> tuple[Config, str]:
    """The configuration of a problem, and where it comes from."""
    given = _given.get(problem.operation)
    return _config_for(problem, device) if given is None else (given, "given")


@cache
def _config_for(problem: Problem, device: Device) -> tuple[Config, str]:
    for source, entries in _read_tables(device):
        config = entries.get(problem.bucket)
        if config is not None:
            return config, source
    return closed_form(problem, device), "closed form"


def in_force(device: Device) -> dict[str, str]:
    """For each operation, where its configurations come from and why: for ``projunn info``."""
    found = list(tables_of(device))
    reasons = {}
    for operation in OPERATIONS:
        parts = []
        for source, configs in found:
            count = sum(bucket.startswith(f"{operation}/") for bucket in configs)
            if count:
                parts.append(f"{source} ({count} buckets)")
        none = f"no table for {device.name} has it"
        reasons[operation] = ", then ".join([*parts, "closed form" if parts else f"closed form: {none}"])
    return reasons


def forget() -> None:
    """Read the tables anew: after tuning."""
    _read_tables.cache_clear()
    _config_for.cache_clear()
