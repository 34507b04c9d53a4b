"""Steps one by one, each against PyTorch's step on the CPU from the same state.

What is checked is the host's part: launches that are kept from step to step and pass addresses, and
graphs that are replayed.  A step along the gradient of another step would be unitary, too.
"""

import copy
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import projunn
from bench.gpu.case import Case
from bench.gpu.machine import Machine
from bench.gpu.weights import haar

STEPS = {False: 4, True: 12}  # with a graph more, the first of which are no replays
ALLOWED = 5e-6  # difference of an entry of W
SHAPES = ((4, 64, 64), (2, 130, 130), (1, 1024, 1024))
# The options of an optimizer, by what the check is called.
WAYS: dict[str, dict[str, Any]] = {
    "rank 1": {},
    "rank 4": {"rank": 4},
    "rank 16": {"rank": 16},
    "single pass": {"factorization": "single_pass"},
    "captured": {"capturable": True, "polish_every": 3},
    "captured single pass": {"capturable": True, "factorization": "single_pass"},
}


def checks(on: Machine, small: bool) -> list[Case]:
    """Of every rule, in every way."""
    shapes = ((2, 5, 5),) if on.dry else ((2, 16, 16),) if small else SHAPES
    return [
        Case(
            f"step by step, {way} {rule} {dtype} {shape}",
            f"step by step, {way}",
            functools.partial(compared, on, rule, shape, dtype, way),
        )
        for shape in shapes
        for rule in ("RMSprop", "SGD", "AdamW", "Lion")
        for dtype in (torch.float32, torch.complex64)
        for way in WAYS
    ]


def compared(on: Machine, rule: str, shape: tuple[int, ...], dtype: torch.dtype, way: str) -> float:
    """The largest difference of an entry, as a multiple of what is allowed.

    Two parameters of one shape step together.  Gradients lie elsewhere in each step and the rate is
    another, unless a graph reads them.
    """
    make, graph = getattr(projunn.optim, rule), way.startswith("captured")
    options: dict[str, Any] = {
        "lr": 1e-2,
        "unitary_lr": 0.2 / (1 if rule == "SGD" else shape[-1] ** 0.5),
    }
    options |= WAYS[way]
    weights = [projunn.UnitaryParameter(haar(on, *shape, dtype=dtype)) for _ in range(2)]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer = make(weights, **options)
    captured = projunn.optim.CapturedStep(optimizer) if graph and not on.dry else None
    held: list[Tensor | None] = []  # so that no gradient lies where one has been
    worst = 0.0
    for number in range(on.size(STEPS[graph], 2)):
        for weight in weights:
            gradient = torch.randn_like(weight) / shape[-1] ** 0.5
            if graph and weight.grad is not None:
                weight.grad.copy_(gradient)
            else:
                held.append(weight.grad)
                weight.grad = gradient
        if not graph:
            optimizer.param_groups[0]["lr"] = 1e-2 / (1 + number)
        before, state = _on_host(weights), copy.deepcopy(optimizer.state_dict())
        optimizer.step() if captured is None else captured()
        if not number:  # it draws the bases, others on a CPU than on a GPU
            continue
        twins = [projunn.UnitaryParameter(one.clone()) for one in before]
        for twin, weight in zip(twins, weights, strict=True):
            twin.grad = None if weight.grad is None else weight.grad.cpu()
        other = make(twins, **options)
        other.load_state_dict(state)
        other.param_groups[0]["capturable"] = False
        with projunn.backend("torch"):
            other.step()
        wanted = _on_host(twins)
        worst = max(worst, *_differences(_on_host(weights), wanted))
        if min(_differences(before, wanted)) < 100 * ALLOWED:
            raise RuntimeError("the step is too short to be checked")
    if captured is not None and not captured.quiet < captured.replays:
        raise RuntimeError(f"{captured.replays} steps were replayed, {captured.quiet} without a polish")
    return worst / ALLOWED


def _on_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().cpu().clone() for tensor in tensors]


def _differences(some: Sequence[Tensor], others: Sequence[Tensor]) -> list[float]:
    return [(a - b).abs().max().item() for a, b in zip(some, others, strict=True)]
