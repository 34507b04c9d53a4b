"""The recurrent network of the experiments published with projUNN, in our own words.

A Python loop over time of ``f(U x_t + W h)`` with two bias-free ``nn.Linear``; f is ``nn.ReLU`` or the
modReLU ``sgn(z) relu(|z| + 1e-6 + b)``, in plain PyTorch operations.
"""

import torch
from torch import Tensor, nn


class PublishedModReLU(nn.Module):
    """``sgn(z) relu(|z| + 1e-6 + b)``."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.empty(features).uniform_(-0.01, 0.01))

    def forward(self, z: Tensor) -> Tensor:
        size = torch.abs(z) + 1e-6
        return torch.sgn(z) * torch.relu(size + self.b)


class PublishedRNN(nn.Module):
    """Input (T, batch, inputs); returns all states (T, batch, hidden) and the last one."""

    def __init__(self, inputs: int, hidden: int, nonlinearity: str) -> None:
        super().__init__()
        self.recurrent_kernel = nn.Linear(hidden, hidden, bias=False)
        self.input_kernel = nn.Linear(inputs, hidden, bias=False)
        self.nonlinearity = nn.ReLU() if nonlinearity == "relu" else PublishedModReLU(hidden)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, states = x.new_zeros(x.shape[1], self.recurrent_kernel.out_features), []
        for step in torch.unbind(x):
            h = self.nonlinearity(self.input_kernel(step) + self.recurrent_kernel(h))
            states.append(h)
        return torch.stack(states), h
