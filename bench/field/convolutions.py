"""Convolutional networks whose convolutions are unitary, plain, or kept orthogonal by others.

RMSprop for all of them.  The rate of our method is that of the unitary weights, as an entry of a matrix
changes; the others have one rate for all parameters.
"""

import importlib
from functools import partial

import torch
from torch import nn

import projunn
from bench.field.contender import LR, Contender, Made, Optimizers, by_default, low_rank
from projunn.tasks import Images

RATES = (2.5e-4, 1e-3, 4e-3)


def ours(task: Images, rate: float, rank: int, retraction: str) -> Made:
    network = task.build("unitary")
    rule = projunn.optim.RMSprop(
        network.parameters(), lr=LR, unitary_lr=rate or None, rank=rank, retraction=retraction
    )
    return network, Optimizers(rule)


def plain(task: Images, rate: float, conv: str) -> Made:
    network = task.build(conv)
    return network, Optimizers(torch.optim.RMSprop(network.parameters(), lr=rate))


def orthogonium(task: Images, rate: float) -> Made:
    """The network of plain convolutions, with orthogonium's adaptive orthogonal ones in their place."""
    layers = importlib.import_module("orthogonium.layers.conv.AOC")
    network = task.build("plain")
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d):
                shape = (child.in_channels, child.out_channels, 3)
                bias = child.bias is not None
                options = {"padding": 1, "padding_mode": "circular", "bias": bias}
                setattr(module, name, layers.AdaptiveOrthoConv2d(*shape, **options))
    return network, Optimizers(torch.optim.RMSprop(network.parameters(), lr=rate))


CONTENDERS = (
    low_rank(ours, RATES, 1, "exp"),
    low_rank(ours, RATES, 4, "exp", "--"),
    low_rank(ours, RATES, 1, "polar"),
    by_default(ours, 4),
    Contender("plain", partial(plain, conv="plain"), RATES, "#7a7a7a"),
    Contender("Cayley", partial(plain, conv="cayley"), RATES, "#448361"),
    Contender("orthogonium", orthogonium, RATES, "#8f6ac0"),
)
