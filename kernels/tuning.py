"""Configurations of the Triton kernels: which tile sizes and warps a launch takes, and why.

A configuration comes from the first of these that has it:

1. the user's table, written by ``projunn autotune``: ``<gpu>.json`` in `cache_folder`;
2. the table that ships for that GPU, ``kernels/configs/<gpu>.json``;
3. `closed_form`, from the device's properties, which always works.

A table maps a *bucket* (operation, real or complex, k, size, number of matrices, each rounded up to
a power of two) to a configuration and the time measured for it.  It says which GPU, triton and torch
it was measured with; one that is broken, foreign or from another compute capability is refused, with
a warning, as if it were not there.  Nothing here imports triton or touches a device at import.
"""

import datetime
import importlib.metadata
import importlib.resources
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

FORMAT = 1
MATRIX_OPERATIONS = ("fused_step", "adjoint_product", "product", "basis", "turn_rows", "rank_update")
TIME_LOOPS = ("recurrence", "recurrence_backward")
SPECTRAL_OPERATIONS = ("spectral_product", "spectral_gradient")
OPERATIONS = MATRIX_OPERATIONS + TIME_LOOPS + SPECTRAL_OPERATIONS
IMAGES = 256  # that spectral products are tuned for


@dataclass(frozen=True)
class Config:
    """A launch: tiles of rows x columns numbers, warps a program.

    ``hold``: (turn_rows) whole rows stay in registers; (recurrence) W does, for all of time.
    ``depth``, ``stages``: (recurrence) rows of a panel of W, and how many are in flight.
    """

    rows: int
    columns: int
    warps: int
    hold: bool = False
    depth: int = 1
    stages: int = 1


@dataclass(frozen=True)
class Problem:
    """What a configuration is chosen for: ``blocks`` matrices m x n, rank k.

    Of a time loop: ``blocks`` steps of a batch of m rows and n units, k = 1.  Of a spectral product:
    k images, spectra of complex signals if ``pairs``, ``blocks`` frequencies.
    """

    operation: str
    pairs: bool
    k: int
    m: int
    n: int
    blocks: int

    @property
    def columns(self) -> int:
        """k as the kernels see it: a power of two."""
        return power_of_two(self.k)

    @property
    def width(self) -> int:
        return 2 if self.pairs else 1

    @property
    def bucket(self) -> str:
        """The key of a table."""
        kind = "complex" if self.pairs else "real"
        blocks = 1 if self.operation in TIME_LOOPS else min(power_of_two(self.blocks), 1024)
        size = f"{power_of_two(self.m)}x{power_of_two(self.n)}"
        return f"{self.operation}/{kind}/k{self.columns}/{size}/b{blocks}"


@dataclass(frozen=True)
class Device:
    """The properties of a GPU that a configuration depends on."""

    name: str = "interpreter"
    capability: str = "0.0"
    processors: int = 4
    shared_memory: int = 101_376


def power_of_two(size: int) -> int:
    """The smallest power of two that is not below ``size``."""
    return 1 << max(0, size - 1).bit_length()


# -- closed form and candidates ---------------------------------------------------------------------


def closed_form(problem: Problem, device: Device) -> Config:
    """A configuration that always works: about 32 floats of the matrix a thread."""
    p, operation = problem, problem.operation
    n, m = power_of_two(p.n), power_of_two(p.m)
    if operation in TIME_LOOPS:
        return _time_loop(p)
    if operation in SPECTRAL_OPERATIONS:  # channels x images or channels; a frequency a warp
        return Config(16, 32, 8)
    if operation == "fused_step":
        if p.columns == 4 and not p.pairs:  # twice the rows spill 8 bytes on sm_120 (polar)
            rows = max(1, min(m, 1024 // n))
            return Config(rows, n, _warps(rows * n, 4))
        budget = 8192 if p.k == 1 else 2048
        rows = max(1, min(m, budget // (n * p.width)))
        return Config(rows, n, _warps(rows * n * p.width, 32 if p.k == 1 else 8))
    if operation == "basis":
        if p.k == 1:
            return Config(1, min(n, 2048), 8 if n > 256 else 4)
        if not p.pairs and p.k > 2:
            return Config(1, min(n, 64), 4)
        # 2 float64 numbers a thread: 4 spill on some architectures, and so do 16 columns for 8 warps
        columns = min(n, max(16, 512 // (p.columns * p.width)))
        return Config(1, columns, 8 if columns > 16 else 4)
    if operation == "turn_rows":
        if n * p.width <= 16384 // p.columns and p.k <= 4:
            rows = max(1, min(m, 4096 // (n * p.width)))
            each = 32 if p.columns * p.width <= 2 else 16  # compilers load all columns at once
            return Config(rows, n, _warps(rows * n * p.width, each), hold=True)
        columns = max(16, min(n, 1024 // (2 * p.columns * p.width)))
        return Config(min(m, 4), columns, 4)
    if operation == "rank_update":
        columns = min(n, 128 // p.width)
        return Config(max(1, min(m, 2048 // (columns * p.width))), columns, 4)
    floats = 4096 // (p.columns * p.width)  # accumulators: columns x tile
    if operation == "product":
        columns = max(16, min(n, 512 // p.columns))
        return Config(max(1, min(m, floats // columns)), columns, 4)
    columns = min(n, 64 if p.columns <= 4 else 32)  # adjoint_product
    return Config(max(1, min(m, floats // columns)), columns, 4)


def _time_loop(problem: Problem) -> Config:
    """16 rows a program, the least that tensor cores take: the rows are what runs in parallel.

    The tiles are those that spill on no architecture with any precision (docs/measured.md).
    """
    n, pairs = max(16, power_of_two(problem.n)), problem.pairs
    if n <= 32:
        return Config(16, n, 8, hold=True)
    return Config(16, min(n, 64 if pairs else 128), 8, depth=16 if pairs else 32)


def _time_loop_candidates(problem: Problem, device: Device) -> list[Config]:
    """Tiles of 2 to 16 accumulators and 4 to 32 numbers of W a thread; more panels beyond L1 only."""
    first, width = _time_loop(problem), problem.width
    n = max(16, power_of_two(problem.n))
    stages = (1, 3) if problem.n**2 * width * 4 > 128 << 10 else (1,)
    found = [first]
    for rows, warps in ((16, 4), (16, 8), (16, 16), (32, 8), (32, 16)):
        panels = [(n, 1, True, 1)] if first.hold else []
        panels += [(c, d, False, s) for c in (32, 64, 128) if c <= n for d in (16, 32) for s in stages]
        for columns, depth, hold, stage in panels:
            config = Config(rows, columns, warps, hold, depth, stage)
            sums = rows * columns * width // (32 * warps)
            panel = columns * (columns if hold else depth) * width // (32 * warps)
            memory = (rows + columns) * depth * width * 4 * stage
            fits = 2 <= sums <= 16 and 4 <= panel <= 32 and memory <= device.shared_memory
            if fits and config not in found:
                found.append(config)
    return found


def _warps(floats: int, each: int) -> int:
    """Warps such that a thread has about ``each`` floats of the tile."""
    return min(16, max(1, power_of_two(floats // (32 * each))))


def candidates(problem: Problem, device: Device) -> list[Config]:
    """What the autotuner tries: neighbours of the closed form that fit the registers."""
    if problem.operation in TIME_LOOPS:
        return _time_loop_candidates(problem, device)
    if problem.operation in SPECTRAL_OPERATIONS:  # larger tiles spill
        sizes = [(16, 32), (16, 16)] + [(32, 16)] * (problem.operation == "spectral_gradient")
        return [Config(rows, columns, warps) for rows, columns in sizes for warps in (8, 4)]
    first = closed_form(problem, device)
    found = [first]
    for rows in (first.rows // 4, first.rows // 2, first.rows, first.rows * 2, first.rows * 4):
        for columns in _column_choices(problem, first):
            for warps in (first.warps // 2, first.warps, first.warps * 2):
                config = Config(rows, columns, warps, first.hold)
                if config not in found and _fits(config, problem):
                    found.append(config)
    return found


def _column_choices(problem: Problem, first: Config) -> tuple[int, ...]:
    if first.hold or problem.operation == "fused_step":
        return (first.columns,)  # the whole width
    return (first.columns // 2, first.columns, first.columns * 2)


def _fits(config: Config, problem: Problem) -> bool:
    """Sizes in range, and a tile of 4 to 32 floats a thread (16 where k > 1 adds columns)."""
    p = problem
    if not 1 <= config.warps <= 16 or config.rows < 1 or config.rows > power_of_two(p.m):
        return False
    if config.columns < min(16, power_of_two(p.n)) or config.columns > power_of_two(p.n):
        return False
    floats = config.rows * config.columns * p.width
    if p.operation in ("adjoint_product", "product"):
        floats *= p.columns
    if p.operation == "turn_rows" and not config.hold:
        floats *= 2 * p.columns
    if p.operation == "basis":
        floats = config.columns * p.columns * p.width
        narrow, broad = (1, 16) if p.k == 1 else (1, 4)
        return config.rows == 1 and narrow <= floats // (32 * config.warps) <= broad
    each = floats / (32 * config.warps)
    most = 32
    if p.operation == "fused_step" and p.k > 1:
        most = 8
    if config.hold and p.columns * p.width > 2:
        most = 16
    least = min(4.0, power_of_two(p.m) * power_of_two(p.n) * p.width / 128)
    return least <= each <= most


def row_splits(problem: Problem, config: Config, device: Device) -> int:
    """Programs that share the rows of an adjoint product: enough to fill the GPU four times.

    At least 64 rows each, so that the partial sums stay a few percent of the traffic.
    """
    tiles = -(-problem.n // config.columns) * max(1, problem.blocks)
    wanted = -(-4 * device.processors // tiles)
    return max(1, min(wanted, problem.m // 64))


# -- what is tuned ---------------------------------------------------------------------------------


def standard_problems() -> list[Problem]:
    """Rank 1 first, and sizes that networks have: what a run with a time limit gets to."""
    found = []
    for k in (1, 2, 4, 8):
        for pairs in (False, True):
            banks = [(64, 544), (128, 144), (64, 64), (128, 8), (32, 1024)] if k < 4 else [(64, 64)]
            for n, blocks in banks:
                found.append(Problem("fused_step", pairs, k, n, n, blocks))
            for n in (1024, 2048, 4096, 8192, 16384) if k < 4 else (1024, 4096):
                for operation in MATRIX_OPERATIONS[1:]:
                    found.append(Problem(operation, pairs, k, n, n, 1))
            for n in (64, 128, 190, 512, 1024) if k == 1 else ():
                found += [Problem(operation, pairs, 1, 128, n, 100) for operation in TIME_LOOPS]
    for channels, bins in ((64, 544), (128, 144), (256, 40)):  # ResNet9 on images of 32 x 32
        for operation in SPECTRAL_OPERATIONS:
            found.append(Problem(operation, False, IMAGES, channels, channels, bins))
    return found


def problems_of(
    operations: Iterable[str],
    shapes: Iterable[tuple[int, int, int]],
    ranks: Iterable[int],
    kinds: Iterable[bool],
) -> list[Problem]:
    """Every combination that is used: fused steps for n <= 128, time loops (T x batch x n) for k = 1.

    The spectral products have no rank: banks of matrices are tuned for `IMAGES` images.
    """
    operations, shapes, kinds = list(operations), list(shapes), list(kinds)
    return [
        Problem(operation, pairs, k, m, n, blocks)
        for k in ranks
        for pairs in kinds
        for blocks, m, n in shapes
        for operation in operations
        if operation not in SPECTRAL_OPERATIONS
        and k <= min(m, n)
        and (operation != "fused_step" or m <= n <= 128)
        and (operation not in TIME_LOOPS or (k == 1 and n <= 4096))
    ] + [
        Problem(operation, pairs, IMAGES, m, n, blocks)
        for pairs in kinds
        for blocks, m, n in shapes
        for operation in operations
        if operation in SPECTRAL_OPERATIONS and blocks > 1
    ]


# -- tables -----------------------------------------------------------------------------------------


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


def tables(device: Device) -> Iterator[tuple[str, dict[str, Config]]]:
    """The tables in force for a GPU, the user's first, each with where it comes from."""
    name = table_name(device.name)
    user = cache_folder() / name
    shipped = importlib.resources.files("projunn.kernels") / "configs" / name
    for source, file in ((str(user), user), ("shipped", shipped)):
        if not file.is_file():
            continue
        try:
            yield source, read_table(file.read_text(), device, str(file))
        except (OSError, ValueError) as error:
            warnings.warn(f"tuning table ignored: {error}", stacklevel=2)


@cache
def device_of(device: torch.device) -> Device:
    """The properties of a device; of a small stand-in GPU for the CPU, where the interpreter runs."""
    if device.type != "cuda":
        return Device()
    properties = torch.cuda.get_device_properties(device)
    return Device(
        properties.name,
        f"{properties.major}.{properties.minor}",
        properties.multi_processor_count,
        getattr(properties, "shared_memory_per_block_optin", 101_376),
    )


@cache
def _tables_of(device: Device) -> tuple[tuple[str, dict[str, Config]], ...]:
    return () if device == Device() else tuple(tables(device))


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
    for source, entries in _tables_of(device):
        config = entries.get(problem.bucket)
        if config is not None:
            return config, source
    return closed_form(problem, device), "closed form"


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


def in_force(device: Device) -> dict[str, str]:
    """For each operation, where its configurations come from and why: for ``projunn info``."""
    found = list(tables(device))
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
    _tables_of.cache_clear()
    _config_for.cache_clear()


def entry(config: Config, milliseconds: float, gigabytes_per_second: float) -> dict[str, Any]:
    """What a table holds for a bucket."""
    return {
        "config": asdict(config),
        "ms": round(milliseconds, 6),
        "gb_per_s": round(gigabytes_per_second, 1),
    }
