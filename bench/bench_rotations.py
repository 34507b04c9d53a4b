"""Learned rotations for 4-bit products: `projunn.optim.SGDG` beside the published SGDG.

    minimise  ‖Q(X R) Q(W R)^T - X W^T‖^2 / ‖X W^T‖^2      Q: round to 4 bits a row, straight through

over orthogonal R (n x n), from a random Hadamard matrix, X (n tokens) with channels of all sizes, W (n x
n).  Recorded are the gain of 100 steps, the loss at the start less that at the end, as a share of the
published routine's gain with the same learning rate, seeds and steps; what R is off then; and the time
of a step.  ``--sgdg FILE`` names the published routine (SpinQuant's train_utils/optimizer.py); without
it a row's share is of our own full rank.
"""

import importlib.util
import random
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from bench.records import Results, Row, timing_rows
from bench.timing import measure
from projunn import unitarity_defect
from projunn.optim import SGDG

RANKS = (16, 32, None)
LEARNING_RATES = (1.5, 5.0)
STEPS, SEEDS = 100, 3
TARGET = 20  # times the published step, at n = 4096
# The spread of the logarithms of the channels' sizes, and by how much one in 64 is larger.
TASKS = {"strong outliers": (1.0, 20.0), "mild outliers": (0.3, 10.0)}

Make = Callable[[nn.Parameter], torch.optim.Optimizer]


class _Rounded(torch.autograd.Function):
    """Each row in steps of a seventh of its largest entry; its gradient is passed through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        size = x.abs().amax(-1, keepdim=True) / 7
        return (x / size).round() * size

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def hadamard(n: int, source: torch.Generator) -> Tensor:
    """A Hadamard matrix of unit columns and random signs; n is a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < n:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / n**0.5 * (torch.randint(2, (n,), generator=source) * 2 - 1)


def problem(task: str, n: int, seed: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The start and the loss."""
    source = torch.Generator().manual_seed(seed)
    spread, factor = TASKS[task]
    sizes = (spread * torch.randn(n, generator=source)).exp()
    sizes[torch.randperm(n, generator=source)[: n // 64]] *= factor
    mixed = torch.eye(n) + 0.3 / n**0.5 * torch.randn(n, n, generator=source)
    tokens = torch.randn(n, n, generator=source) * sizes @ torch.linalg.qr(mixed)[0]
    tokens /= tokens.square().mean(-1, keepdim=True).sqrt()
    rows = torch.randn(n, n, generator=source) / n**0.5
    weights = rows * (0.5 * torch.randn(n, generator=source)).exp()
    wanted = tokens @ weights.T

    def loss(rotation: Tensor) -> Tensor:
        rounded = _Rounded.apply(tokens @ rotation) @ _Rounded.apply(weights @ rotation).T
        return (rounded - wanted).square().mean() / wanted.square().mean()

    return hadamard(n, source), loss


def train(make: Make, task: str, n: int, seed: int, steps: int) -> tuple[float, float, float]:
    """The loss before and after, and the defect of R."""
    start, loss = problem(task, n, seed)
    rotation = nn.Parameter(start)
    optimizer = make(rotation)
    random.seed(seed)  # of the published routine
    before = loss(start).item()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(rotation).backward()
        optimizer.step()
    return before, loss(rotation.detach()).item(), unitarity_defect(rotation.detach()).item()


def published(file: Path) -> Callable[..., torch.optim.Optimizer]:
    """The class SGDG of a file."""
    spec = importlib.util.spec_from_file_location("published_sgdg", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SGDG


def _makers(lr: float, theirs: Callable[..., torch.optim.Optimizer] | None) -> dict[str, Make]:
    def ours(rank: int | None) -> Make:
        return lambda p: SGDG([p], lr=lr, stiefel=True, rank=rank)

    found = {f"projunn rank {rank or 'full'}": ours(rank) for rank in RANKS}
    if theirs is not None:
        found["published SGDG"] = lambda p: theirs([p], lr=lr, stiefel=True)
    return found


def gains(results: Results, theirs: Callable[..., torch.optim.Optimizer] | None, quick: bool) -> None:
    n = 512  # of ranks that differ: small matrices step densely at any rank
    steps, seeds = (20, 1) if quick else (STEPS, SEEDS)
    for task in TASKS:
        for lr in LEARNING_RATES[:1] if quick else LEARNING_RATES:
            rows: list[Row] = []
            makers = _makers(lr, theirs)
            peer = "projunn rank full" if theirs is None else "published SGDG"
            ends = {
                what: [train(make, task, n, seed, steps) for seed in range(seeds)]
                for what, make in makers.items()
            }
            gain = {what: fmean(a - b for a, b, _ in found) for what, found in ends.items()}
            for what, found in ends.items():
                row: Row = {"n": n, "steps": steps, "seeds": seeds, "lr": lr, "what": what}
                row["before"] = round(fmean(one[0] for one in found), 5)
                row["after"] = round(fmean(one[1] for one in found), 5)
                row["share"] = round(gain[what] / gain[peer], 3)
                row["defect"] = float(f"{max(one[2] for one in found):.1e}")
                rows.append({"task": task, "peer": peer, **row})
            title = f"4-bit rotations, {task}, lr = {lr:g}: gain in {steps} steps"
            results.report("rotations", title, rows)


def times(results: Results, theirs: Callable[..., torch.optim.Optimizer] | None, quick: bool) -> None:
    for n in (512,) if quick else (512, 4096):
        gradient = torch.randn(n, n) / n
        steps = {}
        for what, make in _makers(1.5, theirs).items():
            rotation = nn.Parameter(hadamard(n, torch.Generator().manual_seed(0)))
            rotation.grad = gradient.clone()
            steps[what] = make(rotation).step
        found = measure(steps, 3 if quick else 20, primed=n < 4096, seconds=20)
        title = f"a step of a rotation, n = {n}"
        case = {"n": n, "dtype": "float32"}
        peer = "projunn rank full" if theirs is None else "published SGDG"
        results.report("rotations", title, timing_rows(case, found, peer))
        if theirs is not None and n == 4096:
            factor = found[peer].ratio(found["projunn rank 32"])
            print(f"rank 32: {factor:.1f} times faster than the published step; wanted: {TARGET}")


def run(results: Results, quick: bool = False, sgdg: Path | None = None) -> None:
    """Print and record the times and the gains."""
    theirs = None if sgdg is None else published(sgdg)
    times(results, theirs, quick)
    gains(results, theirs, quick)
