"""Trains layers twice, by PyTorch operations and by compiled kernels, and compares the weights.

The kernels are those that a GPU would run, executed by the machine: ``python -m tests.ptx.training``.
"""

import os
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

import projunn
from projunn import optim
from projunn_kernels import launching
from tests.ptx.__main__ import SCHEDULES, checks
from tests.ptx.machine import Machine

STEPS = 3
# By name: a layer and the shape of its input.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: projunn.nn.UnitaryLinear(24, 24), (40, 24)),
    "long": (lambda: projunn.nn.UnitaryLinear(200, 200), (40, 200)),
    "tall": (lambda: projunn.nn.UnitaryLinear(40, 150), (30, 40)),
    "wide": (lambda: projunn.nn.UnitaryLinear(160, 160, dtype=torch.complex64), (40, 160)),
    "recurrent": (lambda: projunn.nn.UnitaryRNN(6, 20, nonlinearity="tanh"), (12, 5, 6)),
    "convolution": (lambda: projunn.nn.UnitaryConv2d(8, 8, 8), (3, 8, 8, 8)),
}
RANKS = {"linear": 1, "long": 1, "tall": 3, "wide": 12, "recurrent": 2, "convolution": 2}


def trained(name: str, machine: Machine | None, steps: int = STEPS) -> list[Tensor]:
    """The parameters of a layer after some steps, by a machine or else by PyTorch operations."""
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, x = make(), torch.randn(shape)
    optimizer = optim.SGD(layer.parameters(), lr=0.05, momentum=0.9, rank=RANKS[name])

    def step() -> None:
        optimizer.zero_grad()
        out = layer(x)
        out = out[0] if isinstance(out, tuple) else out
        (out - 1).abs().square().mean().backward()
        optimizer.step()

    for _ in range(steps):
        if machine is None:
            step()
            continue
        with projunn.backend("interpret"), launching.intercepted(machine):
            step()
    return [p.detach() for p in layer.parameters()]


def main(architecture: str, names: list[str]) -> None:
    """Train, and print for each layer how far its numbers moved and differ, launches and races."""
    checks(architecture, ["polish"])  # imports the kernels, as what compiles them
    os.environ |= {"TRITON_INTERPRET": "1", "PROJUNN_SELFCHECK": "off"}
    for name in names or LAYERS:
        machine = Machine(architecture, SCHEDULES["descending"])
        plain = trained(name, None)
        moved, off = (
            _largest(plain, other) for other in (trained(name, None, 0), trained(name, machine))
        )
        print(name, f"{moved:.1e} {off:.1e}", len(machine.launches), len(machine.races), flush=True)


def _largest(ones: list[Tensor], others: list[Tensor]) -> float:
    return max((p - q).abs().max().item() for p, q in zip(ones, others, strict=True))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "sm_90", sys.argv[2:])
