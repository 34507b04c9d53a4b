"""Tables of tuned configurations: a JSON file for each GPU, read, checked and written.

A table maps a *bucket* (operation, real or complex, k, size, number of matrices, each rounded up to
a power of two) to the configuration that was fastest, its time and that of the closed form.  It says
which GPU, triton and torch it was measured with, and of each entry which kernels it configures, by
their fingerprints.  Which of its entries are in force is for `projunn_kernels.configs.choice` to say.
"""

import datetime
import importlib.metadata
import importlib.resources
import json
import os
import re
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import torch

from projunn_kernels.configs.problem import Config, Device
from projunn_kernels.files import one_after_another, replacing

FORMAT = 2
SUFFIX = ".json"
_LOCK = "tables.lock"
_LARGEST_FILE = 16 << 20  # bytes
_LARGEST_SIDE, _LARGEST_TILE = 1 << 16, 1 << 20  # the second is Triton's own limit
_LONGEST = 1e9  # milliseconds
# What PyTorch's wheels for AMD GPUs need has been called by the second and the fourth name.
_TRITONS = ("triton", "triton-rocm", "pytorch-triton", "pytorch-triton-rocm", "triton-windows")


class NoTableError(ValueError):
    """A file that does not even look like a table."""


@dataclass(frozen=True)
class Entry:
    """What was measured for a bucket.

    Attributes:
        config: the fastest configuration; None if that was the closed form, or nearly so.
        milliseconds: of it.
        closed_form_milliseconds: of the closed form; None if that did not run.
        kernels: fingerprints of the kernels that the configuration is for, by name.
    """

    config: Config | None
    milliseconds: float
    closed_form_milliseconds: float | None
    kernels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """The measurements on one GPU, and what they were made with."""

    gpu: str
    capability: str
    triton: str
    torch: str
    date: str
    entries: Mapping[str, Entry]


def cache_folder() -> Path:
    """Where the user's tables are: ``PROJUNN_CACHE``, or ``projunn`` in the user's cache.

    Raises:
        OSError: the user has no home folder, as in a container whose user is but a number.
    """
    given, cache = os.environ.get("PROJUNN_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        if given:
            return Path(given).expanduser()  # no shell has done so where a file of settings names it
        return Path(cache or Path.home() / ".cache") / "projunn"
    except RuntimeError as error:
        said = repr(given) if given else "none"
        raise OSError(
            f"PROJUNN_CACHE: got {said}, and there is no home folder; wanted a folder"
        ) from error


def shipped_folder() -> Traversable:
    """Where the tables are that come with the library."""
    return importlib.resources.files("projunn_kernels") / "configs"


def table_name(gpu: str) -> str:
    """``NVIDIA H100 80GB HBM3`` -> ``nvidia-h100-80gb-hbm3.json``."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + SUFFIX


def triton_version() -> str | None:
    """The version of Triton that is installed, or None."""
    for package in _TRITONS:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def read_table(file: Traversable) -> Table:
    """A table from its file.

    Raises:
        NoTableError: it is something else.
        ValueError: its format is another, or it holds what no table can hold.
        OSError: it cannot be read.
    """
    with file.open("rb") as opened:
        text = opened.read(_LARGEST_FILE + 1)
    if len(text) > _LARGEST_FILE:
        raise ValueError(f"it has more than {_LARGEST_FILE >> 20} MiB")
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict) or "entries" not in content:
        raise NoTableError("it is no JSON object with entries")
    if content.get("format") != FORMAT:
        raise ValueError(f"its format is {content.get('format')!r:.40}, this version reads {FORMAT}")
    words: dict[str, str] = {}
    for name in ("gpu", "capability", "triton", "torch", "date"):
        value = content.get(name)
        if not isinstance(value, str):
            raise ValueError(f"{name} is {value!r:.40}, not a string")
        words[name] = value
    entries = content.get("entries")
    if not isinstance(entries, dict):
        raise ValueError("entries is no JSON object")
    return Table(entries={bucket: _entry(bucket, value) for bucket, value in entries.items()}, **words)


def _entry(bucket: str, value: object) -> Entry:
    try:
        if not isinstance(value, dict):
            raise ValueError("is no JSON object")
        config = value.get("config")
        kernels = value.get("kernels")
        if not isinstance(kernels, dict) or not all(isinstance(v, str) for v in kernels.values()):
            raise ValueError("has no fingerprints of its kernels")
        first = value.get("closed_form_ms")
        return Entry(
            None if config is None else _config(config),
            _duration("ms", value.get("ms")),
            None if first is None else _duration("closed_form_ms", first),
            kernels,
        )
    except ValueError as error:
        raise ValueError(f"{bucket[:80]}: {error}") from None


def _duration(name: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < _LONGEST:
        raise ValueError(f"{name} is {value!r:.40}, not a number of milliseconds")
    return float(value)


def _config(values: object) -> Config:
    known = {one.name for one in fields(Config)}
    if not isinstance(values, dict) or not {"rows", "columns", "warps"} <= set(values) <= known:
        raise ValueError(f"config is {values!r:.80}, wanted an object with {', '.join(sorted(known))}")
    for name, value in values.items():
        if name in ("hold", "overlap"):
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {value!r:.40}, not true or false")
            continue
        most = {"warps": 32, "stages": 8}.get(name, _LARGEST_SIDE)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ValueError(f"{name} is {value!r:.40}, not a whole number from 1 to {most}")
        if name != "stages" and value & (value - 1):
            raise ValueError(f"{name} is {value}, not a power of two")
    config = Config(**values)
    if config.rows * config.columns > _LARGEST_TILE:
        raise ValueError(f"{config.rows} rows of {config.columns} columns are too large a tile")
    return config


def check_writable() -> None:
    """Makes sure that a table can be written, before hours are spent on one.

    Raises:
        OSError: the user's cache cannot be made, or no file in it.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"PROJUNN_CACHE: the table is to be written into {folder}, which fails:"
            f" {error.strerror or error}"
        ) from error


def write_table(device: Device, entries: Mapping[str, Entry]) -> Path:
    """Add entries to the user's table, which is replaced as a whole or not at all.

    Other entries stay, those that another process writes meanwhile too.  A table that was not for this
    GPU and this Triton, or could not be read, is started anew, with a warning.
    """
    file = cache_folder() / table_name(device.name)
    file.parent.mkdir(parents=True, exist_ok=True)
    with one_after_another(file.parent / _LOCK):
        content = _merged(file, device, entries)
        with replacing(file) as opened:
            opened.write((json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    return file


def _merged(file: Path, device: Device, entries: Mapping[str, Entry]) -> dict[str, Any]:
    """The JSON of a table with its present entries, as far as they fit, and others."""
    triton = triton_version() or "not installed"
    kept: dict[str, Entry] = {}
    if file.exists():
        try:
            kept = dict(_mergeable(file, device, triton).entries)
        except (OSError, ValueError) as error:
            warnings.warn(f"tuning table replaced: {file}: {error}", stacklevel=3)
    return {
        "format": FORMAT,
        "gpu": device.name,
        "capability": device.capability,
        "triton": triton,
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "entries": {bucket: _written(entry) for bucket, entry in sorted((kept | dict(entries)).items())},
    }


def _mergeable(file: Path, device: Device, triton: str) -> Table:
    table = read_table(file)
    if (table.gpu, table.capability) != (device.name, device.capability):
        raise ValueError(f"it was measured on {table.gpu} ({table.capability})")
    if table.triton != triton:
        raise ValueError(f"it was made with triton {table.triton}, this is {triton}")
    return table


def _written(entry: Entry) -> dict[str, Any]:
    first = entry.closed_form_milliseconds
    return {
        "config": None if entry.config is None else asdict(entry.config),
        "ms": round(entry.milliseconds, 6),
        "closed_form_ms": None if first is None else round(first, 6),
        "kernels": dict(sorted(entry.kernels.items())),
    }
