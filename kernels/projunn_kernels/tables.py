"""Tables of tuned configurations: a JSON file for each GPU, read, checked and written.

A table maps a *bucket* (operation, real or complex, k, size, number of matrices, each rounded up to
a power of two) to a configuration and the time measured for it.  It says which GPU, triton and torch
it was measured with; one that is broken, foreign or from another compute capability is refused, with
a warning, as if it were not there.
"""

import datetime
import importlib.metadata
import importlib.resources
import json
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from projunn_kernels.problems import Config, Device

FORMAT = 1


def cache_folder() -> Path:
    """Where the user's tables are: ``PROJUNN_CACHE``, or ``projunn`` in the user's cache."""
    given = os.environ.get("PROJUNN_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "projunn"


def table_name(gpu: str) -> str:
    """``NVIDIA H100 80GB HBM3`` -> ``nvidia-h100-80gb-hbm3.json``."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json"


def read_table(text: str, device: Device, source: str) -> dict[str, Config]:
    """The configurations of a table.

    Raises:
        ValueError: it is broken, or was measured on another GPU.
    """
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}, this version reads {FORMAT}")
        if (content["gpu"], content["capability"]) != (device.name, device.capability):
            raise ValueError(f"it was measured on {content['gpu']} ({content['capability']})")
        return {bucket: _checked(entry["config"]) for bucket, entry in content["entries"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{source}: not a table for {device.name}: {error}") from error


def _checked(values: dict[str, Any]) -> Config:
    config = Config(**values)
    for name in ("rows", "columns", "warps"):
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1 or value & (value - 1):
            raise ValueError(f"{name} is {value!r}, not a power of two")
    return config


def tables_of(device: Device) -> Iterator[tuple[str, dict[str, Config]]]:
    """The tables in force for a GPU, the user's first, each with where it comes from."""
    name = table_name(device.name)
    user = cache_folder() / name
    shipped = importlib.resources.files("projunn_kernels") / "configs" / name
    for source, file in ((str(user), user), ("shipped", shipped)):
        if not file.is_file():
            continue
        try:
            yield source, read_table(file.read_text(), device, str(file))
        except (OSError, ValueError) as error:
            warnings.warn(f"tuning table ignored: {error}", stacklevel=2)


def write_table(device: Device, entries: dict[str, dict[str, Any]]) -> Path:
    """Add entries to the user's table, which is replaced as a whole or not at all.

    Other entries stay, unless the table could not be read: then it is started anew, with a warning.
    """
    file = cache_folder() / table_name(device.name)
    kept: dict[str, dict[str, Any]] = {}
    if file.exists():
        try:
            text = file.read_text()
            read_table(text, device, str(file))
            kept = json.loads(text)["entries"]
        except (OSError, ValueError) as error:
            warnings.warn(f"tuning table replaced: {error}", stacklevel=2)
    content = {
        "format": FORMAT,
        "gpu": device.name,
        "capability": device.capability,
        "triton": _version("triton"),
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "entries": dict(sorted((kept | entries).items())),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    return file


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def entry(config: Config, milliseconds: float, gigabytes_per_second: float) -> dict[str, Any]:
    """What a table holds for a bucket."""
    return {
        "config": asdict(config),
        "ms": round(milliseconds, 6),
        "gb_per_s": round(gigabytes_per_second, 1),
    }
