"""Small models of every kind of layer."""

import torch
from torch import nn

import projunn
from projunn import UnitaryParameter
from projunn import nn as unn

SIZE, BATCH, TIME = 4, 3, 2  # of the inputs, (BATCH, TIME, SIZE)


class Chosen(nn.Module):
    """Some matrices of a bank, whose gradient is sparse."""

    def __init__(self, dtype):
        super().__init__()
        matrices = projunn.init.haar_(torch.empty(4, SIZE, SIZE, dtype=dtype))
        self.weight = UnitaryParameter(matrices)

    def forward(self, x):
        first, second = unn.select_blocks(self.weight, torch.tensor([2, 0]))
        return x @ first @ second


class Attention(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


class OverTime(nn.Module):
    """A convolution along the time axis."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.mT).mT


# Makes a layer of a dtype, for inputs and outputs of `SIZE` features, with sketched gradients or not.
LAYERS = {
    "linear": lambda dtype, sketch: unn.UnitaryLinear(SIZE, SIZE, dtype=dtype, sketch_rank=sketch),
    "isometry": lambda dtype, sketch: nn.Sequential(
        unn.UnitaryLinear(SIZE, 6, dtype=dtype, sketch_rank=sketch),
        unn.UnitaryLinear(6, SIZE, dtype=dtype, sketch_rank=sketch),
    ),
    "block": lambda dtype, sketch: unn.BlockUnitaryLinear(2, 2, dtype=dtype, sketch_rank=sketch),
    "rnn": lambda dtype, sketch: unn.UnitaryRNN(
        SIZE, SIZE, batch_first=True, dtype=dtype, sketch_rank=sketch
    ),
    "conv": lambda dtype, sketch: OverTime(
        unn.UnitaryConv1d(SIZE, SIZE, TIME, dtype=dtype, sketch_rank=sketch)
    ),
    "bank": lambda dtype, _: Chosen(dtype),
    "constrained": lambda dtype, _: projunn.constrain(nn.Linear(SIZE, SIZE, dtype=dtype)),
    "blocks": lambda dtype, _: projunn.constrain(nn.Linear(SIZE, SIZE, dtype=dtype), blocks=2),
    "filter": lambda dtype, _: OverTime(
        projunn.constrain(nn.Conv1d(SIZE, SIZE, 1, groups=2, dtype=dtype))
    ),
    "plain": lambda dtype, _: nn.Linear(SIZE, SIZE, dtype=dtype),
    "modrelu": lambda dtype, _: unn.ModReLU(SIZE).to(dtype.to_real()),
}
REAL = {
    "lstm": lambda dtype, _: projunn.constrain(
        nn.LSTM(SIZE, SIZE, batch_first=True, dtype=dtype), "weight_hh_l0"
    ),
    "attention": lambda dtype, _: projunn.constrain(
        Attention(SIZE, 2, batch_first=True, dtype=dtype), "in_proj_weight"
    ),
    "rotated": lambda dtype, _: unn.OrthogonalFinetuning(nn.Linear(SIZE, SIZE, dtype=dtype), 2),
    "norm": lambda dtype, _: nn.LayerNorm(SIZE, dtype=dtype),
}
SKETCHED = ("linear", "isometry", "block", "rnn", "conv")


def made(kind, dtype, sketch):
    return (LAYERS | REAL)[kind](dtype, sketch)


def kinds(dtype):
    """The layers that there are for a dtype."""
    return (*LAYERS, *(() if dtype.is_complex else REAL))


class Net(nn.Module):
    """A chain of layers."""

    def __init__(self, names, dtype, sketch):
        super().__init__()
        self.layers = nn.ModuleList(made(name, dtype, sketch) for name in names)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
            x = x[0] if isinstance(x, tuple) else x
        return x


def loss_of(model, x):
    """A real number with gradients of all parameters."""
    output = model(x)
    numbers = torch.view_as_real(output) if output.is_complex() else output
    weights = torch.linspace(-1, 2, numbers.numel(), dtype=numbers.dtype).view(numbers.shape)
    return (numbers.sin() * weights).sum()
