"""The layers as plain formulas in PyTorch's own operations, to be run in float64.

Each takes a layer and an input, and gives the output and the distance to the nearest kink of an
activation, where gradients of two computations may differ by more than rounding.
"""

import torch

from projunn import nn as unn
from tests.convolutions import by_filter

FAR = float("inf")


def numbers(layer, stored):
    return torch.view_as_complex(stored) if layer.is_complex else stored


def widened(layer, x):
    return x.to(torch.complex128) if layer.is_complex else x


def linear(layer, x):
    y = widened(layer, x) @ numbers(layer, layer.weight).mT
    return (y if layer.bias is None else y + numbers(layer, layer.bias)), FAR


def block(layer, x):
    x = widened(layer, x)
    for i, factor in enumerate(numbers(layer, layer.weight)):
        if i:  # the perfect shuffle
            x = x.unflatten(-1, (layer.num_blocks, -1)).transpose(-1, -2).flatten(-2)
        blocks = x.unflatten(-1, (layer.num_blocks, -1))
        x = torch.einsum("...bi,boi->...bo", blocks, factor).flatten(-2)
    return (x if layer.bias is None else x + numbers(layer, layer.bias)), FAR


def convolution(layer, x):
    batched = x.ndim == layer.axes + 2
    filled = any(s % r for s, r in zip(layer.spatial_size, layer.stride, strict=True))
    if layer.transposed or filled or layer.groups != 1 or layer.grid_size != layer.output_size:
        return by_filter(layer, widened(layer, x)), FAR
    x = widened(layer, x if batched else x[None])
    axes = tuple(range(2, 2 + layer.axes))
    for i, r in enumerate(layer.stride):  # each cell's positions become channels, axis by axis
        x = x.unflatten(2 + 2 * i, (-1, r))
    order = (0, 1, *range(3, 3 + 2 * layer.axes, 2), *range(2, 2 + 2 * layer.axes, 2))
    x = x.permute(order).flatten(1, 1 + layer.axes)
    if len(x):
        spectrum = torch.fft.fftn(x.to(torch.complex128), dim=axes).movedim(1, -1)
        moved = torch.einsum("...oi,b...i->b...o", layer.frequency_response(), spectrum)
        y = torch.fft.ifftn(moved.movedim(-1, 1), dim=axes)
    else:  # which PyTorch's transforms do not take; the derivatives are zero
        zero = layer.frequency_response().sum() * x.sum()
        y = zero.to(torch.complex128).expand(0, layer.out_channels, *layer.output_size)
    y = y if layer.is_complex else y.real
    if layer.bias is not None:
        y = y + numbers(layer, layer.bias).view(-1, *(1,) * layer.axes)
    return (y if batched else y[0]), FAR


def activation(z, bias, name):
    """f(z), and the distance to the nearest kink."""
    if name == "modrelu":
        size = z.abs()
        near = torch.minimum((size + bias).abs(), size)
        kept = torch.where(size + bias > 0, size + bias, 0.0)
        return torch.where(size > 0, z / torch.where(size > 0, size, 1.0), 0.0) * kept, least(near)
    if name == "relu":
        return z.clamp_min(0), least(z.abs())
    if name == "tanh":  # of complex numbers it has poles, which magnify rounding
        return torch.tanh(z), FAR if least(torch.cosh(z).abs()) > 0.3 else 0.0
    return z, FAR


def least(distances):
    return distances.detach().min().item() if distances.numel() else FAR


def cell(layer, x, h, suffix=""):
    """One step of a recurrence, (batch, n)."""
    by_input, by_state = (numbers(layer, getattr(layer, f"weight_{k}{suffix}")) for k in ("ih", "hh"))
    z = widened(layer, x) @ by_input.mT + widened(layer, h) @ by_state.mT
    if layer.bias:
        z = z + numbers(layer, getattr(layer, f"bias_ih{suffix}"))
    return activation(z, getattr(layer, f"modrelu_bias{suffix}", None), layer.nonlinearity)


def recurrence(layer, x):
    batched = x.ndim == 3
    x = x if batched else x[:, None]
    x = x.transpose(0, 1) if layer.batch_first and batched else x
    nearest = FAR
    for number in range(layer.num_layers):
        dtype = torch.complex128 if layer.is_complex else torch.float64
        h, states = torch.zeros(x.shape[1], layer.hidden_size, dtype=dtype), []
        for one in x:
            h, near = cell(layer, one, h, f"_l{number}")
            nearest = min(nearest, near)
            states.append(h)
        x = torch.stack(states)
    x = x.transpose(0, 1) if layer.batch_first and batched else x
    return (x if batched else x[:, 0]), nearest


def modrelu(layer, x):
    return activation(x, layer.bias, "modrelu")


def sorted_groups(layer, x):
    dim, size = layer.dim % x.ndim, layer.group_size
    groups = x.unflatten(dim, (-1, size)).sort(dim + 1).values
    return groups.flatten(dim, dim + 1), least(groups.diff(dim=dim + 1))


FORMULAS = {
    unn.UnitaryLinear: linear,
    unn.BlockUnitaryLinear: block,
    unn.UnitaryConv1d: convolution,
    unn.UnitaryConv2d: convolution,
    unn.UnitaryConv3d: convolution,
    unn.UnitaryConvTranspose1d: convolution,
    unn.UnitaryConvTranspose2d: convolution,
    unn.UnitaryConvTranspose3d: convolution,
    unn.UnitaryRNN: recurrence,
    unn.ModReLU: modrelu,
    unn.GroupSort: sorted_groups,
}
