"""Recurrent networks: the time loop against float64, training steps against cuDNN and a loop.

A training step is `bench.bench_recurrence.whole_step` at T = 1000, batch 128 and 10 inputs: forward, the
loss of the last state, backward, RMSprop at rank 1.  The peers, cuDNN's relu ``nn.RNN`` and the loop of
the published experiments (`bench.published`), have our values and our optimizer.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import projunn
from bench.bench_recurrence import whole_step
from bench.gpu.accuracy import share
from bench.gpu.case import Case, Step
from bench.gpu.machine import Machine
from bench.gpu.timing import Timing
from bench.published import PublishedRNN
from projunn.nn import UnitaryRNN
from projunn_kernels import recurrence

STEPS, BATCH, INPUTS = 1000, 128, 10
# The first two stand for the rest where the run is cut.
UNITS = (190, 512, 64, 128, 256, 1024)
OURS, CUDNN, PUBLISHED = "UnitaryRNN", "cuDNN nn.RNN", "published loop"
LONG = (33, 64, 190, 256, 512)  # units whose gradients are checked over T = 50 too
ROWS = 18  # of the batch in checks: kernels of one row a program where W fits
MANY_ROWS = 700  # more than such kernels take on most GPUs
ENDLESS = 10_000  # time steps of the check of norms


def checks(on: Machine, small: bool) -> list[Case]:
    """All states and gradients, by the error of float32 PyTorch."""
    sizes = (5, 33) if small or on.dry else (5, 33, 64, 190, 256, 512)
    found = []
    for n in sizes:
        for pairs in (False, True):
            for nonlinearity in ("tanh", "modrelu") if pairs else ("relu", "tanh", "modrelu"):
                for steps in (6, 50) if n in LONG and not small else (6,):
                    found.append(_case(on, n, pairs, nonlinearity, steps))
                if nonlinearity == "modrelu" and n > 5:
                    found.append(
                        _case(on, n, pairs, nonlinearity, 6 if small or on.dry else 50, resets=True)
                    )
    for n in (33,) if small or on.dry else (33, 128, 190):
        found += [_case(on, n, pairs, "modrelu", 6, MANY_ROWS) for pairs in (False, True)]
    if not small:
        found += [_norms_case(on, n, pairs) for n in (64, 190, 256, 512) for pairs in (False, True)]
    return found


def _case(
    on: Machine,
    n: int,
    pairs: bool,
    nonlinearity: str,
    steps: int,
    batch: int = ROWS,
    resets: bool = False,
) -> Case:
    end = " resets" if resets else ""
    kind = f"time loop {nonlinearity} {'complex' if pairs else 'real'}{end}"
    case = _check(on, n, pairs, nonlinearity, steps, batch, resets)
    return Case(check_name(n, pairs, nonlinearity, steps, batch) + end, kind, case)


def check_name(n: int, pairs: bool, nonlinearity: str, steps: int, batch: int = ROWS) -> str:
    """``time loop relu real 190``, over six steps unless it says T, of 18 rows unless it says batch."""
    name = f"time loop {nonlinearity} {'complex' if pairs else 'real'} {n}"
    name = name if steps == 6 else f"{name} T={steps}"
    return name if batch == ROWS else f"{name} batch={batch}"


def _norms_case(on: Machine, n: int, pairs: bool) -> Case:
    name = f"time loop norms {'complex' if pairs else 'real'} {n} T={ENDLESS}"
    return Case(name, "time loop norms", functools.partial(_norms, on, n, pairs))


def _norms(on: Machine, n: int, pairs: bool) -> float:
    """The change of a state's norm over T steps without nonlinearity, of the 1e-4 that is allowed."""
    n, steps = on.size(n, 6), on.size(ENDLESS, 20)
    dtype = torch.complex128 if pairs else torch.float64
    weight = torch.linalg.qr(torch.randn(n, n, dtype=dtype)).Q
    initial = torch.randn(ROWS, n, dtype=dtype)
    exact = initial.norm(dim=-1)
    there = [torch.view_as_real(t) if pairs else t for t in (initial, weight)]
    h, w = (t.to(on.device, torch.float32) for t in there)
    states, _ = recurrence(h.new_zeros(steps, *h.shape), h, w, None, "identity")
    norms = states.flatten(2).double().norm(dim=-1).cpu()
    return ((norms - exact) / exact).abs().max().item() / 1e-4


def _check(
    on: Machine, n: int, pairs: bool, nonlinearity: str, steps: int, batch: int, with_resets: bool
) -> Callable[[], float]:
    def call() -> float:
        pair = (2,) * pairs
        rows = on.size(batch, ROWS)
        all_steps = (steps, rows, n, *pair)
        shapes = (all_steps, (rows, n, *pair), (n, n, *pair), (n,), all_steps)
        x, h, w, b, g = (torch.randn(shape) for shape in shapes)
        w /= (n * (1 + pairs)) ** 0.5
        if pairs and nonlinearity == "tanh":
            # tanh has poles at i pi / 2: states stay away from them, where float32 is not enough
            x, h, w = 0.2 * x, 0.2 * h, 0.5 * w
        values = (x, h, w, 0.1 * b)
        resets = torch.rand(steps, rows) < 0.1 if with_resets else None

        def everything(dtype: torch.dtype, device: torch.device) -> list[Tensor]:
            there = [t.to(device, dtype).requires_grad_() for t in values]
            bias = there[3] if nonlinearity == "modrelu" else None
            cuts = None if resets is None else resets.to(device)
            states, _ = recurrence(*there[:3], bias, nonlinearity, resets=cuts)
            wanted = there if bias is not None else there[:3]
            return [states.detach(), *torch.autograd.grad(states, wanted, g.to(states))]

        exact = everything(torch.float64, torch.device("cpu"))
        ours = everything(torch.float32, on.device)
        with projunn.backend("torch"):
            plain = everything(torch.float32, on.device)
        return max(share(a, b, c) for a, b, c in zip(ours, plain, exact, strict=True))

    return call


def name(what: str, units: int, nonlinearity: str, precision: str, way: str) -> str:
    """The name of a row: ``UnitaryRNN 190 relu, high, graph``."""
    return f"{what} {units} {nonlinearity}, {precision}, {way}"


def timings(on: Machine) -> list[Timing]:
    """Every size with both precisions, cuDNN beside it; the published loop at two sizes."""
    found = []
    for units in UNITS:
        found += [
            _timing(on, what, units, "relu", precision, "graph")
            for precision in ("highest", "high")
            for what in (CUDNN, OURS)
        ]
        if units in UNITS[:2]:
            found.append(_timing(on, PUBLISHED, units, "relu", "high", "eager"))
        found += [
            _timing(on, OURS, units, "relu", "high", "eager"),
            _timing(on, OURS, units, "modrelu", "high", "graph"),
            _timing(on, OURS, units, "complex modrelu", "high", "graph"),
        ]
    return found


def _timing(on: Machine, what: str, units: int, nonlinearity: str, precision: str, way: str) -> Timing:
    build = functools.partial(step, on, what, units, nonlinearity)
    says = {"what": what, "T": STEPS, "batch": BATCH, "units": units, "nonlinearity": nonlinearity}
    options: dict[str, Any] = {
        "way": way,
        "precision": precision,
        "compile": what == OURS and way == "graph",
    }
    row = name(what, units, nonlinearity, precision, way)
    return Timing(row, f"{what} {nonlinearity}, {way}", build, says=says, seconds=0.4, **options)


def step(on: Machine, what: str, units: int, nonlinearity: str, steps: int = STEPS) -> Step:
    """A whole training step; the peers get the values of a `UnitaryRNN`."""
    units, steps, batch = on.size(units, 6), on.size(steps, 3), on.size(BATCH, 4)
    dtype = torch.complex64 if nonlinearity.startswith("complex ") else torch.float32
    nonlinearity = nonlinearity.removeprefix("complex ")
    x = torch.randn(steps, batch, INPUTS, device=on.device, dtype=dtype)
    ours = UnitaryRNN(INPUTS, units, nonlinearity=nonlinearity, bias=False, dtype=dtype)
    ours = ours.to(on.device)
    model: nn.Module = ours
    if what == PUBLISHED:
        model = PublishedRNN(INPUTS, units, nonlinearity).to(on.device)
        with torch.no_grad():
            model.recurrent_kernel.weight.copy_(ours.weight_hh_l0)
            model.input_kernel.weight.copy_(ours.weight_ih_l0)
        projunn.constrain(model.recurrent_kernel, "weight")
    elif what == CUDNN:
        model = nn.RNN(INPUTS, units, nonlinearity=nonlinearity, bias=False).to(on.device)
        with torch.no_grad():
            model.weight_hh_l0.copy_(ours.weight_hh_l0)
            model.weight_ih_l0.copy_(ours.weight_ih_l0)
        projunn.constrain(model, "weight_hh_l0")
    if dtype.is_complex:
        return whole_step(_Real(model), x, 2 * units, lr=1e-3, capturable=on.capturable)
    return whole_step(model, x, units, lr=1e-3, capturable=on.capturable)


class _Real(nn.Module):
    """A network whose last complex states are given as real numbers, twice as many."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        states, last = self.network(input)
        return states, torch.view_as_real(last).flatten(-2) if last.is_complex() else last
