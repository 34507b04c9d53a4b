"""A 1-Lipschitz classifier, made of orthogonal layers and activations that sort channels."""

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from projunn.arguments import check_numbers, check_strided, one_of, positive
from projunn.manifold import constrain
from projunn.models.layers import convolution, image_size
from projunn.nn import MaxMin, UnitaryLinear

LAST_LAYERS = ("unitary", "normalized")


class Center(nn.Module):
    """``y = x - mean``: moves all inputs alike, so that distances stay what they were.

    A network that begins with it takes images as they are, and a certified radius is in their units.

    Args:
        mean: what is subtracted from each input of a batch, of the shape of one input.

    Shape:
        input (batch, *mean.shape), output the same.

    Attributes:
        mean: a buffer, which is saved and moved with the module.

    Raises:
        TypeError: ``mean`` is no tensor of real floating-point numbers, or input of another dtype.
        ValueError: input of another shape or device.
    """

    mean: Tensor

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", _checked(mean).detach().clone())

    def forward(self, input: Tensor) -> Tensor:
        check_numbers("input", input, self.mean, False)
        check_strided("input", input)
        if input.shape[1:] != self.mean.shape:
            wanted = ", ".join(map(str, ("batch", *self.mean.shape)))
            raise ValueError(f"input: got shape {tuple(input.shape)}, wanted ({wanted})")
        return input - self.mean

    def extra_repr(self) -> str:
        return f"shape={tuple(self.mean.shape)}"


class LipschitzConvNet(nn.Sequential):
    """Five unitary convolutions, each with `projunn.nn.MaxMin` after it, and a linear layer.

    Two of the convolutions have stride 2: the pixels of a cell become channels, so that none is dropped.
    Each layer before the last is 1-Lipschitz in 2-norm, and so is each output.
    `projunn.certified_accuracy` tells how far its answers hold, and
    `projunn.nn.OffsetCrossEntropyLoss` trains them to hold far.

    Args:
        in_channels, num_classes, image_size: as in `projunn.models.ResNet9`; height and width divisible
            by 4.
        conv: ``"unitary"`` or ``"cayley"``.  ``"plain"``, to compare with, is not 1-Lipschitz.
        width: channels of the first convolution, an even number; the widest have four times as many.
        last_layer: ``"unitary"``, a `projunn.nn.UnitaryLinear`, whose rows are orthonormal; or
            ``"normalized"``, an ``nn.Linear`` whose rows have norm 1 and any angles (last layer
            normalization: Singla, Singla, Feizi, ICLR 2022).  Its rows are a `projunn.UnitaryParameter`
            of 1 x n matrices.  It trains in fewer steps: a step of rank 1 moves all its rows.
        mean: what the network subtracts from its input first (`Center`), a tensor that broadcasts to
            (in_channels, *image_size), or None for nothing.

    Shape:
        input (batch, in_channels, *image_size), output (batch, num_classes).

    Raises:
        ValueError: images that are not divisible by 4, an odd ``width``, an unknown ``conv`` or
            ``last_layer``, a ``mean`` of another shape.
        TypeError: ``mean`` is no tensor of real numbers.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: int | tuple[int, int],
        conv: str = "unitary",
        width: int = 32,
        *,
        last_layer: str = "unitary",
        mean: Tensor | None = None,
    ) -> None:
        height, across = _size(image_size)
        if positive("width", width) % 2:
            raise ValueError(f"width: got {width}, wanted an even number")
        half, quarter = (height // 2, across // 2), (height // 4, across // 4)
        four = 4 * width
        layers = (
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
            _last(last_layer, four * quarter[0] * quarter[1], positive("num_classes", num_classes)),
        )
        # The names of the layers are the same with and without a mean, and so are saved weights.
        named = {} if mean is None else {"center": _center(mean, (in_channels, height, across))}
        super().__init__(OrderedDict(named | {str(i): layer for i, layer in enumerate(layers)}))


def _last(kind: str, features: int, classes: int) -> nn.Module:
    one_of("last_layer", kind, LAST_LAYERS)
    if kind == "unitary":
        return UnitaryLinear(features, classes)
    return constrain(nn.Linear(features, classes), blocks=classes)


def _center(mean: Any, shape: tuple[int, ...]) -> Center:
    try:
        return Center(_checked(mean).expand(shape))
    except RuntimeError as error:
        raise ValueError(
            f"mean: got shape {tuple(mean.shape)}, wanted one that broadcasts to {shape}"
        ) from error


def _checked(mean: Any) -> Tensor:
    if not isinstance(mean, Tensor) or not mean.is_floating_point():
        got = str(mean.dtype) if isinstance(mean, Tensor) else repr(mean)
        raise TypeError(f"mean: got {got:.60}, wanted a tensor of real floating-point numbers")
    return mean


def _size(size: int | tuple[int, int]) -> tuple[int, int]:
    both = image_size(size, 4)
    if any(s % 4 for s in both):
        raise ValueError(f"image_size: got {size!r}, wanted height and width divisible by 4")
    return both
