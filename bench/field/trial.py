"""One training: a method, a task, a learning rate and a seed, until a budget of CPU time is spent."""

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import projunn
from bench.field.cases import Case
from bench.field.contender import Contender, Optimizers
from projunn.tasks import Batch, Task

Row = dict[str, Any]


def train(
    case: Case, contender: Contender, rate: float, seed: int, seconds: float, data: Path | None = None
) -> Row:
    """Trains, and returns its row: the last scores, and the curve as [steps, seconds, loss, accuracy].

    Seconds are those of the CPU that this process has used for steps, drawing of batches included and
    evaluation not, because wall-clock time on a shared machine is that of its other users too.  The
    weights are drawn from the seed, the batches from the seed + 1, as in ``projunn train``.

    Raises:
        ImportError: the method's package is not installed.
    """
    task = case.make(seed, data)
    _warm_up(task, contender, rate, seed)
    model, optimizers = _made(task, contender, rate, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    curve = [[0, 0.0, *_score(task, model)]]
    spent, steps, due, finite = 0.0, 0, seconds / case.points, True
    while spent < seconds and finite:
        started = time.process_time()
        _step(task, model, optimizers, task.batch(generator))
        spent += time.process_time() - started
        steps += 1
        if spent >= min(due, seconds):
            curve.append([steps, round(spent, 3), *_score(task, model)])
            finite = curve[-1][2] is not None
            due += seconds / case.points * max(1, (spent - due) // (seconds / case.points) + 1)
    return {
        "steps": steps,
        "seconds": round(spent, 2),
        "loss": curve[-1][2],
        "accuracy": curve[-1][3],
        "naive": round(task.naive, 5),
        "defect": _defect(model),
        "curve": curve,
    }


def _made(task: Task, contender: Contender, rate: float, seed: int) -> tuple[nn.Module, Optimizers]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return contender.make(task, rate)


def _warm_up(task: Task, contender: Contender, rate: float, seed: int) -> None:
    """Two steps of another copy, so that what is done once in a process is not counted."""
    model, optimizers = _made(task, contender, rate, seed)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2):
        _step(task, model, optimizers, task.batch(generator))


def _step(task: Task, model: nn.Module, optimizers: Optimizers, batch: Batch) -> None:
    x, y = batch
    optimizers.zero_grad()
    task.loss(model(x), y).backward()
    optimizers.step()


def _score(task: Task, model: nn.Module) -> list[float | None]:
    model.eval()
    score = task.score(model, torch.device("cpu"))
    model.train()
    finite = score.loss == score.loss and abs(score.loss) < float("inf")
    return [float(f"{score.loss:.6g}") if finite else None, score.accuracy]


def _defect(model: nn.Module) -> float | None:
    """The largest unitarity defect of our weights, or of the matrix that a method of others holds."""
    weights = [weight for weight in projunn.unitary_parameters(model) if weight.numel()]
    if weights:
        return max(projunn.unitarity_defect(w).max().item() for w in weights)
    with torch.no_grad():
        held = [m() for m in model.modules() if type(m).__name__ in ("Held", "Mapped")]
    return max(projunn.unitarity_defect(w).item() for w in held) if held else None
