"""A 1-Lipschitz classifier, made of orthogonal layers and activations that sort channels."""

from torch import nn

from projunn.arguments import positive
from projunn.models.layers import convolution, image_size
from projunn.nn import MaxMin, UnitaryLinear


class LipschitzConvNet(nn.Sequential):
    """Five unitary convolutions, each with `projunn.nn.MaxMin` after it, and a unitary linear layer.

    Two of the convolutions have stride 2.  Each layer is 1-Lipschitz in 2-norm, and so is the whole:
    `projunn.certified_accuracy` tells how far its answers hold.

    Args:
        in_channels, num_classes, image_size: as in `projunn.models.ResNet9`; height and width divisible
            by 4.
        conv: ``"unitary"`` or ``"cayley"``.  ``"plain"``, to compare with, is not 1-Lipschitz.
        width: channels of the first convolution, an even number; the widest have four times as many.

    Shape:
        input (batch, in_channels, *image_size), output (batch, num_classes).

    Raises:
        ValueError: images that are not divisible by 4, an odd ``width``, an unknown ``conv``.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: int | tuple[int, int],
        conv: str = "unitary",
        width: int = 32,
    ) -> None:
        height, across = _size(image_size)
        if positive("width", width) % 2:
            raise ValueError(f"width: got {width}, wanted an even number")
        half, quarter = (height // 2, across // 2), (height // 4, across // 4)
        four = 4 * width
        super().__init__(
            convolution(conv, positive("in_channels", in_channels), width, (height, across), bias=True),
            MaxMin(),
            convolution(conv, width, 2 * width, (height, across), 2, bias=True),
            MaxMin(),
            convolution(conv, 2 * width, 2 * width, half, bias=True),
            MaxMin(),
            convolution(conv, 2 * width, four, half, 2, bias=True),
            MaxMin(),
            convolution(conv, four, four, quarter, bias=True),
            MaxMin(),
            nn.Flatten(),
            UnitaryLinear(four * quarter[0] * quarter[1], positive("num_classes", num_classes)),
        )


def _size(size: int | tuple[int, int]) -> tuple[int, int]:
    both = image_size(size, 4)
    if any(s % 4 for s in both):
        raise ValueError(f"image_size: got {size!r}, wanted height and width divisible by 4")
    return both
