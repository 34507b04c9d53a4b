"""A very deep chain of convolutions, with no shortcut and no normalisation."""

from torch import Tensor, nn

from projunn.arguments import positive
from projunn.models.layers import check_images, convolution, image_size
from projunn.nn import GroupSort, MaxMin


class DeepConvNet(nn.Module):
    """``depth`` convolutions in a row, each followed by an activation, and a linear layer.

    Only the convolutions carry the signal.  Through plain ones it dies out or explodes on the way;
    through unitary ones, with a norm-preserving activation, it keeps the norm of the input at any depth
    (the experiment of arXiv 2203.05483 at depth 100).  The linear layer sees every pixel, because an
    average over pixels would lose most of the norm that the convolutions have kept.

    Args:
        in_channels, num_classes, image_size, conv: as in `projunn.models.ResNet9`; images of at least 2
            x 2.
        width: channels of all convolutions; an even number for `projunn.nn.MaxMin`.
        depth: the number of convolutions, at least 1.
        activation: the class of the activations, made without arguments.

    Shape:
        input (batch, in_channels, *image_size), output (batch, num_classes).

    Raises:
        ValueError: an unknown ``conv``, images that are too small, no convolution, an odd
            ``width`` for MaxMin, or input of another size.
        TypeError: an ``activation`` that is not made without arguments.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: int | tuple[int, int],
        conv: str = "unitary",
        width: int = 16,
        depth: int = 100,
        activation: type[nn.Module] = MaxMin,
    ) -> None:
        super().__init__()
        self.in_channels, self.image_size = positive("in_channels", in_channels), _size(image_size)
        size, width, depth = self.image_size, positive("width", width), positive("depth", depth)
        layers: list[nn.Module] = []
        for i in range(depth):
            layers.append(convolution(conv, width if i else in_channels, width, size, bias=True))
            layers.append(_made(activation, width))
        self.body = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * size[0] * size[1], positive("num_classes", num_classes))

    def forward(self, input: Tensor) -> Tensor:
        check_images(input, self.in_channels, self.image_size)
        return self.classifier(self.body(input).flatten(1))


def _made(activation: type[nn.Module], width: int) -> nn.Module:
    message = f"activation: got {activation!r}, wanted a class of modules that is made without arguments"
    try:
        made = activation()
    except TypeError as error:
        raise TypeError(message) from error
    if not isinstance(made, nn.Module):
        raise TypeError(message)
    if isinstance(made, GroupSort) and width % made.group_size:
        raise ValueError(f"width: got {width}, wanted a multiple of {made.group_size} for {made!r}")
    return made


def _size(size: int | tuple[int, int]) -> tuple[int, int]:
    return image_size(size, 2)
