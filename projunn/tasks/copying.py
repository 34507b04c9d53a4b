"""The copying problem: repeat ten symbols after a long delay."""

from math import log
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from projunn.tasks.options import Option, TaskOptions, at_least_one
from projunn.tasks.sequences import RECURRENT, GeneratedTask
from projunn.tasks.task import Batch

_SYMBOLS = 8
_COUNT = 10
_BLANK, _GO = _SYMBOLS, _SYMBOLS + 1


class Copying(GeneratedTask):
    """The copying problem: repeat ten symbols after a delay of T steps.

    The input is ten symbols of an alphabet of eight, T - 1 blanks, a "go" sign, and ten blanks.  The
    target is T + 10 blanks, and then the ten symbols.  Knowing when to answer but not what scores 10 ln
    8 / (T + 20), the cross-entropy averaged over all T + 20 steps.  The accuracy is that of the ten
    symbols.  Source: Hochreiter, Schmidhuber, Neural Computation 9, 1997; in this form Arjovsky, Shah,
    Bengio, ICML 2016, section 4.1.
    """

    name = "copying"
    summary = "repeat ten symbols after a delay (classification at every step, --length)"
    loss_name = "cross-entropy (nats)"
    test_size = 250
    declares = (Option("length", int, 200, "delay of the answer", limit=at_least_one), *RECURRENT)
    defaults: ClassVar[dict[str, Any]] = {"batch_size": 32, "unitary_lr": 2e-4, "steps": 3000}
    every_step = True

    def __init__(self, options: TaskOptions) -> None:
        super().__init__(options)
        self.input_size, self.output_size = _SYMBOLS + 2, _SYMBOLS + 1
        self.naive = _COUNT * log(_SYMBOLS) / (self.options.length + 2 * _COUNT)

    def draw_sequences(self, count: int, generator: torch.Generator) -> Batch:
        delay = self.options.length
        symbols = torch.randint(0, _SYMBOLS, (_COUNT, count), generator=generator)
        shown = torch.full((delay + 2 * _COUNT, count), _BLANK)
        shown[:_COUNT] = symbols
        shown[delay + _COUNT - 1] = _GO
        target = torch.full_like(shown, _BLANK)
        target[-_COUNT:] = symbols
        return functional.one_hot(shown, _SYMBOLS + 2).float(), target

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(output.flatten(0, 1), target.flatten())

    def accuracy(self, output: Tensor, target: Tensor) -> Tensor:
        return (output[-_COUNT:].argmax(-1) == target[-_COUNT:]).float().mean()
