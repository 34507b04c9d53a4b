"""How far from the optimum do steps end, where a matrix is learned by itself, with either averages?

Losses of all data in every step, whose gradient at the optimum is normal to the manifold, and not zero.
Rules that divide it by its second moments, entry by entry, make something else of it, and end elsewhere;
with ``averages="tangent"`` they see the tangent part alone.  Beside them SGD, which is Riemannian
gradient descent.  float64 and complex128, rank 4.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from bench.records import Results, Row, show
from projunn import UnitaryParameter, init, optim

_STEPS, _LR, _RANK, _SEEDS = 1000, 1e-2, 4, 3


@dataclass(frozen=True)
class _Problem:
    """A loss of some matrices, and its least value.

    Attributes:
        shapes, dtype: of the matrices.
        loss: of the matrices; the least value is minus one.
        rate: of SGD.
    """

    shapes: tuple[tuple[int, int], ...]
    dtype: torch.dtype
    loss: Callable[..., Tensor]
    rate: float


def _components(source: torch.Generator) -> _Problem:
    data = torch.randn(30, 30, dtype=torch.float64, generator=source)
    matrix, weights = data @ data.mT, torch.arange(4, 0, -1, dtype=torch.float64)
    most = (torch.linalg.eigvalsh(matrix).flip(0)[:4] * weights).sum()
    matrix /= most

    def loss(basis: Tensor) -> Tensor:
        return -(((matrix @ basis) * basis).sum(0) * weights).sum()

    return _Problem(((30, 4),), torch.float64, loss, 4.0)


def _inner_product(source: torch.Generator) -> _Problem:
    matrix = torch.randn(16, 16, dtype=torch.complex128, generator=source)
    matrix /= torch.linalg.svdvals(matrix).sum()
    return _Problem(
        ((16, 16),), torch.complex128, lambda weight: -(matrix.conj() * weight).sum().real, 10.0
    )


def _gate(source: torch.Generator) -> _Problem:
    target = init.haar_(torch.empty(8, 8, dtype=torch.complex128), source)
    return _Problem(
        ((8, 8),),
        torch.complex128,
        lambda gate: -((target.conj() * gate).sum().abs() / 8).square(),
        2.0,
    )


def _correlations(source: torch.Generator) -> _Problem:
    matrix = torch.randn(6, 5, dtype=torch.float64, generator=source)
    matrix /= torch.linalg.svdvals(matrix)[:2].sum()
    return _Problem(
        ((6, 2), (5, 2)), torch.float64, lambda left, right: -(left * (matrix @ right)).sum(), 1.0
    )


_PROBLEMS = {
    "four weighted principal components of 30": _components,
    "Re <C, W>, 16 x 16, complex": _inner_product,
    "a gate up to its phase, 8 x 8": _gate,
    "canonical correlations, 6 x 2 and 5 x 2": _correlations,
}
_RULES = ("AdamW", "RMSprop", "Lion")


def _gap(problem: _Problem, rule: str, averages: str, seed: int) -> float:
    """The loss after the steps, less its least value, and as a share of that."""
    torch.manual_seed(seed)
    weights = [
        UnitaryParameter(init.haar_(torch.empty(shape, dtype=problem.dtype))) for shape in problem.shapes
    ]
    options: dict[str, Any] = {"unitary_lr": problem.rate} if rule == "SGD" else {"averages": averages}
    optimizer = getattr(optim, rule)(weights, lr=_LR, rank=_RANK, **options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        problem.loss(*weights).backward()
        optimizer.step()
        if rule != "SGD":
            schedule.step()
    return 1 + problem.loss(*weights).item()


def run(results: Results, quick: bool = False) -> None:
    """The worst of three seeds for each rule; in the short form one seed of one problem."""
    names = list(_PROBLEMS)[: 1 if quick else None]
    seeds = range(1 if quick else _SEEDS)
    table, rows = [], []
    for name in names:
        line: Row = {"problem": name}
        for rule, averages in [("SGD", "gradient"), *product(_RULES, ("gradient", "tangent"))]:
            gaps = [
                _gap(_PROBLEMS[name](torch.Generator().manual_seed(seed)), rule, averages, seed)
                for seed in seeds
            ]
            case = {"problem": name, "rule": rule, "averages": averages}
            rows.append(case | {"steps": _STEPS, "gaps": gaps, "worst": max(gaps)})
            line[rule if averages == "gradient" else f"{rule}, tangent"] = f"{max(gaps):.1e}"
        table.append(line)
    show(f"Distance from the optimum after {_STEPS} steps, the worst of {len(seeds)} seeds", table)
    results.append("averages", rows)
