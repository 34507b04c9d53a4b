"""Unitary convolutions against ``nn.Conv2d`` and the Cayley convolution; the update of their matrices.

layers     forward and backward at a batch of 32, against a 3 x 3 ``nn.Conv2d`` of the same channels
bank       factorize(G, 1, "lsi") and retract_ of all matrices of a layer, complex; and retract_ alone
channels   a whole training step (forward, backward, SGD) over the number of channels, at 4 x 4 and
           8 images, against the Cayley convolution, whose step inverts a matrix a frequency
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.records import Results, Row, timing_rows
from bench.timing import measure
from projunn import factorize, init, retract_
from projunn.models import CayleyConv2d
from projunn.nn import UnitaryConv2d
from projunn.optim import SGD

LAYERS = ((32, 64, 32), (32, 128, 16), (32, 256, 8))
BANKS = ((544, 64), (144, 128), (40, 256))
CHANNELS = (16, 32, 64, 128, 256, 512)
BATCH, SIDE = 8, 4


def forward_backward(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    cotangent = torch.randn_like(layer(x))

    def step() -> None:
        layer.zero_grad()
        x.grad = None
        layer(x).backward(cotangent)

    return step


def training_step(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    whole, rule = forward_backward(layer, x), SGD(layer.parameters(), lr=1e-3, polish_every=0)

    def step() -> None:
        whole()
        rule.step()

    return step


def bank_update(matrices: int, n: int, retraction: str, given: bool) -> Callable[[], None]:
    """The update, with its factors ``given`` or taken from the gradient."""
    weight = init.haar_(torch.empty(matrices, n, n, dtype=torch.complex64))
    gradient = torch.randn(weight.shape, dtype=weight.dtype) / n

    factors = factorize(gradient, 1, "lsi")

    def step() -> None:
        left, right = factors if given else factorize(gradient, 1, "lsi")
        retract_(weight, left * -1e-3, right, retraction)

    return step


def run(results: Results, quick: bool = False) -> None:
    """Print and record the three tables, draw the last."""
    rounds = 3 if quick else 15
    for batch, channels, side in LAYERS:
        x = torch.randn(batch, channels, side, side, requires_grad=True)
        cases = {
            "UnitaryConv2d": forward_backward(UnitaryConv2d(channels, channels, side), x),
            "nn.Conv2d 3x3": forward_backward(nn.Conv2d(channels, channels, 3, padding=1), x),
        }
        case: Row = {"batch": batch, "channels": channels, "side": side}
        rows = timing_rows(case, measure(cases, rounds), "nn.Conv2d 3x3")
        results.report("conv_layer", f"forward and backward of {tuple(x.shape)}", rows)
    for matrices, n in BANKS:
        cases = {
            kind + (", factors given" if given else ""): bank_update(matrices, n, kind, given)
            for given in (False, True)
            for kind in ("exp", "polar", "cayley")
        }
        rows = timing_rows({"matrices": matrices, "n": n}, measure(cases, rounds), "exp")
        results.report("conv_bank", f"update of ({matrices}, {n}, {n}) complex, rank 1", rows)
    rows = []
    for channels in CHANNELS[:3] if quick else CHANNELS:
        x = torch.randn(BATCH, channels, SIDE, SIDE, requires_grad=True)
        ours, theirs = UnitaryConv2d(channels, channels, SIDE), CayleyConv2d(channels, channels, SIDE)
        cases = {"projUNN": training_step(ours, x), "Cayley": training_step(theirs, x)}
        times = measure(cases, rounds, seconds=20)
        rows += timing_rows({"channels": channels, "side": SIDE, "batch": BATCH}, times, "projUNN")
    title = f"training step of one layer over the channels, {SIDE} x {SIDE} pixels, batch {BATCH}"
    results.report("conv_channels", title, rows)
    draw(results, rows)


def draw(results: Results, rows: list[Row]) -> None:
    """``conv_channels.png``: time of a step over the channels."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(5.5, 4), layout="constrained")
        axes = figure.subplots()
        for what, color in (("projUNN", "#0b6e99"), ("Cayley", "#448361")):
            own = [row for row in rows if row["what"] == what]
            at = [row["channels"] for row in own]
            axes.plot(at, [row["median_ms"] for row in own], "o-", color=color, label=what)
        axes.set(xscale="log", yscale="log", xlabel="channels C", ylabel="ms a training step")
        axes.set_xticks([row["channels"] for row in rows[::2]], [str(r["channels"]) for r in rows[::2]])
        axes.minorticks_off()
        axes.legend(frameon=False)
        figure.savefig(results.folder / "conv_channels.png", dpi=130)
