"""One training: a method, a task, a learning rate and a seed, for a number of steps."""

import time
from pathlib import Path
from typing import Any

import torch

import projunn
from bench.field.cases import Case
from bench.field.contender import Contender

Row = dict[str, Any]


class Training:
    """A model and its optimizers, with the batches of a seed.

    The weights are drawn from the seed, the batches from the seed + 1, as in ``projunn train``.

    Raises:
        ImportError: the method's package is not installed.
    """

    def __init__(
        self, case: Case, contender: Contender, rate: float, seed: int, data: Path | None = None
    ) -> None:
        self.task = case.make(seed, data)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model, self.optimizers = contender.make(self.task, rate)
        self.generator = torch.Generator().manual_seed(seed + 1)

    def step(self) -> None:
        x, y = self.task.batch(self.generator)
        self.optimizers.zero_grad()
        self.task.loss(self.model(x), y).backward()
        self.optimizers.step()

    def score(self) -> list[float | None]:
        """Held-out loss, None if it is not finite, and accuracy."""
        self.model.eval()
        score = self.task.score(self.model, torch.device("cpu"))
        self.model.train()
        finite = score.loss == score.loss and abs(score.loss) < float("inf")
        return [float(f"{score.loss:.6g}") if finite else None, score.accuracy]

    def defect(self) -> float | None:
        """The largest unitarity defect of our weights, or of the matrix that another method holds."""
        weights = [weight for weight in projunn.unitary_parameters(self.model) if weight.numel()]
        if weights:
            return max(projunn.unitarity_defect(w).max().item() for w in weights)
        with torch.no_grad():
            held = [m() for m in self.model.modules() if type(m).__name__ in ("Held", "Mapped")]
        return max(projunn.unitarity_defect(w).item() for w in held) if held else None


def train(
    case: Case, contender: Contender, rate: float, seed: int, steps: int, data: Path | None = None
) -> Row:
    """Trains, and returns its row: the last scores, and the curve as [steps, seconds, loss, accuracy].

    Seconds are those of the CPU that this process has used for steps, drawing of batches included and
    evaluation not.  A training whose loss is no longer finite ends there.
    """
    training = Training(case, contender, rate, seed, data)
    curve = [[0, 0.0, *training.score()]]
    spent, done = 0.0, 0
    for point in range(1, min(case.points, steps) + 1):
        due = round(point * steps / min(case.points, steps))
        started = time.process_time()
        for _ in range(due - done):
            training.step()
        spent, done = spent + time.process_time() - started, due
        curve.append([done, round(spent, 3), *training.score()])
        if curve[-1][2] is None:
            break
    return {
        "steps": done,
        "seconds": round(spent, 2),
        "loss": curve[-1][2],
        "accuracy": curve[-1][3],
        "naive": round(training.task.naive, 5),
        "defect": training.defect(),
        "curve": curve,
    }
