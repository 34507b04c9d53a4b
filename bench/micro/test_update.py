"""The update of unitary weights whose gradient is given, beside that of unconstrained ones.

One large weight is bound by memory and by its products, many small ones by what it costs to issue them:
both sizes are here.
"""

from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import projunn
from projunn import init, retract_
from projunn_kernels import FusedStep, fused_step_

N, LR = 1024, 1e-3
# How many weights, and rows and columns of each.
SHAPES = {f"1 x {N}": (1, N), "1 x 64": (1, 64), "20 x 9": (20, 9), "20 x 64": (20, 64)}
BANK = (544, 64, 64)
RULES = {"SGD": {}, "SGD with momentum": {"momentum": 0.9}, "RMSprop": {}, "AdamW": {}}
RETRACTIONS = ("exp", "polar", "cayley")


@pytest.mark.benchmark(group=f"update of {N} x {N} by factors of rank 1")
@pytest.mark.parametrize("retraction", ["torch addr_", *RETRACTIONS])
def test_retract(benchmark: Any, retraction: str) -> None:
    weight = init.haar_(torch.empty(N, N))
    left, right = torch.randn(N, 1) * -LR, torch.randn(N, 1)
    if retraction == "torch addr_":
        benchmark(weight.addr_, left[:, 0], right[:, 0])
    else:
        benchmark(retract_, weight, left, right, retraction)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("package", ["torch", "projunn"])
@pytest.mark.parametrize("shape", SHAPES)
def test_optimizer_step(benchmark: Any, rule: str, package: str, shape: str) -> None:
    benchmark.group = f"{rule}.step of {shape}"
    count, n = SHAPES[shape]
    optim = torch.optim if package == "torch" else projunn.optim
    weights = _weights(count, n, package == "projunn")
    optimizer = getattr(optim, rule.split()[0])(weights, lr=LR, **RULES[rule])
    gradients = cycle([[torch.randn(n, n) / n for _ in weights] for _ in range(7)])

    def another() -> None:  # of constant ones a step would find the factors exactly, and stop
        for weight, gradient in zip(weights, next(gradients), strict=True):
            weight.grad = gradient

    benchmark.pedantic(optimizer.step, setup=another, rounds=1000, warmup_rounds=20)


@pytest.mark.benchmark(group=f"step of a bank {BANK}, rank 1")
@pytest.mark.parametrize("step", ["torch.optim.SGD.step", "projunn.optim.SGD.step", "fused_step_"])
def test_bank_step(benchmark: Any, step: str) -> None:
    weight = init.haar_(torch.empty(BANK))
    gradient = torch.randn(BANK) / BANK[-1]
    if step == "fused_step_":
        basis, probe = torch.randn(2, *BANK[:2], 1)
        counter, missed = torch.zeros(()), torch.zeros(BANK[0], dtype=torch.int64)
        arguments = FusedStep([weight], [gradient], [basis], [probe], [counter], [missed], LR)
        benchmark(fused_step_, arguments)
        assert counter == 0
        return
    ours = step.startswith("projunn")
    parameter = projunn.UnitaryParameter(weight) if ours else nn.Parameter(weight)
    parameter.grad = gradient
    optim = projunn.optim if ours else torch.optim
    benchmark(optim.SGD([parameter], lr=LR).step)


def _weights(count: int, n: int, unitary: bool) -> list[Tensor]:
    """Parameters with gradients."""
    found: list[Tensor] = []
    for _ in range(count):
        weight = init.haar_(torch.empty(n, n))
        parameter = projunn.UnitaryParameter(weight) if unitary else nn.Parameter(weight)
        parameter.grad = torch.randn(n, n) / n
        found.append(parameter)
    return found
