"""The budgets of docs/kernels.md for a step after the first: launches, calls of the library, Python."""

import sys
from collections import Counter

import pytest
import torch

pytest.importorskip("triton")

import projunn
from projunn import init
from projunn.optim import SGD, AdamW
from projunn_kernels.configs.problem import Problem, device_of
from projunn_kernels.launching import intercepted
from projunn_kernels.step.row_tiles import fits_rows
from tests.launches import watched

# Calls of PyTorch's library that a GPU is asked for; views and empty tensors cost the host alone.
LIBRARY = {"bmm", "sum", "copy_", "add_", "add", "mul", "div", "cat", "where", "fill_", "zero_"}
# k: launches of ours, of the library's products, and of its sums and copies, for parameters of a shape
BUDGETS = {1: (4, 0, 0), 4: (8, 0, 0), 16: (18, 4, 0), 64: (26, 4, 0)}
MODELS = {"one": [192], "twenty": [192] * 20, "mixed": [192, 192, 160, 192, 160]}
# Python functions called in a step of one parameter, and of twenty of one shape.
PYTHON = {
    "SGD": (SGD, {}, {1: 135, 20: 147}),
    "SGD at rank 4": (SGD, {"rank": 4}, {1: 161, 20: 147}),
    "AdamW in one pass": (AdamW, {"factorization": "single_pass"}, {1: 201, 20: 277}),
}


def parameters(kernels, shapes):
    for shape in shapes:
        weight = projunn.UnitaryParameter(init.haar_(torch.empty(shape)).to(kernels.device))
        weight.grad = torch.randn_like(weight)
        yield weight


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("k", BUDGETS)
def test_launches_of_a_step(kernels, model, k):
    """As many for each shape, however many parameters have it."""
    sizes = MODELS[model]
    plain = [torch.nn.Parameter(torch.randn(5, device=kernels.device)) for _ in range(model == "mixed")]
    weights = parameters(kernels, [(n, n) for n in sizes])
    optimizer = SGD([*weights, *plain], lr=0.1, rank=k, polish_every=0)
    with watched(kernels, run=False) as seen:
        optimizer.step()
        seen.clear()
        optimizer.step()
    ours, products, others = (len(set(sizes)) * number for number in BUDGETS[k])
    device = device_of(kernels.device)
    if k == 1:  # otherwise two launches make the columns of all programs
        few = [Problem("plane_rows", False, k, n, n, sizes.count(n)) for n in set(sizes)]
        ours += sum(2 for problem in few if not fits_rows(problem, device))
    found = Counter(name for name in seen.calls if name in LIBRARY)
    if k in (4, 64):  # as many matrices as multiprocessors have no launches for parts of one
        many = [n for n in set(sizes) if sizes.count(n) >= device.processors]
        ours -= len(many) * {4: 2, 64: 8}[k]
    assert len(seen.kernels) == ours
    assert found.pop("bmm", 0) == products
    assert found.total() == others


@pytest.mark.interpreter_only
@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("rule", PYTHON)
@pytest.mark.parametrize("shape", [(192, 192), (192, 64)], ids=str)
def test_python_of_a_step(kernels, count, rule, shape, monkeypatch):
    """Functions of Python called in a step whose launches do nothing: time, without a clock."""
    # A test with several processes before this one has set up what such jobs ask before each step.
    monkeypatch.setattr(sys.modules["torch.optim.optimizer"], "_global_optimizer_pre_hooks", {})

    class Nothing:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda **arguments: None

    made, options, most = PYTHON[rule]
    if shape[0] > shape[1] and options.get("factorization") == "single_pass":
        pytest.skip("has kernels for m <= n")
    weights = list(parameters(kernels, [shape] * count))
    optimizer = made(weights, lr=0.1, polish_every=0, **options)
    called = []
    with intercepted(Nothing), kernels.backend():
        for _ in range(3):
            optimizer.step()
        sys.setprofile(lambda frame, event, _: called.append(frame.f_code) if event == "call" else None)
        try:
            optimizer.step()
        finally:
            sys.setprofile(None)
    most = most[count] + 33 * (shape[0] > shape[1])  # W is read once more
    assert len(called) <= most, Counter(c.co_qualname for c in called).most_common(20)
