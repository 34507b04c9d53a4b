"""How a state's norm changes in a time step without nonlinearity, by compiled kernels.

An isometry keeps it; tensor cores, which cut numbers and sums off, do not:
``python -m tests.ptx.norms sm_90 512``.
"""

import os
import sys

import torch

import projunn
from projunn_kernels import launching, recurrence
from projunn_kernels.precision import matmul_precision
from tests.ptx.__main__ import SCHEDULES, checks
from tests.ptx.machine import Machine

STEPS, ROWS = 10, 18


def change(architecture: str, n: int, complex_: bool, precision: str) -> float:
    """The mean relative change in a step, of rows of the batch."""
    torch.manual_seed(0)
    dtype = torch.complex128 if complex_ else torch.float64
    weight = torch.linalg.qr(torch.randn(n, n, dtype=dtype)).Q
    initial = torch.randn(ROWS, n, dtype=dtype)
    given = [torch.view_as_real(t) if complex_ else t for t in (initial, weight)]
    h, w = (t.float() for t in given)
    machine = Machine(architecture, SCHEDULES["descending"])
    executing = launching.intercepted(machine)
    with projunn.backend("interpret"), executing, matmul_precision(precision):
        states, _ = recurrence(h.new_zeros(STEPS, *h.shape), h, w, None, "identity")
    exact = initial.flatten(1).norm(dim=-1)
    norms = states[-1].double().flatten(1).norm(dim=-1)
    return ((norms - exact) / exact).mean().item() / STEPS


def main(architecture: str, sizes: list[str]) -> None:
    """Print the change for real and complex states of some sizes, in float32 and in TF32."""
    checks(architecture, ["polish"])  # imports the kernels, as what compiles them
    os.environ |= {"TRITON_INTERPRET": "1", "PROJUNN_SELFCHECK": "off"}
    for n in map(int, sizes or ["200"]):
        for complex_ in (False, True):
            kind = "complex" if complex_ else "real"
            found = [change(architecture, n, complex_, precision) for precision in ("highest", "high")]
            print(n, kind, *(f"{one:.1e}" for one in found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "sm_90", sys.argv[2:])
