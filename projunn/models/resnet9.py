"""ResNet9, with unitary convolutions or with plain ones."""

from torch import Tensor, nn

from projunn.arguments import positive
from projunn.models.layers import check_images, convolution, image_size


class ResNet9(nn.Module):
    """Eight convolutions with batch normalisation and ReLU, two pairs of them residual, and a readout.

    This is the network of the image experiments of arXiv 2203.05483.

    Args:
        in_channels: channels of the images.
        num_classes: the number of outputs.
        image_size: height and width of at least 4, or one integer for both.
        conv: ``"unitary"`` (`projunn.nn.UnitaryConv2d`), ``"plain"`` (3 x 3 ``nn.Conv2d``) or
            ``"cayley"`` (`projunn.models.CayleyConv2d`).
        width: channels of the first convolution; the widest have four times as many.

    Shape:
        input (batch, in_channels, *image_size), output (batch, num_classes).

    Raises:
        ValueError: an unknown ``conv``, images that are too small, or input of another size.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: int | tuple[int, int],
        conv: str = "unitary",
        width: int = 64,
    ) -> None:
        super().__init__()
        self.in_channels, self.image_size = positive("in_channels", in_channels), _size(image_size)
        size, width = self.image_size, positive("width", width)
        half = (size[0] // 2, size[1] // 2)
        quarter = (half[0] // 2, half[1] // 2)

        def block(n: int, m: int, at: tuple[int, int], pool: bool = False) -> nn.Sequential:
            layers = [convolution(conv, n, m, at, bias=False), nn.BatchNorm2d(m), nn.ReLU()]
            return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))

        double, four = 2 * width, 4 * width
        self.conv1 = block(in_channels, width, size)
        self.conv2 = block(width, double, size, pool=True)
        self.res1 = nn.Sequential(block(double, double, half), block(double, double, half))
        self.conv3 = block(double, four, half, pool=True)
        self.conv4 = block(four, four, quarter)
        self.res2 = nn.Sequential(block(four, four, quarter), block(four, four, quarter))
        self.pool = nn.AdaptiveAvgPool2d(2 if min(quarter) > 1 else 1)
        self.classifier = nn.Linear(
            four * (4 if min(quarter) > 1 else 1), positive("num_classes", num_classes)
        )

    def forward(self, input: Tensor) -> Tensor:
        check_images(input, self.in_channels, self.image_size)
        x = self.conv2(self.conv1(input))
        x = x + self.res1(x)
        x = self.conv4(self.conv3(x))
        x = x + self.res2(x)
        return self.classifier(self.pool(x).flatten(1))


def _size(size: int | tuple[int, int]) -> tuple[int, int]:
    return image_size(size, 4)
