"""Forward and backward of the unitary RNN over a sequence, against a Python loop and ``nn.RNN``.

T = 200, 190 hidden units, batch 128, 10 inputs.  The loop is the same network, with the same
values, written as a loop of ``nn.Linear`` calls; ``nn.RNN``, which has relu and tanh, gets the same
values too.  ``ratio`` is the time as a multiple of the loop's.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.records import Results, timing_rows
from bench.timing import measure
from projunn.nn import ModReLU, UnitaryRNN

STEPS, HIDDEN, BATCH, INPUTS = 200, 190, 128, 10
CASES = (
    ("relu", torch.float32),
    ("tanh", torch.float32),
    ("modrelu", torch.float32),
    ("modrelu", torch.complex64),
)
LOOP = "loop of nn.Linear"


class Loop(nn.Module):
    """The network of a `UnitaryRNN` as one writes it by hand."""

    def __init__(self, like: UnitaryRNN) -> None:
        super().__init__()
        dtype = torch.complex64 if like.is_complex else torch.float32
        self.enter = nn.Linear(INPUTS, HIDDEN, dtype=dtype)
        self.recur = nn.Linear(HIDDEN, HIDDEN, bias=False, dtype=dtype)
        self.activation: nn.Module = {"relu": nn.ReLU(), "tanh": nn.Tanh()}.get(
            like.nonlinearity, ModReLU(HIDDEN)
        )
        _fill(self.enter.weight, like.weight_ih_l0)
        _fill(self.enter.bias, like.bias_ih_l0)
        _fill(self.recur.weight, like.weight_hh_l0)
        if isinstance(self.activation, ModReLU):
            _fill(self.activation.bias, like.modrelu_bias_l0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, states = self.recur.weight.new_zeros(x.shape[1], HIDDEN), []
        for step in x:
            h = self.activation(self.enter(step) + self.recur(h))
            states.append(h)
        return torch.stack(states), h


def library_rnn(like: UnitaryRNN) -> nn.RNN:
    """``nn.RNN`` with the values of a real `UnitaryRNN`."""
    rnn = nn.RNN(INPUTS, HIDDEN, nonlinearity=like.nonlinearity)
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0"):
        _fill(getattr(rnn, name), getattr(like, name))
    nn.init.zeros_(rnn.bias_hh_l0)
    return rnn


def _fill(parameter: nn.Parameter, values: Tensor) -> None:
    plain = values.detach().as_subclass(Tensor)
    plain = torch.view_as_complex(plain) if parameter.is_complex() else plain
    parameter.data.copy_(plain)


def training_step(model: nn.Module, x: Tensor, cotangent: Tensor) -> Callable[[], Tensor]:
    """Forward and backward from a given gradient of the output; returns the output."""

    def step() -> Tensor:
        model.zero_grad()
        output, _ = model(x)
        output.backward(cotangent)
        return output.detach()

    return step


def run(results: Results, quick: bool = False) -> None:
    """Print and record a table for every nonlinearity."""
    x = torch.randn(STEPS, BATCH, INPUTS)
    for nonlinearity, dtype in CASES:
        model = UnitaryRNN(INPUTS, HIDDEN, nonlinearity=nonlinearity, dtype=dtype)
        cotangent = torch.randn(STEPS, BATCH, HIDDEN, dtype=dtype) / HIDDEN
        cases = {
            "UnitaryRNN": training_step(model, x, cotangent),
            LOOP: training_step(Loop(model), x.to(dtype), cotangent),
        }
        if nonlinearity in ("relu", "tanh"):
            cases["nn.RNN"] = training_step(library_rnn(model), x, cotangent)
        outputs = [step() for step in cases.values()]
        for output in outputs[1:]:
            torch.testing.assert_close(output, outputs[0], rtol=1e-3, atol=1e-3)
        case = {
            "nonlinearity": nonlinearity,
            "dtype": str(dtype).removeprefix("torch."),
            "T": STEPS,
            "hidden": HIDDEN,
            "batch": BATCH,
        }
        title = f"forward and backward over T = {STEPS}, {nonlinearity}, {case['dtype']}"
        times = measure(cases, 3 if quick else 20)
        results.report("recurrence", title, timing_rows(case, times, LOOP))
