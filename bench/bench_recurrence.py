"""Forward and backward of the unitary RNN over a sequence, against a Python loop and ``nn.RNN``.

T = 200, 190 hidden units, batch 128, 10 inputs; the loop is the same network written as a loop of
``nn.Linear`` calls with the same nonlinearity.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.records import record, show, timing_rows
from bench.timing import measure
from projunn.nn import ModReLU, UnitaryRNN

STEPS, HIDDEN, BATCH, INPUTS = 200, 190, 128, 10


class Loop(nn.Module):
    """The network as one writes it by hand."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.enter = nn.Linear(INPUTS, HIDDEN)
        self.recur = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.activation = activation

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, states = x.new_zeros(x.shape[1], HIDDEN), []
        for step in x:
            h = self.activation(self.enter(step) + self.recur(h))
            states.append(h)
        return torch.stack(states), h


def training_step(model: nn.Module, x: Tensor) -> Callable[[], None]:
    def step() -> None:
        model.zero_grad()
        output, _ = model(x)
        (torch.view_as_real(output) if output.is_complex() else output).sum().backward()

    return step


def run(quick: bool = False) -> None:
    """Print and record the table."""
    x = torch.randn(STEPS, BATCH, INPUTS)
    loops = {"relu": nn.ReLU(), "tanh": nn.Tanh(), "modrelu": ModReLU(HIDDEN)}
    for name, activation in loops.items():
        cases = {
            "UnitaryRNN": training_step(UnitaryRNN(INPUTS, HIDDEN, nonlinearity=name), x),
            "loop of nn.Linear": training_step(Loop(activation), x),
        }
        if name != "modrelu":
            cases["nn.RNN"] = training_step(nn.RNN(INPUTS, HIDDEN, nonlinearity=name), x)
        else:
            model = UnitaryRNN(INPUTS, HIDDEN, nonlinearity=name, dtype=torch.complex64)
            cases["UnitaryRNN complex64"] = training_step(model, x)
        case: dict[str, Any] = {"nonlinearity": name, "T": STEPS, "hidden": HIDDEN, "batch": BATCH}
        rows = timing_rows(case, measure(cases, 3 if quick else 12), "loop of nn.Linear")
        show(f"forward and backward over T = {STEPS}, {name}", rows)
        record("recurrence", rows)
