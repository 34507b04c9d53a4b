"""The problems that launches are configured and tuned for, devices, and configurations.

A `Problem` is an operation, its sizes and whether its numbers are complex; a `Config` is what a launch
takes; a `Device` is what a configuration depends on.
"""

import re
from dataclasses import dataclass
from functools import cache

import torch

from projunn_kernels.constants import MAX_HELD

_BUCKET = re.compile(r"([a-z_]+)/(real|complex)/k(\d{1,6})/(\d{1,9})x(\d{1,9})/b(\d{1,9})")


@dataclass(frozen=True)
class Config:
    """A launch: tiles of rows x columns numbers, warps a program.

    ``hold``: (rotate_rows) whole rows stay in registers; (recurrence) W stays on the multiprocessor.
    ``depth``, ``stages``: (recurrence) columns of a panel of W, and one more than are in flight;
    (Fourier transforms) ``stages`` programs share a multiprocessor, and ``columns`` are the points of a
    slice, or 1 if planes are whole.
    ``overlap``: (recurrence) the launch of a time step begins before that of the step before it ends.
    """

    rows: int
    columns: int
    warps: int
    hold: bool = False
    depth: int = 1
    stages: int = 1
    overlap: bool = False


@dataclass(frozen=True)
class Problem:
    """What a configuration is chosen for: ``matrices`` matrices m x n, rank k.

    Of a time loop: a batch of m rows and n units, whatever the number of steps; k = 1 if products are
    as accurate as float32, 2 if their factors are rounded to TF32 or are of half precision.  Of a
    Fourier transform: ``matrices`` planes of m x n points, or lines of n, k = 1.
    """

    operation: str
    pairs: bool
    k: int
    m: int
    n: int
    matrices: int

    @property
    def columns(self) -> int:
        """k as the kernels see it: a power of two."""
        return power_of_two(self.k)

    @property
    def width(self) -> int:
        """How many floats a number has."""
        return 2 if self.pairs else 1

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the numbers."""
        return torch.complex64 if self.pairs else torch.float32

    @property
    def bucket(self) -> str:
        """The key of the problem in a table."""
        kind = "complex" if self.pairs else "real"
        matrices = min(power_of_two(self.matrices), 1024)
        n = power_of_two(self.n)
        if self.operation.startswith("recurrence") and 128 < self.n <= MAX_HELD:
            n = MAX_HELD
        size = f"{power_of_two(self.m)}x{n}"
        return f"{self.operation}/{kind}/k{self.columns}/{size}/b{matrices}"

    @classmethod
    def of_bucket(cls, bucket: str) -> "Problem":
        """The largest problem of a bucket.

        Raises:
            ValueError: ``bucket`` is no such key.
        """
        match = _BUCKET.fullmatch(bucket)
        if match is None:
            raise ValueError(f"{bucket[:80]!r} names no bucket")
        k, m, n, matrices = (int(number) for number in match.groups()[2:])
        return cls(match[1], match[2] == "complex", k, m, n, matrices)


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


@cache
def device_of(device: torch.device) -> Device:
    """The properties of a device; of a small stand-in GPU for the CPU, where the interpreter runs."""
    if device.type != "cuda":
        return Device()
    properties = torch.cuda.get_device_properties(device)
    capability = f"{properties.major}.{properties.minor}"
    if torch.version.hip is not None:  # AMD counts in numbers that NVIDIA has too
        capability = properties.gcnArchName.partition(":")[0]
    return Device(
        properties.name,
        capability,
        properties.multi_processor_count,
        getattr(properties, "shared_memory_per_block_optin", 101_376),
    )
