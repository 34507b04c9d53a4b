"""What a launch is configured for, and what is tuned: problems, devices, configurations.

A `Problem` is an operation, its sizes and whether its numbers are complex; a `Config` is what a launch
takes; a `Device` is what a configuration depends on.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch

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
