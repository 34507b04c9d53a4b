"""One model in training: its optimizer, its stream of data, and what it has logged."""

import time
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn

import projunn
from projunn import diagnostics
from projunn.tasks import METRICS, LogPoint, Task
from projunn.training.config import OPTIMIZERS, TrainConfig
from projunn_kernels.keeping import sent

_HOPELESS = 100  # steps in a row without a finite loss, after which a model is given up
_FAR = 1e-3  # a unitarity defect that no training leaves behind
_LAST_FACTOR = 0.05  # of the rates under the exponential schedule
_COOLDOWN = 3  # 1 over the share of the budget, at its end, in which the rates go to 0


class Learner:
    """A model of a task in training: it takes steps and logs its measurements.

    Args:
        body: ``"unitary"`` or one of the models that the task compares.
        task: gives the model, the batches and the loss.
        config: the optimizer, the budget, the seed and the device.
    """

    def __init__(self, body: str, task: Task, config: TrainConfig) -> None:
        self.body, self.task, self.config = body, task, config
        self.device = config.torch_device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model: nn.Module = task.build(body).to(self.device)
        self.optimizer = _optimizer(self.model, config)
        # Every learner of a run sees the same stream of batches.
        self.generator = torch.Generator().manual_seed(config.seed + 1)
        self.step = 0
        self.seconds = 0.0
        self.points: list[LogPoint] = []
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self._loss_count = 0
        self._not_finite = torch.zeros((), dtype=torch.int64, device=self.device)  # steps in a row
        self.diverged = False

    @property
    def finished(self) -> bool:
        """True if the budget is spent, or the model has `diverged`."""
        return self.diverged or self.progress >= 1

    @property
    def progress(self) -> float:
        """The share of the budget that is spent; the larger one if there are two budgets."""
        steps, seconds = self.config.steps, self.config.seconds
        return max(
            0.0 if steps is None else self.step / steps,
            0.0 if seconds is None else self.seconds / seconds,
        )

    def take_step(self) -> None:
        """Train on one batch, and log if a log point is reached."""
        started = time.perf_counter()
        x, y = (sent(t, self.device) for t in self.task.batch(self.generator))
        self.optimizer.zero_grad()
        loss = self.task.loss(self.model(x), y)
        loss.backward()
        if self.config.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        for group in self.optimizer.param_groups:  # the unitary rate moves in proportion
            group["lr"] = self.config.lr * rate_factor(self.config.schedule, self.progress)
        self.optimizer.step()
        self._loss_sum += loss.detach()
        self._loss_count += 1
        self._not_finite = torch.where(loss.detach().isfinite(), 0, self._not_finite + 1)
        self.step += 1
        due = self._is_due(self.step)
        if due and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if due or self.step % _HOPELESS == 0:
            self.diverged = self._not_finite.item() >= _HOPELESS
        self.seconds += time.perf_counter() - started
        if due or self.finished:
            self.log()

    def log(self) -> None:
        """Measure the model and add a point, unless the last point is of this very step.

        A point between two regular ones (a run was stopped, its budget was spent) leaves no trace
        in what follows: the mean loss goes on, and resuming drops the point.
        """
        if self.points and self.points[-1].step == self.step:
            return
        score = self.task.score(self.model, self.device)
        weights = [w for w in projunn.unitary_parameters(self.model) if w.numel()]
        defect = energy = skipped = None
        if weights:
            defect = max(projunn.unitarity_defect(w).max().item() for w in weights)
            energy = _energy(weights, self.config.rank)
            skipped = self.optimizer.skipped_steps()  # type: ignore[attr-defined]
        mean = self._loss_sum.item() / max(1, self._loss_count)
        if self._is_due(self.step):
            self._loss_sum.zero_()
            self._loss_count = 0
        self.points.append(
            LogPoint(
                self.body,
                self.step,
                round(self.seconds, 3),
                mean,
                score.loss,
                score.accuracy,
                defect,
                energy,
                skipped,
                dict.fromkeys(METRICS) | self.task.measure(self.model, self.device),
            )
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on, of types that ``weights_only`` loading takes."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "seconds": self.seconds,
            "loss_sum": self._loss_sum.item(),
            "loss_count": self._loss_count,
            "not_finite": int(self._not_finite.item()),
            "diverged": self.diverged,
            "points": [point.flat() for point in self.points],
        }

    def load_state_dict(self, state: dict[str, Any], log_every: int | None = None) -> None:
        """Go back to a state that `state_dict` returned.

        Points between two regular ones are dropped, but for that of the last step of the budget.  They
        were ``log_every`` steps apart; default: as those to come.

        Raises:
            ValueError: a weight is not finite (unless the model had diverged), or is to be unitary and
                is far from it.
        """
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.step, self.seconds = state["step"], state["seconds"]
        self._loss_sum.fill_(state["loss_sum"])
        self._loss_count = state["loss_count"]
        self._not_finite.fill_(state.get("not_finite", 0))
        self.diverged = state.get("diverged", False)
        points = [LogPoint.from_flat(point) for point in state["points"]]
        last = self.step if self.finished else None
        apart = log_every or self.config.log_every
        self.points = [point for point in points if point.step % apart == 0 or point.step == last]
        if not self.diverged:
            self._check_weights()

    def _check_weights(self) -> None:
        unitary = {id(weight) for weight in projunn.unitary_parameters(self.model)}
        for name, weight in self.model.named_parameters():
            if not weight.isfinite().all():
                raise ValueError(f"{self.body}: {name} has entries that are not finite")
            if id(weight) in unitary and weight.numel():
                defect = projunn.unitarity_defect(weight).max().item()
                if defect > _FAR:
                    raise ValueError(f"{self.body}: {name} is not unitary, its defect is {defect:.2g}")

    def _is_due(self, step: int) -> bool:
        return step % self.config.log_every == 0


def rate_factor(schedule: str, progress: float) -> float:
    """The factor of the learning rates when the share ``progress`` of the budget is spent."""
    done = min(1.0, progress)
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return (1 + cos(pi * done)) / 2
    if schedule == "exponential":
        return float(_LAST_FACTOR**done)
    if schedule == "step":
        return 0.1 ** int(done * 3)
    return min(1.0, _COOLDOWN * max(0.0, 1 - progress))


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    rule = OPTIMIZERS[config.optimizer]
    momentum = {"momentum": config.momentum} if config.takes_momentum else {}
    unitary = {
        "rank": config.rank,
        "retraction": config.retraction,
        "factorization": config.factorization,
        "unitary_lr": config.unitary_lr,
    }
    optimizer: torch.optim.Optimizer = rule(model.parameters(), lr=config.lr, **momentum, **unitary)
    return optimizer


def _energy(weights: list[projunn.UnitaryParameter], rank: int) -> float | None:
    shares: list[Tensor] = []
    for weight in weights:
        if weight.grad is None or isinstance(weight.grad, projunn.FactoredTensor):
            continue  # its energy is not known: the sketch left some out
        if weight.grad.isfinite().all():
            gradient = diagnostics.captured_energy(projunn.view_like(weight, weight.grad), rank)
            shares.append(gradient.mean())
    return torch.stack(shares).mean().item() if shares else None
