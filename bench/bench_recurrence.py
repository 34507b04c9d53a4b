"""The unitary RNN over a sequence, against a Python loop, ``nn.RNN`` and the published loop.

Three tables: forward and backward; a whole training step (forward, loss, backward, optimizer) against
the published loop, both with the same optimizer and a loss of the last state; the training step over T.

T = 200, 190 hidden units, batch 128, 10 inputs.  The loop is the same network, with the same
values, written as a loop of ``nn.Linear`` calls; ``nn.RNN``, which has relu and tanh, gets the same
values too.  ``ratio`` is the time as a multiple of the loop's.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

import projunn
from bench.published import PublishedRNN
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
PUBLISHED = "published loop"
CLASSES = 10
LENGTHS = (50, 100, 200, 400, 800, 1600)


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


def whole_step(
    model: nn.Module, x: Tensor, hidden: int = HIDDEN, lr: float = 1e-4, capturable: bool = False
) -> Callable[[], Tensor]:
    """Cross-entropy of a linear readout of the last state, and a rank-1 RMSprop step; the loss."""
    head = nn.Linear(hidden, CLASSES).to(x.device)
    y = torch.randint(CLASSES, (x.shape[1],), device=x.device)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = projunn.optim.RMSprop(parameters, lr=lr, capturable=capturable)

    def step() -> Tensor:
        optimizer.zero_grad()
        _, last = model(x)
        loss = nn.functional.cross_entropy(head(last.reshape(len(y), hidden)), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def published_like(ours: UnitaryRNN) -> PublishedRNN:
    """The published network with the values of a real `UnitaryRNN` without biases."""
    model = PublishedRNN(INPUTS, HIDDEN, ours.nonlinearity)
    _fill(model.recurrent_kernel.weight, ours.weight_hh_l0)
    _fill(model.input_kernel.weight, ours.weight_ih_l0)
    if ours.nonlinearity == "modrelu":
        _fill(model.nonlinearity.b, ours.modrelu_bias_l0)
    projunn.constrain(model.recurrent_kernel, "weight")
    return model


def against_published(results: Results, rounds: int) -> None:
    x = torch.randn(STEPS, BATCH, INPUTS)
    for nonlinearity in ("relu", "modrelu"):
        ours = UnitaryRNN(INPUTS, HIDDEN, nonlinearity=nonlinearity, bias=False)
        theirs = published_like(ours)
        # The published 1e-6 and rounding move a modReLU across its jump now and then.
        assert (ours(x)[0] - theirs(x)[0]).abs().mean() < 1e-3
        cases: dict[str, nn.Module] = {"UnitaryRNN": ours, PUBLISHED: theirs}
        for columns in (1, 4):
            sketched = UnitaryRNN(
                INPUTS, HIDDEN, nonlinearity=nonlinearity, bias=False, sketch_rank=columns
            )
            sketched.load_state_dict(ours.state_dict())
            cases[f"UnitaryRNN, sketch_rank={columns}"] = sketched
        times = measure({name: whole_step(model, x) for name, model in cases.items()}, rounds)
        case = {"table": "training step", "nonlinearity": nonlinearity, "dtype": "float32"}
        case |= {"T": STEPS, "hidden": HIDDEN, "batch": BATCH}
        rows = timing_rows(case, times, PUBLISHED)
        results.report("recurrence", f"training step over T = {STEPS}, {nonlinearity}", rows)


def over_time(results: Results, rounds: int) -> None:
    """``slope``: log of the time over log of T, between neighbouring lengths."""
    steps = {
        f"T = {length}": whole_step(
            UnitaryRNN(INPUTS, HIDDEN, nonlinearity="relu", bias=False),
            torch.randn(length, BATCH, INPUTS),
        )
        for length in LENGTHS
    }
    times = measure(steps, rounds, primed=False)
    case = {"table": "over T", "nonlinearity": "relu", "dtype": "float32"}
    case |= {"hidden": HIDDEN, "batch": BATCH}
    rows = timing_rows(case, times, f"T = {LENGTHS[0]}")
    for i, (row, length) in enumerate(zip(rows, LENGTHS, strict=True)):
        before = rows[max(0, i - 1)]["median_ms"]
        row |= {"T": length, "slope": round(math.log2(row["median_ms"] / before), 3) if i else None}
    results.report("recurrence", "training step over T, relu", rows)


def run(results: Results, quick: bool = False) -> None:
    """Print and record the tables."""
    against_published(results, 3 if quick else 15)
    over_time(results, 3 if quick else 7)
    forward_and_backward(results, quick)


def forward_and_backward(results: Results, quick: bool) -> None:
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
