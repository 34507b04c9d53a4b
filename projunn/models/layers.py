"""The convolutions that the models can be built of."""

from torch import nn

from projunn.models.cayley import CayleyConv2d
from projunn.nn import UnitaryConv2d

CONVOLUTIONS = ("unitary", "plain", "cayley")


def convolution(
    kind: str, in_channels: int, out_channels: int, size: tuple[int, int], stride: int = 1, *, bias: bool
) -> nn.Module:
    """A convolution of a kind, for images of ``size``.  Plain ones are 3 x 3 with zero padding."""
    if kind == "unitary":
        return UnitaryConv2d(in_channels, out_channels, size, stride, bias)
    if kind == "cayley":
        return CayleyConv2d(in_channels, out_channels, size, stride, bias)
    if kind == "plain":
        return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=bias)
    raise ValueError(f"conv: got {kind!r}, wanted one of {', '.join(CONVOLUTIONS)}")


def image_size(size: int | tuple[int, int], smallest: int) -> tuple[int, int]:
    """Height and width, checked to be at least ``smallest``."""
    both = (size, size) if isinstance(size, int) else tuple(size)
    if len(both) != 2 or min(both) < smallest:
        raise ValueError(f"image_size: got {size!r}, wanted height and width of at least {smallest}")
    return both
