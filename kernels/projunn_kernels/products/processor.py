"""What the processor makes of products with a few columns."""

import platform
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch


@cache
def short_products_are_fast() -> bool:
    """True on Intel's processors, where MKL multiplies a few rows as fast as it reads the matrix.

    On AMD's the same products take up to five times as long, and passes of PyTorch's own are faster
    (docs/measured.md).
    """
    if not torch.backends.mkl.is_available():
        return False
    with suppress(OSError), Path("/proc/cpuinfo").open() as told:
        return "GenuineIntel" in told.read(4096)
    return "GenuineIntel" in platform.processor()
