"""Which configuration of the Triton kernels is in force: the tile sizes and warps of a launch, and why.

It comes from the first of these that has it, each in the user's cache before those that ship:

1. the table of this GPU, written by ``projunn autotune``;
2. tables of other GPUs of the same compute capability;
3. `closed_form`, from the sizes, which always works.

A table made with another Triton is not used, and neither is an entry whose kernels have changed since,
or whose configuration the autotuner of this version would not try.  ``PROJUNN_TABLES=off`` leaves the
closed forms alone: the ranks of a job then launch the same, whatever lies in the caches of their
machines.

Nothing here imports triton or touches a device at import.
"""

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources.abc import Traversable

from projunn_kernels.configs.closed_form import candidates, closed_form, tuned
from projunn_kernels.configs.fingerprints import fingerprints
from projunn_kernels.configs.problem import Config, Device, Problem
from projunn_kernels.configs.tables import (
    SUFFIX,
    Entry,
    NoTableError,
    Table,
    cache_folder,
    read_table,
    shipped_folder,
    table_name,
    triton_version,
)

Configs = dict[str, Config | None]


@dataclass(frozen=True)
class FoundTable:
    """A table that was found, and what of it is in force.

    Attributes:
        source: its path, or ``shipped NAME``.
        table: None if it could not be read.
        reason: why nothing of it is used; empty if it is used.
        configs: what is in force of it, by bucket: a configuration, or None for the closed form.
        changed: entries whose kernels are not those that were measured.
        untried: entries with a bucket or a configuration that this version would not try.
    """

    source: str
    table: Table | None
    reason: str = ""
    configs: Configs = field(default_factory=dict)
    changed: int = 0
    untried: int = 0

    def described(self, device: Device | None) -> str:
        """A line that says whether a GPU uses the table, what of it, and why not the rest."""
        if self.reason or self.table is None or device is None:
            return f"{self.source}: not used: {self.reason}"
        table = self.table
        text = f"{self.source}: used, {len(self.configs)} buckets"
        text += f" (triton {table.triton}, torch {table.torch}, {table.date[:10]}"
        if table.gpu != device.name:
            text += f", measured on {table.gpu}, which has the same compute capability"
        return f"{text}){self.left_out}"

    @property
    def left_out(self) -> str:
        """How many of its entries are not in force, and why; empty if all are."""
        parts = []
        if self.changed:
            parts.append(f"{self.changed} of kernels that have changed since")
        if self.untried:
            parts.append(f"{self.untried} that this version would not try")
        return f"; left out: {', '.join(parts)}" if parts else ""


def uses_tables() -> bool:
    """Whether tables are used at all: not with ``PROJUNN_TABLES=off``.

    Raises:
        ValueError: ``PROJUNN_TABLES`` is neither on nor off.
    """
    value = os.environ.get("PROJUNN_TABLES") or "on"
    if value not in ("on", "off"):
        raise ValueError(f"PROJUNN_TABLES: got {value!r}, wanted on or off")
    return value == "on"


def found_tables(device: Device | None) -> list[FoundTable]:
    """Every table in the user's cache and of those that ship, in the order in which a GPU looks.

    Those that it does not use come last, with the reason; without a GPU that is all of them.
    """
    used = uses_tables()
    unused, ranked = [], []
    for rank, (source, file) in enumerate(_table_files()):
        try:
            table = read_table(file)
        except NoTableError as error:
            if device is not None and file.name == table_name(device.name):
                unused.append(FoundTable(source, None, f"cannot be read: {error}"))
            continue
        except (OSError, ValueError) as error:
            unused.append(FoundTable(source, None, f"cannot be read: {error}"))
            continue
        reason = _reason_against(table, device) if used else "PROJUNN_TABLES=off"
        if reason or device is None:
            unused.append(FoundTable(source, table, reason))
            continue
        found = _chosen_entries(source, table, device)
        if found.reason:
            unused.append(found)
        else:
            ranked.append((table.gpu != device.name, rank, found))
    return [found for *_, found in sorted(ranked, key=lambda one: one[:2])] + unused


def _table_files() -> Iterator[tuple[str, Traversable]]:
    """Where tables may be, the user's first, unless that folder is another user's or there is none."""
    folders: tuple[tuple[Callable[[], Traversable], str], ...]
    folders = (cache_folder, ""), (shipped_folder, "shipped ")
    for folder, prefix in folders:
        files: list[Traversable] = []
        with suppress(OSError):
            files += (one for one in folder().iterdir() if one.name.endswith(SUFFIX) and one.is_file())
        for file in sorted(files, key=lambda one: one.name):
            yield (prefix + file.name if prefix else str(file)), file


def _reason_against(table: Table, device: Device | None) -> str:
    """Why a table is not used for a GPU; empty if it is."""
    triton = triton_version()
    if device is None:
        return "there is no GPU"
    if triton is None:
        return "triton is not installed"
    if table.capability != device.capability:
        return f"made for compute capability {table.capability}, {device.name} has {device.capability}"
    if table.triton != triton:
        return f"made with triton {table.triton}, this is {triton}"
    return ""


def _chosen_entries(source: str, table: Table, device: Device) -> FoundTable:
    configs: Configs = {}
    changed = untried = 0
    for bucket, entry in table.entries.items():
        if not _would_be_tried(bucket, entry, device):
            untried += 1
        elif not _same_kernels(entry):
            changed += 1
        else:
            configs[bucket] = entry.config
    found = FoundTable(source, table, "", configs, changed, untried)
    return found if configs else replace(found, reason=f"nothing is in force of it{found.left_out}")


def _would_be_tried(bucket: str, entry: Entry, device: Device) -> bool:
    """Whether an entry is one that the autotuner of this version could have written.

    So a table cannot bring about a launch that nobody ever thought of.
    """
    try:
        problem = Problem.of_bucket(bucket)
    except ValueError:
        return False
    if problem.operation not in tuned():
        return False
    return entry.config is None or entry.config in candidates(problem, device)


def _same_kernels(entry: Entry) -> bool:
    present = fingerprints()
    return all(present.get(name) == found for name, found in entry.kernels.items())


@cache
def _tables_in_force(device: Device) -> tuple[FoundTable, ...]:
    if device == Device() or not uses_tables():
        return ()
    found = found_tables(device)
    for one in found:
        if one.table is None and one.source.endswith(table_name(device.name)):
            warnings.warn(f"tuning table ignored: {one.source} {one.reason}", stacklevel=2)
    return tuple(one for one in found if not one.reason)


_generation = 0  # of the tables: one more each time that they are read anew
_listeners: list[list[Problem]] = []


class _Given(threading.local):
    """The configurations that launches of this thread take, by their operations."""

    def __init__(self) -> None:
        self.configs: dict[str, Config] = {}


_given = _Given()


@contextmanager
def using(configs: dict[str, Config]) -> Iterator[None]:
    """Inside, launches of these operations by this thread take these configurations."""
    before = _given.configs
    _given.configs = before | configs
    try:
        yield
    finally:
        _given.configs = before


def settled() -> bool:
    """True if nobody listens or gives configurations, so that launches may keep theirs."""
    return not _given.configs and not _listeners


def generation() -> int:
    """A number that changes when configurations may have changed."""
    return _generation


@contextmanager
def asked() -> Iterator[list[Problem]]:
    """The problems of tuned kernels that launches inside ask a configuration for, in their order."""
    problems: list[Problem] = []
    _listeners.append(problems)
    try:
        yield problems
    finally:
        _listeners.pop()


def config_for(problem: Problem, device: Device) -> tuple[Config, str]:
    """The configuration of a problem, and where it comes from.

    Raises:
        ValueError: ``PROJUNN_TABLES`` is neither on nor off.
    """
    for problems in _listeners:
        if problem.operation in tuned():
            problems.append(problem)
    given = _given.configs.get(problem.operation)
    return _config_for(problem, device) if given is None else (given, "given")


@cache
def _config_for(problem: Problem, device: Device) -> tuple[Config, str]:
    bucket = problem.bucket
    for found in _tables_in_force(device):
        if bucket in found.configs:
            config = found.configs[bucket]
            if config is None:
                return closed_form(problem, device), f"closed form, the fastest in {found.source}"
            return config, found.source
    return closed_form(problem, device), "closed form"


def tuned_buckets(device: Device) -> set[str]:
    """The buckets that the tables in force have."""
    return {bucket for found in found_tables(device) for bucket in found.configs}


def in_force(device: Device) -> dict[str, str]:
    """For each operation, where its configurations come from and why: for ``projunn info``."""
    found = found_tables(device)
    none = f"no table in force for {device.name} has it" if uses_tables() else "PROJUNN_TABLES=off"
    reasons = {}
    for operation in tuned():
        parts = []
        for one in found:
            count = sum(bucket.startswith(f"{operation}/") for bucket in one.configs)
            if count:
                parts.append(f"{one.source} ({count} buckets)")
        reasons[operation] = ", then ".join([*parts, "closed form" if parts else f"closed form: {none}"])
    return reasons


def forget() -> None:
    """Read the tables anew: after tuning."""
    global _generation
    _generation += 1
    _tables_in_force.cache_clear()
    _config_for.cache_clear()
