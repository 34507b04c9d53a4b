"""Tasks on sequences, learned by a recurrent network with a linear readout."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from projunn import init
from projunn.nn import UnitaryRNN
from projunn.tasks.measurements import GREY, ORANGE, PURPLE, Score
from projunn.tasks.options import SKETCH_RANK, Option, at_least_one
from projunn.tasks.task import Batch, Task
from projunn_kernels import NONLINEARITIES

_TEST_SEED = 20220310  # of the held-out data; the user chooses the seeds of training
_TEST_CHUNK = 250
_PEERS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
_INITS: dict[str, Callable[[Any], Tensor]] = {
    "haar": init.haar_,
    "identity": init.identity_,
    "henaff": init.henaff_,
    "cayley": init.cayley_,
}

RECURRENT: tuple[Option, ...] = (
    Option("hidden", int, 128, "hidden units", group="model", limit=at_least_one),
    Option(
        "nonlinearity",
        str,
        "modrelu",
        "activation of the unitary RNN",
        group="model",
        choices=NONLINEARITIES,
    ),
    Option("init", str, "henaff", "initial recurrent weight", group="model", choices=tuple(_INITS)),
    SKETCH_RANK,
)


class SequenceTask(Task):
    """Base of the tasks on sequences (T, batch, input_size).

    Class attributes:
        every_step: True if the model answers at every time step, False if only at the last.

    Attributes:
        input_size, output_size: the features of one time step and of one answer.
    """

    declares: ClassVar[tuple[Option, ...]] = RECURRENT
    compared: ClassVar[dict[str, str]] = {"lstm": ORANGE, "gru": PURPLE, "rnn": GREY}
    every_step: ClassVar[bool] = False
    input_size: int
    output_size: int

    @property
    def title(self) -> str:
        return f"{self.name}: {self.options.hidden} hidden units"

    def build(self, body: str) -> nn.Module:
        hidden = self.options.hidden
        recurrent: nn.Module
        if body == "unitary":
            recurrent = UnitaryRNN(
                self.input_size,
                hidden,
                nonlinearity=self.options.nonlinearity,
                dtype=self.options.dtype,
                sketch_rank=self.options.sketch_rank,
            )
            _INITS[self.options.init](recurrent.weight_hh_l0)
            features = 2 * hidden if self.options.complex else hidden
        else:
            recurrent, features = _PEERS[body](self.input_size, hidden), hidden
        return SequenceModel(recurrent, features, self.output_size, self.every_step)

    def test_data(self) -> Batch:
        """Held-out inputs and targets, the same in every run."""
        raise NotImplementedError

    @torch.no_grad()
    def score(self, model: nn.Module, device: torch.device) -> Score:
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
    """Base of the tasks that draw as many random sequences as are needed, of length ``--length``.

    Class attributes:
        test_size: the number of held-out sequences.
    """

    test_size: ClassVar[int]

    @property
    def title(self) -> str:
        length, hidden = self.options.length, self.options.hidden
        return f"{self.name}, length {length}: {hidden} hidden units"

    def draw_sequences(self, count: int, generator: torch.Generator) -> Batch:
        """Draws ``count`` sequences and their targets."""
        raise NotImplementedError

    def batch(self, generator: torch.Generator) -> Batch:
        return self.draw_sequences(self.options.batch_size, generator)

    def test_data(self) -> Batch:
        return self._held_out

    @cached_property
    def _held_out(self) -> Batch:
        return self.draw_sequences(self.test_size, torch.Generator().manual_seed(_TEST_SEED))


class SequenceModel(nn.Module):
    """A recurrent layer, called like ``nn.RNN``, and a linear readout of its last or of every state.

    Complex states are read out as their real and imaginary parts.

    Args:
        body: the recurrent layer.
        features: the real numbers in one of its states.
        outputs: the numbers in an answer.
        every_step: True for an answer at every time step, False for one at the last.
    """

    def __init__(self, body: nn.Module, features: int, outputs: int, every_step: bool) -> None:
        super().__init__()
        self.body = body
        self.readout = nn.Linear(features, outputs)
        self.every_step = every_step

    def forward(self, x: Tensor) -> Tensor:
        states, last = self.body(x)
        if not self.every_step:
            h_n = last[0] if isinstance(last, tuple) else last  # an LSTM returns its cells too
            states = h_n[-1]
        if states.is_complex():
            states = rearrange(torch.view_as_real(states), "... unit part -> ... (unit part)")
        return self.readout(states)
