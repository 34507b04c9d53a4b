"""What every task offers to the training loop.

A task draws batches from a generator it is given, so that a run can be repeated and resumed: the
same generator state gives the same batch.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
_TEST_SEED = 20220310  # of the held-out data; the training seeds are the user's
_TEST_CHUNK = 250


@dataclass(frozen=True)
class TaskOptions:
    """The options of ``projunn train`` that say which data to make."""

    length: int = 200
    size: int = 128
    batch_size: int = 50
    complex: bool = False
    permuted: bool = False
    augment: bool = False
    dataset: str = "digits"
    seed: int = 0


@dataclass(frozen=True)
class Score:
    """Loss on held-out data, and the share of right answers where the task has answers."""

    loss: float
    accuracy: float | None = None


class SequenceTask:
    """A task on sequences (T, batch, input_size).

    Class attributes: ``summary`` (one line for ``--help``), ``loss_name``, ``defaults`` (options of
    ``projunn train`` other than its general ones), ``every_step`` (the model answers at every time
    step, not only at the last).  Instances have ``input_size``, ``output_size``, and ``naive``, the
    loss of the best answer that ignores the input.
    """

    summary: ClassVar[str]
    loss_name: ClassVar[str]
    defaults: ClassVar[dict[str, Any]]
    every_step: ClassVar[bool] = False
    input_size: int
    output_size: int
    naive: float

    def __init__(self, options: TaskOptions) -> None:
        self.options = options

    def batch(self, generator: torch.Generator) -> Batch:
        """Inputs (T, batch, input_size) and targets of one training step."""
        raise NotImplementedError

    def test_data(self) -> Batch:
        """Held-out data, the same in every run."""
        raise NotImplementedError

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean loss of a batch."""
        raise NotImplementedError

    def accuracy(self, output: Tensor, target: Tensor) -> Tensor | None:
        """Share of right answers, or None where the targets are numbers."""
        return None

    @torch.no_grad()
    def score(self, model: nn.Module, device: torch.device) -> Score:
        """The model on the held-out data."""
        inputs, targets = self.test_data()
        count, losses, rights = inputs.shape[1], 0.0, 0.0
        axis = 1 if targets.ndim > 1 else 0
        for x, y in zip(inputs.split(_TEST_CHUNK, 1), targets.split(_TEST_CHUNK, axis), strict=True):
            x, y = x.to(device), y.to(device)
            output = model(x)
            share = x.shape[1] / count
            losses += share * self.loss(output, y).item()
            right = self.accuracy(output, y)
            rights += 0.0 if right is None else share * right.item()
        return Score(losses, None if right is None else rights)


class GeneratedTask(SequenceTask):
    """A task whose data are made up as they are needed: subclasses `draw` them."""

    test_size: ClassVar[int]

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """``count`` sequences and their targets."""
        raise NotImplementedError

    def batch(self, generator: torch.Generator) -> Batch:
        return self.draw(self.options.batch_size, generator)

    def test_data(self) -> Batch:
        return self._held_out

    @cached_property
    def _held_out(self) -> Batch:
        return self.draw(self.test_size, torch.Generator().manual_seed(_TEST_SEED))
