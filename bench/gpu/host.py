"""The time that an eager call takes to issue: what a user of ``optimizer.step()`` waits for."""

import functools
from typing import Any

import torch

from bench.gpu import convolution, linear, recurrence, update
from bench.gpu.case import Step
from bench.gpu.machine import Machine
from bench.gpu.timing import Timing

ONE, TWENTY, SMALL = (1024, 1024), (256, 256), (64, 64)
BANK = (544, 64, 64)
PEERS = ("torch", "nn")


def name(what: str) -> str:
    """The name of a row: ``SGD 1024, issue``."""
    return f"{what}, issue"


def _kind(what: str) -> str:
    if what.startswith(PEERS):
        return "host peers"
    return "host " + ("bank" if "x64" in what else "many" if " of " in what else what.split()[0])


def timings(on: Machine) -> list[Timing]:
    """Optimizers, ours beside PyTorch's; then whole training steps."""

    def ours(rule: str, shape: tuple[int, ...], dtype: str = "float32", **options: Any) -> Any:
        return functools.partial(update.stepper, on, rule, shape, dtype, **options)

    def plain(rule: str, shape: tuple[int, ...], **options: Any) -> Any:
        return functools.partial(update.plain_stepper, on, rule, shape, "float32", **options)

    many = on.size(20, 2)
    builds = {
        "torch.optim.SGD 1024": plain("SGD", ONE, foreach=True),
        "SGD 1024": ours("SGD", ONE),
        "torch.optim.SGD 20 of 256": plain("SGD", TWENTY, count=many, foreach=True),
        "SGD 1024 single pass": ours("SGD", ONE, factorization="single_pass"),
        "SGD 20 of 256": ours("SGD", TWENTY, count=many),
        "SGD 20 of 64": ours("SGD", SMALL, count=many),
        "torch.optim.AdamW fused 1024": plain("AdamW", ONE, fused=True),
        "AdamW 1024": ours("AdamW", ONE),
        "RMSprop 1024": ours("RMSprop", ONE),
        "SGD 544x64x64": ours("SGD", BANK),
        "SGD 544x64x64 complex": ours("SGD", BANK, "complex64"),
        "SGD k4 1024": ours("SGD", ONE, rank=4),
        "SGD k4 544x64x64": ours("SGD", BANK, rank=4),
        "nn.Linear + SGD step 1024, 512 rows": functools.partial(
            linear.step, on, linear.PEER, 1024, 512
        ),
        "UnitaryLinear sketched step 1024, 512 rows": functools.partial(
            linear.step, on, linear.SKETCHED, 1024, 512
        ),
        "UnitaryRNN step 190, T = 200": functools.partial(
            recurrence.step, on, recurrence.OURS, 190, "relu", 200
        ),
        "UnitaryConv2d 64 to 64 at 32": functools.partial(
            convolution.step, on, convolution.OURS, (64, 64, 32)
        ),
        "SGD 1024 compiled, reduce-overhead": functools.partial(_compiled, on),
    }
    return [
        Timing(name(what), _kind(what), build, "issue", {"what": what}, not what.startswith(PEERS))
        for what, build in builds.items()
    ]


def _compiled(on: Machine) -> Step:
    step = update.stepper(on, "SGD", ONE, "float32")
    if on.dry:
        return torch.compile(lambda: step(), backend=on.compiler)
    return torch.compile(lambda: step(), mode="reduce-overhead")
