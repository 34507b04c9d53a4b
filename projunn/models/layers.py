"""The convolutions that the models can be built of."""

from typing import Any

from torch import nn

from projunn.arguments import one_of, per_axis, tensor
from projunn.models.cayley import CayleyConv2d
from projunn.nn import UnitaryConv2d

CONVOLUTIONS = ("unitary", "plain", "cayley")


def convolution(
    kind: str, in_channels: int, out_channels: int, size: tuple[int, int], stride: int = 1, *, bias: bool
) -> nn.Module:
    """A convolution of a kind, for images of ``size``.  Plain ones are 3 x 3 with zero padding."""
    one_of("conv", kind, CONVOLUTIONS)
    if kind == "unitary":
        return UnitaryConv2d(in_channels, out_channels, size, stride, bias)
    if kind == "cayley":
        return CayleyConv2d(in_channels, out_channels, size, stride, bias)
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=bias)


def image_size(size: int | tuple[int, int], smallest: int) -> tuple[int, int]:
    """Height and width, checked to be at least ``smallest``."""
    height, width = per_axis("image_size", size, 2)
    if min(height, width) < smallest:
        raise ValueError(f"image_size: got {size!r}, wanted height and width of at least {smallest}")
    return height, width


def check_images(images: Any, in_channels: int, size: tuple[int, int]) -> None:
    """Checks the shape of a model's input."""
    shape = tuple(tensor("input", images).shape)
    if shape[1:] != (in_channels, *size):
        raise ValueError(
            f"input: got shape {shape}, wanted (batch, {in_channels}, {size[0]}, {size[1]})"
        )
