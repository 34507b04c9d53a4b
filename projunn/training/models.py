"""Models for the tasks: a recurrent body with a linear readout, a linear layer, or convolutions."""

import torch
from einops import rearrange
from torch import Tensor, nn

from projunn import init, models
from projunn import nn as unitary_nn
from projunn.tasks import Images, Task, Unitary
from projunn.tasks.unitary import make_rotation_
from projunn.training.config import TrainConfig


class SequenceModel(nn.Module):
    """A body called as ``nn.RNN``, and a linear readout of its last state or of every one.

    Complex states are read out as their real and imaginary parts.
    """

    def __init__(self, body: nn.Module, features: int, outputs: int, every_step: bool) -> None:
        super().__init__()
        self.body = body
        self.readout = nn.Linear(features, outputs)
        self.every_step = every_step

    def forward(self, x: Tensor) -> Tensor:
        states, last = self.body(x)
        if not self.every_step:
            h_n = last[0] if isinstance(last, tuple) else last  # an LSTM has cells beside it
            states = h_n[-1]
        if states.is_complex():
            states = rearrange(torch.view_as_real(states), "... unit part -> ... (unit part)")
        return self.readout(states)


def build(body: str, task: Task, config: TrainConfig) -> nn.Module:
    """The model called ``body`` for the task, in float32 (or complex64), on the CPU."""
    dtype = getattr(torch, config.dtype)
    if isinstance(task, Unitary):
        size = (task.input_size, task.output_size)
        if body == "linear":
            return nn.Linear(*size, bias=False, dtype=dtype)
        layer = unitary_nn.UnitaryLinear(*size, bias=False, dtype=dtype, sketch_rank=config.sketch_rank)
        make_rotation_(layer.matrix.detach())
        return layer
    if isinstance(task, Images):
        network = {
            "resnet9": models.ResNet9,
            "deep": models.DeepConvNet,
            "lipschitz": models.LipschitzConvNet,
        }[config.model]
        depth = {"depth": config.depth} if config.model == "deep" else {}
        shape = (task.channels, task.output_size, task.image_size)
        return network(*shape, conv=body, width=config.width, **depth)
    size = (task.input_size, config.hidden)
    features = config.hidden
    recurrent: nn.Module
    if body == "unitary":
        recurrent = unitary_nn.UnitaryRNN(
            *size,
            nonlinearity=config.nonlinearity,
            dtype=dtype,
            sketch_rank=config.sketch_rank,
        )
        getattr(init, f"{config.init}_")(recurrent.weight_hh_l0)
        features *= 2 if dtype.is_complex else 1
    else:
        recurrent = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[body](*size)
    return SequenceModel(recurrent, features, task.output_size, task.every_step)
