"""Forward and backward of layers, beside the layer of ``torch.nn`` that each stands in for.

The input asks for its gradient, as that of any layer but a network's first does.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bench.bench_conv import forward_backward
from bench.bench_recurrence import library_rnn, training_step
from projunn.nn import BlockUnitaryLinear, UnitaryConv2d, UnitaryLinear, UnitaryRNN

FEATURES, ROWS = 1024, 64
LINEAR: dict[str, Callable[[], nn.Module]] = {
    "nn.Linear": lambda: nn.Linear(FEATURES, FEATURES),
    "UnitaryLinear": lambda: UnitaryLinear(FEATURES, FEATURES),
    "UnitaryLinear, sketched": lambda: UnitaryLinear(FEATURES, FEATURES, sketch_rank=1),
    "BlockUnitaryLinear, 2 factors": lambda: BlockUnitaryLinear(32, FEATURES // 32, num_factors=2),
}
STEPS, BATCH, INPUTS, HIDDEN = 200, 32, 10, 190
RECURRENT: dict[str, Callable[[UnitaryRNN], nn.Module]] = {
    "nn.RNN": library_rnn,
    "UnitaryRNN": lambda like: like,
    "UnitaryRNN, sketched": lambda like: UnitaryRNN(INPUTS, HIDDEN, nonlinearity="relu", sketch_rank=1),
}
IMAGES = ((8, 64, 32), (8, 128, 16), (8, 256, 8))  # batch, channels, height and width
CONVOLUTIONS: dict[str, Callable[[int, int], nn.Module]] = {
    "nn.Conv2d 3 x 3": lambda channels, side: nn.Conv2d(channels, channels, 3, padding=1),
    "UnitaryConv2d": lambda channels, side: UnitaryConv2d(channels, channels, side),
}


@pytest.mark.benchmark(group=f"linear layer of {FEATURES} features, {ROWS} rows")
@pytest.mark.parametrize("layer", LINEAR)
def test_linear(benchmark: Any, layer: str) -> None:
    benchmark(forward_backward(LINEAR[layer](), torch.randn(ROWS, FEATURES, requires_grad=True)))


@pytest.mark.benchmark(group=f"recurrent layer, T = {STEPS}, {HIDDEN} units, batch {BATCH}, relu")
@pytest.mark.parametrize("layer", RECURRENT)
def test_recurrent(benchmark: Any, layer: str) -> None:
    model = RECURRENT[layer](UnitaryRNN(INPUTS, HIDDEN, nonlinearity="relu"))
    x, cotangent = torch.randn(STEPS, BATCH, INPUTS), torch.randn(STEPS, BATCH, HIDDEN) / HIDDEN
    benchmark(training_step(model, x, cotangent))


@pytest.mark.parametrize("layer", CONVOLUTIONS)
@pytest.mark.parametrize(("batch", "channels", "side"), IMAGES)
def test_convolution(benchmark: Any, layer: str, batch: int, channels: int, side: int) -> None:
    benchmark.group = f"convolution of {channels} channels at {side} x {side}, batch {batch}"
    x = torch.randn(batch, channels, side, side, requires_grad=True)
    benchmark(forward_backward(CONVOLUTIONS[layer](channels, side), x))
