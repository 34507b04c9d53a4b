"""How compiled kernels change norms that an isometry keeps: tensor cores cut numbers and sums off.

``python -m tests.ptx.norms sm_90 512`` takes a time step of 512 units without nonlinearity, and ``python
-m tests.ptx.norms sm_90 64x64`` the Fourier transform of images of that size and its inverse.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import projunn
from projunn_kernels import fourier_inverse, fourier_transform, launching, recurrence
from projunn_kernels.precision import matmul_precision
from tests.ptx.__main__ import SCHEDULES, checks
from tests.ptx.machine import Machine

STEPS, ROWS = 10, 18


@contextmanager
def executing(architecture: str, precision: str) -> Iterator[None]:
    """Kernels compiled for an architecture do the work of the interpreter."""
    machine = Machine(architecture, SCHEDULES["descending"])
    launches = launching.intercepted(machine)
    with projunn.backend("interpret"), launches, matmul_precision(precision):
        yield


def time_steps(architecture: str, n: int, complex_: bool, precision: str) -> float:
    """The mean relative change in a step, of rows of the batch."""
    torch.manual_seed(0)
    dtype = torch.complex128 if complex_ else torch.float64
    weight = torch.linalg.qr(torch.randn(n, n, dtype=dtype)).Q
    initial = torch.randn(ROWS, n, dtype=dtype)
    exact, weight = (torch.view_as_real(t) if complex_ else t for t in (initial, weight))
    h, w = exact.float(), weight.float()
    with executing(architecture, precision):
        states, _ = recurrence(h.new_zeros(STEPS, *h.shape), h, w, None, "identity")
    return _change(exact, states[-1]) / STEPS


def transforms(architecture: str, size: list[int], precision: str) -> tuple[float, float]:
    """The mean relative change by a transform, and by a transform and its inverse."""
    torch.manual_seed(0)
    images = torch.randn(max(2, 4096 // (size[0] * size[1])), 8, *size)
    with executing(architecture, precision):
        paired, own = fourier_transform(images, size, True)
        back = fourier_inverse(paired, own, None, size, True)
    spectra = torch.cat([paired.movedim(1, 0).flatten(1), own.movedim(1, 0).flatten(1)], 1)
    return _change(images, spectra), _change(images, back)


def _change(before: Tensor, after: Tensor) -> float:
    exact, norms = (t.double().flatten(1).norm(dim=-1) for t in (before, after))
    return ((norms - exact) / exact).mean().item()


def main(architecture: str, sizes: list[str]) -> None:
    """Print the changes in float32 and in TF32, of real and complex states or for images."""
    checks(architecture, ["polish"])  # imports the kernels, as what compiles them
    os.environ |= {"TRITON_INTERPRET": "1", "PROJUNN_SELFCHECK": "off"}
    for size in sizes or ["200", "32x32"]:
        sides, precisions = [int(side) for side in size.split("x")], ("highest", "high")
        if len(sides) == 2:
            both = [transforms(architecture, sides, precision) for precision in precisions]
            rows = {"transform": [there for there, _ in both], "both": [back for _, back in both]}
        else:
            rows = {
                kind: [time_steps(architecture, *sides, kind == "complex", p) for p in precisions]
                for kind in ("real", "complex")
            }
        for kind, found in rows.items():
            print(size, kind, *(f"{one:.1e}" for one in found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "sm_90", sys.argv[2:])
