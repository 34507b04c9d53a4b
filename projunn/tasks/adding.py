"""The adding problem: the sum of the two marked numbers of a long sequence."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from projunn.tasks.options import Option, TaskOptions, at_least_one
from projunn.tasks.sequences import RECURRENT, GeneratedTask
from projunn.tasks.task import Batch


class Adding(GeneratedTask):
    """The adding problem: of T numbers, uniform in [0, 1), two are marked; the target is their sum.

    One mark lies in each half of the sequence.  A guess of the mean, 1, scores the variance of the sum
    of two uniform numbers, 1/6.  Source: Hochreiter, Schmidhuber, Neural Computation 9, 1997; in this
    form Arjovsky, Shah, Bengio, ICML 2016, section 4.2.
    """

    name = "adding"
    summary = "sum the two marked numbers of a sequence (regression, --length)"
    loss_name = "mean squared error"
    test_size = 500
    declares = (Option("length", int, 200, "length of the sequence", limit=at_least_one), *RECURRENT)
    defaults: ClassVar[dict[str, Any]] = {
        "hidden": 170,
        "init": "cayley",
        "nonlinearity": "relu",
        "schedule": "cooldown",
        "steps": 12000,
    }

    def __init__(self, options: TaskOptions) -> None:
        super().__init__(options)
        self.input_size, self.output_size, self.naive = 2, 1, 1 / 6

    @classmethod
    def check(cls, options: TaskOptions) -> None:
        if options.length < 2:
            raise ValueError(f"length: got {options.length}, wanted at least 2")

    def draw_sequences(self, count: int, generator: torch.Generator) -> Batch:
        length, half = self.options.length, self.options.length // 2
        numbers = torch.rand(length, count, generator=generator)
        first = torch.randint(0, half, (1, count), generator=generator)
        second = torch.randint(half, length, (1, count), generator=generator)
        places = torch.cat([first, second])
        marks = torch.zeros(length, count).scatter_(0, places, 1.0)
        return torch.stack([numbers, marks], dim=-1), numbers.gather(0, places).sum(0)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return functional.mse_loss(output.squeeze(-1), target)
