"""Figure 1a: the share of a gradient's energy that its k largest singular values hold, in training.

Measured is the weight of the last convolution, whose gradient is a matrix at each frequency (the mean
over them is reported), and the recurrent matrix of the copying task.
"""

from statistics import mean
from typing import Any

import projunn
from projunn.reproduce.recipe import Measured, Row, Training
from projunn.tasks import TASKS
from projunn.training.learner import Learner

_RANKS = (1, 2, 4, 8, 16, 32)
_POINTS = 20

# One epoch of CIFAR10; at this width the matrices of the last block are 512 x 512, as in the figure.
LAST_BLOCK = Training(
    "resnet9",
    "images",
    {
        "dataset": "cifar10",
        "model": "resnet9",
        "width": 128,
        "batch_size": 256,
        "unitary_lr": 1e-3,
        "factorization": "lsi",
        "steps": 195,
    },
    {"dataset": "digits", "width": 16, "batch_size": 64, "steps": 100},
    images=True,
)
RECURRENT = Training(
    "copying",
    "copying",
    {"length": 1000, "hidden": 190, "batch_size": 128, "factorization": "lsi", "steps": 1000},
    {"length": 200, "hidden": 128, "batch_size": 32, "steps": 200},
)


def measure_gradients(measured: Measured) -> list[Row]:
    """Train each network, and look at about 20 of its gradients."""
    rows: list[Row] = []
    for training in (LAST_BLOCK, RECURRENT):
        config = training.config(
            measured.scale,
            seed=measured.seed,
            device=measured.device,
            data=measured.data,
            dry=measured.dry,
        )
        learner = Learner("unitary", TASKS[config.task](config.task_options), config)
        assert config.steps is not None
        every = max(1, config.steps // _POINTS)
        while learner.step < config.steps:
            learner.take_step()
            if learner.step % every == 0:
                rows += _energies(training.label, learner)
        print(f"{training.label}: {_summary(training.label, rows)}", flush=True)
    _draw(measured, rows)
    return rows


def _energies(label: str, learner: Learner) -> list[Row]:
    weight = projunn.unitary_parameters(learner.model)[-1]
    assert weight.grad is not None
    gradient = projunn.view_like(weight, weight.grad)
    largest = min(gradient.shape[-2:])
    return [
        {
            "network": label,
            "step": learner.step,
            "rank": rank,
            "n": largest,
            "energy": round(projunn.diagnostics.captured_energy(gradient, rank).mean().item(), 5),
        }
        for rank in _RANKS
        if rank <= largest
    ]


def _summary(label: str, rows: list[Row]) -> str:
    """The mean energy of each rank, over the steps."""
    by_rank: dict[int, list[float]] = {}
    for row in rows:
        if row["network"] == label:
            by_rank.setdefault(row["rank"], []).append(row["energy"])
    return ", ".join(f"k = {rank} holds {mean(energies):.0%}" for rank, energies in by_rank.items())


def _draw(measured: Measured, rows: list[Row]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    labels = list(dict.fromkeys(row["network"] for row in rows))
    every: Any = figure.subplots(1, len(labels), sharey=True, squeeze=False)
    for axes, label in zip(every[0], labels, strict=True):
        own = [row for row in rows if row["network"] == label]
        for step in dict.fromkeys(row["step"] for row in own):
            points = [(row["rank"], row["energy"]) for row in own if row["step"] == step]
            axes.plot(*zip(*points, strict=True), color="#0b6e99", alpha=0.3, linewidth=1)
        axes.set(title=f"{label}, n = {own[0]['n']}", xlabel="rank k", xscale="log", ylim=(0, 1.02))
    every[0][0].set_ylabel("share of the gradient's energy")
    figure.savefig(measured.folder / "gradients.png", dpi=120)
