"""Unitary weights made on the device, at the price of a few passes over memory.

Haar weights come from a QR factorization in float64: half a second at n = 1024 on a slow host, minutes
at 8192.  What is timed does not ask for the Haar measure, only for a unitary matrix without structure.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

import projunn
from bench.gpu.machine import Machine, matmul_precision
from projunn import init

LARGEST_QR = 1024
REFLECTIONS = 4


def haar(on: Machine, *shape: int, dtype: torch.dtype) -> Tensor:
    """Unitary matrices (*batch, m, n) on the device: Haar measure up to n = 1024, `reflected` beyond."""
    weight = torch.empty(shape, dtype=dtype, device=on.device)
    return init.haar_(weight) if max(shape[-2:]) <= LARGEST_QR else reflected(weight)


def reflected(weight: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Fills the matrices (*batch, m, n) with P H_1 ... H_r, and returns them.

    P permutes the coordinates, and the H_i = I - 2 v_i v_i^H reflect along random unit vectors v_i.
    Every factor is unitary to rounding, and so is the product: the defect stays below 1e-6 in float32.
    """
    m, n = weight.shape[-2:]
    if m > n:
        weight.copy_(reflected(weight.new_empty(*weight.shape[:-2], n, m), generator).mH)
        return weight
    rows = weight.view(-1, m, n)
    places = torch.randperm(n, device=weight.device, generator=generator)[:m]
    rows.zero_()
    rows[:, torch.arange(m, device=weight.device), places] = 1
    with matmul_precision("highest"):
        for _ in range(REFLECTIONS):
            v = torch.randn(
                len(rows), n, 1, dtype=weight.dtype, device=weight.device, generator=generator
            )
            v /= torch.linalg.vector_norm(v, dim=1, keepdim=True)
            rows.baddbmm_(rows @ v, v.mH, alpha=-2)
    return weight


@contextmanager
def cheap_initialization() -> Iterator[None]:
    """Inside, layers are filled by `reflected` where they ask for the Haar measure."""

    def fill(tensor: Tensor, generator: torch.Generator | None = None) -> Tensor:
        reflected(projunn.matrix_view(tensor).detach(), generator)
        return tensor

    patches = [
        patch.object(module, "haar_", fill)
        for module in list(sys.modules.values())
        if getattr(module, "haar_", None) is init.haar_
    ]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()
