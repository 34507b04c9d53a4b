"""The budget of launches and programs of each path, counted as they are launched."""

import math

import pytest
import torch

import projunn
from projunn import init
from projunn.kernels import factor, fused_step_, recurrence, retract_
from projunn.kernels.jit import launch, recurrence_launch
from projunn.optim import SGD


class Counter:
    """Stands where a kernel was: notes its name and number of programs, and runs it."""

    def __init__(self, name, kernel, launches):
        self.name, self.kernel, self.launches = name.removesuffix("_kernel"), kernel, launches

    def __getitem__(self, grid):
        self.launches.append((self.name, math.prod(grid)))
        return self.kernel[grid]


@pytest.fixture
def launches(monkeypatch):
    seen = []
    for module in (launch, recurrence_launch):
        for name, kernel in list(vars(module).items()):
            if name.endswith("_kernel"):
                monkeypatch.setattr(module, name, Counter(name, kernel, seen))
    with projunn.backend("interpret"):
        yield seen


def names(launches):
    return [name for name, _ in launches]


@pytest.mark.parametrize(("k", "middle"), [(1, "plane_basis"), (2, "basis")])
def test_large_matrices(launches, k, middle):
    weight, factors = init.haar_(torch.empty(1, 140, 140)), torch.randn(1, 140, k)
    left, right = factor(torch.randn(1, 140, 140), factors)
    assert names(launches) == ["adjoint_product", "orthonormal", "product"]  # two reads of G
    launches.clear()
    retract_(weight, left, right, "exp")
    # one read of W; none; one read and one write: 3 n^2 numbers
    assert names(launches) == ["adjoint_product", middle, "turn_rows"]


@pytest.mark.parametrize(("k", "kernel"), [(1, "plane_step"), (2, "wide_step")])
def test_blocks_of_many_parameters_are_one_launch(launches, k, kernel):
    lists = [
        [torch.randn(4, 16, size) for _ in range(3)] for size in (16, 16, k, k)
    ] + [[torch.zeros(()) for _ in range(3)]]  # fmt: skip
    fused_step_(*lists, 0.1)
    assert launches == [(kernel, 12)]


def test_an_optimizer_steps_its_parameters_together(launches):
    layers = [projunn.nn.UnitaryLinear(8, 8, bias=False) for _ in range(5)]
    optimizer = SGD([layer.weight for layer in layers], lr=0.1)
    for layer in layers:
        layer.weight.grad = torch.randn(8, 8)
    optimizer.step()
    assert launches == [("plane_step", 5)]


def test_a_bank_pays_for_its_active_blocks(launches):
    bank = projunn.UnitaryParameter(init.haar_(torch.empty(1, 4, 4)).repeat(10_000, 1, 1))
    chosen = torch.randperm(10_000)[:32]
    projunn.nn.select_blocks(bank, chosen).square().sum().backward()
    SGD([bank], lr=0.1).step()
    assert launches == [("plane_step", 32)]


@pytest.mark.parametrize("n", [16, 70])
def test_all_of_time_is_one_launch_each_way(launches, n):
    x, h, w = (torch.randn(s, requires_grad=True) for s in ((7, 33, n), (33, n), (n, n)))
    recurrence(x, h, w / n, None, "tanh").sum().backward()
    assert launches == [("recurrence", 3), ("recurrence_backward", 3)]  # 33 rows, 16 a program
