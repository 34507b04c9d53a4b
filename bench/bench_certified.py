"""The 1-Lipschitz net: certified accuracy over three seeds; a step of it and of ResNet9.

certified    `projunn train images --model lipschitz` on scikit-learn's digits and, with ``--data``, on
             the images of a file: with the recipe, with that of version 0.2.0 (standardised images,
             shifts, plain cross-entropy, orthonormal last rows, rank 1), and with the recipe but the
             scale of the images, the loss and the last layer of then
models       a training step (forward, backward, optimizer) of the networks with unitary convolutions,
             as a multiple of the same networks' with 3 x 3 ``nn.Conv2d`` and torch.optim
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import projunn
from bench.records import Results, Row, show, timing_rows
from bench.timing import measure
from projunn.models import LipschitzConvNet, ResNet9
from projunn.nn import OffsetCrossEntropyLoss
from projunn.tasks import TASKS
from projunn.training.config import TrainConfig
from projunn.training.learner import Learner

SEEDS = (0, 1, 2)
# 36/255, 72/255, 108/255 and 1 are the field's for small images, 1.58 is MNIST's; pixels are 0 to 1.
RADII = {"36/255": 36 / 255, "72/255": 72 / 255, "108/255": 108 / 255, "1": 1.0, "1.58": 1.58}
BEFORE: dict[str, Any] = {"margin": None, "augment": True, "lr": 1e-3, "unitary_lr": 4e-3, "rank": 1}
RECIPES: dict[str, dict[str, Any]] = {
    "0.2.0": BEFORE,
    "old loss": {"margin": None},
    "now": {},
}
# Of a file of images the loss asks for more: distances between larger images are larger.
DIGITS: dict[str, Any] = {"width": 8, "steps": 1200}
FILE: dict[str, Any] = {"width": 8, "steps": 600, "margin": 1.0}
MODELS: dict[str, Callable[..., nn.Module]] = {"ResNet9": ResNet9, "LipschitzConvNet": LipschitzConvNet}


def certified(config: TrainConfig) -> Row:
    """Train, and measure on the held-out images."""
    task = TASKS[config.task](config.task_options)
    learner = Learner("unitary", task, config)
    started = time.process_time()
    while not learner.finished:
        learner.take_step()
    seconds = time.process_time() - started
    model = learner.model.eval()
    batch = task.test_data()
    radii = [0.0, *(radius * task.stretch for radius in RADII.values())]
    clean, *shares = projunn.certified_accuracy(model, [batch], radii)
    row: Row = {"clean": round(clean, 4)}
    row |= {f"at {name}": round(share, 4) for name, share in zip(RADII, shares, strict=True)}
    return row | {"cpu_s": round(seconds, 1)}


def trainings(results: Results, quick: bool, data: Path | None) -> None:
    sets = {"digits": DIGITS} | ({data.stem: FILE | {"data": str(data)}} if data else {})
    for name, options in sets.items():
        rows = []
        for seed in SEEDS[:1] if quick else SEEDS:
            for recipe, changes in RECIPES.items():
                budget = {"steps": 10, "log_every": 10} if quick else {"log_every": options["steps"]}
                chosen = {"model": "lipschitz", "seed": seed, "device": "cpu", **options, **budget}
                config = replace(TrainConfig.for_task("images", **chosen), **changes)
                case: Row = {"images": name, "recipe": recipe, "seed": seed}
                case |= {"width": config.width, "steps": config.steps, "margin": config.margin}
                rows.append(case | {"rank": config.rank, "augment": config.augment} | certified(config))
                results.append("certified", rows[-1:])
        shown = ("recipe", "seed", "clean", *(f"at {name}" for name in RADII))
        show(f"certified accuracy on {name}", [{k: row[k] for k in shown} for row in rows])


def training_step(
    network: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, *, unitary: bool
) -> Callable[[], None]:
    """Forward, backward and step; ``unitary`` weights have an optimizer that keeps them so."""
    rule = projunn.optim.RMSprop if unitary else torch.optim.RMSprop
    optimizer = rule(network.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        loss(network(x), y).backward()
        optimizer.step()

    return step


def models(results: Results, quick: bool) -> None:
    batch, side, width = (4, 8, 4) if quick else (64, 32, 16)
    x, y = torch.randn(batch, 3, side, side), torch.randint(10, (batch,))
    for name, network in MODELS.items():
        loss = nn.CrossEntropyLoss() if network is ResNet9 else OffsetCrossEntropyLoss()
        unitary, plain = (network(3, 10, side, conv, width) for conv in ("unitary", "plain"))
        cases = {
            "unitary": training_step(unitary, loss, x, y, unitary=True),
            "plain": training_step(projunn.unconstrain(plain), loss, x, y, unitary=False),
        }
        case: Row = {"model": name, "batch": batch, "side": side, "width": width}
        rows = timing_rows(case, measure(cases, 3 if quick else 9, primed=False, seconds=90), "plain")
        results.report("certified_models", f"training step of {name}", rows)


def run(results: Results, quick: bool = False, data: Path | None = None) -> None:
    """Print and record both tables."""
    trainings(results, quick, data)
    models(results, quick)
