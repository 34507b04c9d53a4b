"""Which factorization learns most in equal steps?  Problems on which a sketch can stop, and four tasks.

Maximise <C, W>; PCA on the Stiefel manifold, maximise tr(W^T S W N); least squares, ‖W X - B‖^2 over all
of the data; and the tasks unitary, copying, adding and pixels, as `projunn train` has them.  All at rank
1, for three seeds and four factorizations.  Recorded and drawn are how far a problem is from its
optimum, relative to the start, and the held-out loss of a task.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.records import Results, Row
from projunn import UnitaryParameter, init
from projunn.optim import SGD
from projunn.tasks import TASKS
from projunn.training.config import TrainConfig
from projunn.training.learner import Learner

COLORS = {"lsi": "#787774", "subspace": "#d9730d", "single_pass": "#448361", "tangent": "#0b6e99"}
SEEDS = range(3)
STEPS, POINTS = 400, 20
# Its steps, and the options that differ from the task's own.
TRAINED: dict[str, tuple[int, dict[str, Any]]] = {
    "unitary": (600, {"size": 64, "dtype": "float32"}),
    "copying": (800, {"length": 50}),
    "adding": (1500, {"length": 50}),
    "pixels": (500, {}),
}

Curve = list[tuple[int, float]]
Problem = Callable[[torch.Generator], tuple[Tensor, Callable[[Tensor], Tensor], float, float]]


def _rotations(count: int, n: int, source: torch.Generator) -> list[Tensor]:
    """Haar-random orthogonal matrices of determinant 1: steps lead from each to all others."""
    found = [init.haar_(torch.empty(n, n), source) for _ in range(count)]
    for matrix in found:
        matrix[0] *= torch.linalg.det(matrix).sign()
    return found


def _trace(source: torch.Generator) -> tuple[Tensor, Callable[[Tensor], Tensor], float, float]:
    """-<C, W>, with C of singular values from 1 to 3: start, loss, its minimum, and the rate."""
    u, v, start = _rotations(3, 16, source)
    values = torch.linspace(1, 3, 16)
    matrix = (u * values) @ v
    return start, lambda w: -(matrix * w).sum(), -values.sum().item(), 0.1


def _components(source: torch.Generator) -> tuple[Tensor, Callable[[Tensor], Tensor], float, float]:
    """-tr(W^T S W N)/2, W 40 x 4, N diagonal: the leading components of S, each by itself."""
    vectors = _rotations(1, 40, source)[0]
    values = torch.linspace(4, 0, 40)
    covariance = (vectors * values) @ vectors.T
    weights = torch.linspace(1, 0.25, 4)
    start = init.haar_(torch.empty(40, 4), source)
    least = -(values[:4] * weights).sum().item() / 2
    return start, lambda w: -((covariance @ w) * w).sum(0).dot(weights) / 2, least, 0.1


def _squares(source: torch.Generator) -> tuple[Tensor, Callable[[Tensor], Tensor], float, float]:
    """‖W X - U X‖^2 / 2 / 64, with 64 columns X of strengths from 1 to 1/4."""
    target, start = _rotations(2, 32, source)
    data = torch.randn(32, 64, generator=source) * torch.linspace(1, 0.25, 32)[:, None]
    return start, lambda w: ((w - target) @ data).square().sum() / 128, 0.0, 0.3


PROBLEMS: dict[str, Problem] = {
    "maximise <C, W>": _trace,
    "PCA": _components,
    "least squares": _squares,
}


def solve(problem: Problem, factorization: str, seed: int, steps: int) -> Curve:
    """Distance of the loss from its minimum, relative to the start."""
    start, loss_of, least, rate = problem(torch.Generator().manual_seed(seed))
    weight = UnitaryParameter(start)
    optimizer = SGD([weight], lr=1.0, unitary_lr=rate, factorization=factorization)
    first, curve = loss_of(start).item() - least, []
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(weight)
        if step % max(1, steps // POINTS) == 0:
            curve.append((step, (loss.item() - least) / first))
        loss.backward()
        optimizer.step()
    return [*curve, (steps, (loss_of(weight).item() - least) / first)]


def train(task: str, options: dict[str, Any], factorization: str, seed: int, steps: int) -> Curve:
    """Held-out loss of a task, in the course of its training."""
    given = {"factorization": factorization, "seed": seed, "steps": steps, "device": "cpu", **options}
    config = TrainConfig.for_task(task, log_every=max(1, steps // POINTS), **given)
    learner = Learner("unitary", TASKS[task](config.task_options), config)
    while not learner.finished:
        learner.take_step()
    return [(point.step, point.test_loss) for point in learner.points]


def draw(results: Results, curves: dict[str, dict[tuple[str, int], Curve]]) -> None:
    """``factorization.png``: a plot for each problem and task, a line for each seed."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(12, 6), layout="constrained")
        figure.subplots(2, 4)
        for axes, (name, lines) in zip(figure.axes, curves.items(), strict=False):
            for (factorization, seed), curve in lines.items():
                axes.plot(
                    [step for step, _ in curve],
                    [max(value, 1e-7) for _, value in curve],
                    color=COLORS[factorization],
                    linewidth=1.0,
                    label=factorization if seed == 0 else None,
                )
            axes.set(yscale="log", xlabel="step")
            axes.set_title(name, fontsize=10)
        figure.axes[0].set_ylabel("distance from the optimum")
        figure.axes[4].set_ylabel("held-out loss")
        figure.axes[-1].set_axis_off()
        figure.axes[-1].legend(*figure.axes[0].get_legend_handles_labels(), frameon=False, loc="center")
        figure.savefig(results.folder / "factorization.png", dpi=110)


def run(results: Results, quick: bool = False) -> None:
    """One case after the other; print and record where each curve ends, draw all of them."""
    runs: dict[str, tuple[Callable[..., Curve], int]] = {
        name: (partial(solve, problem), STEPS) for name, problem in PROBLEMS.items()
    }
    runs |= {task: (partial(train, task, options), steps) for task, (steps, options) in TRAINED.items()}
    rows: list[Row] = []
    curves: dict[str, dict[tuple[str, int], Curve]] = {}
    for name, (curve_of, all_steps) in runs.items():
        steps = max(4, all_steps // 50) if quick else all_steps
        for factorization in COLORS:
            for seed in SEEDS:
                curve = curve_of(factorization=factorization, seed=seed, steps=steps)
                curves.setdefault(name, {})[factorization, seed] = curve
                row = {"problem": name, "factorization": factorization, "seed": seed, "steps": steps}
                rows.append(row | {"half_way": curve[len(curve) // 2][1], "last": curve[-1][1]})
    results.report("factorization", "distance from the optimum, or held-out loss, at rank 1", rows)
    draw(results, curves)
