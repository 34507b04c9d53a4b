"""Image classification by convolutional networks."""

from collections.abc import Callable, Mapping
from math import sqrt
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from projunn.lipschitz import certified_accuracy
from projunn.models import CayleyConv2d, DeepConvNet, LipschitzConvNet, ResNet9
from projunn.nn import OffsetCrossEntropyLoss, UnitaryConv2d
from projunn.tasks.datasets import DATA, DATASETS, load_images, name_of
from projunn.tasks.measurements import GREEN, ORANGE, Metric, Score, Trained
from projunn.tasks.options import Option, TaskOptions, above_zero, at_least_one
from projunn.tasks.task import Batch, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEST_CHUNK = 250
_GAINS_FROM = 64  # held-out images
_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet9": ResNet9,
    "deep": DeepConvNet,
    "lipschitz": LipschitzConvNet,
}
# Small rotations add up over a hundred layers.  36/255 is the usual radius of certified accuracy.  To a
# network that cannot enlarge distances a shifted image is far from the image.
_NETWORK_DEFAULTS: dict[str, dict[str, Any]] = {
    "deep": {"unitary_lr": 1e-4},
    "lipschitz": {
        "certify": 36 / 255,
        "margin": 0.5,
        "augment": False,
        "lr": 3e-3,
        "unitary_lr": 3e-2,
        "rank": 4,
    },
}
_TEMPERATURE = 0.25  # of the loss, in margins
_CERTIFY = Option(
    "certify",
    float,
    None,
    "radius of the certified accuracy of the lipschitz model, for pixels from 0 to 1",
    group="model",
    limit=above_zero,
    elsewhere="certify: wanted images and --model lipschitz: others have no known bound",
)
_MARGIN = Option(
    "margin",
    float,
    None,
    "distance, for pixels from 0 to 1, within which the lipschitz model's answers are to hold",
    group="model",
    limit=above_zero,
    elsewhere="margin: wanted images and --model lipschitz: others have no known bound",
)


class Images(Task):
    """Classify images (batch, channels, height, width), each channel with mean 0 and deviation 1.

    ``digits``: 1,797 images of 8 x 8 that come with scikit-learn, a fifth of them held out.  ``mnist``,
    ``cifar10``, ``cifar100``: through torchvision, downloaded to ``data/`` where they are not there yet.
    ``data`` names other files.  With ``augment`` each training image is shifted at random, by up to an
    eighth of its size, and mirrored at random where mirrored objects exist (CIFAR).  A uniform guess
    scores the logarithm of the number of classes.

    With ``margin`` = d the lipschitz model gets images of pixels from 0 to 1, subtracts their mean
    itself, has a normalized last layer, and is trained by `projunn.nn.OffsetCrossEntropyLoss` with
    offset sqrt(2) d and temperature d / 4.  Without one it is trained as the others are.
    """

    name = "images"
    summary = "classify images by convolutions (--dataset, --model)"
    loss_name = "cross-entropy (nats)"
    declares = (
        Option("dataset", str, "digits", "set of images", choices=DATASETS),
        DATA,
        Option("augment", bool, False, "shift (and, of CIFAR, mirror) the images"),
        Option("model", str, "resnet9", "the network", group="model", choices=tuple(_NETWORKS)),
        Option("width", int, 16, "channels of the first convolution", group="model", limit=at_least_one),
        Option(
            "depth",
            int,
            100,
            "convolutions of the deep model",
            group="model",
            limit=at_least_one,
            only=("model", "deep"),
        ),
        _CERTIFY,
        _MARGIN,
    )
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer": "rmsprop",
        "lr": 1e-3,
        "unitary_lr": 4e-3,
        "schedule": "cosine",
        "augment": True,
        "batch_size": 64,
        "steps": 1200,
    }
    compared: ClassVar[dict[str, str]] = {"plain": ORANGE, "cayley": GREEN}
    metrics = (
        Metric("certified", "{:.1%}", "certified at {options.certify:.3g}"),
        Metric("gains"),
    )

    def __init__(self, options: TaskOptions) -> None:
        super().__init__(options)
        train, test = load_images(self.options.dataset, self.options.data)
        self._name = name_of(self.options.dataset, self.options.data, train, test)
        axes = (0, 2, 3)
        mean, deviation = train[0].mean(axes, keepdim=True), train[0].std(axes, keepdim=True)
        self._mean: Tensor | None = None
        self._loss: nn.Module = nn.CrossEntropyLoss()
        if self.options.margin is not None:
            self.loss_name = "offset cross-entropy"
            self._mean = mean.squeeze(0)
            self._loss = OffsetCrossEntropyLoss(
                sqrt(2) * self.options.margin, _TEMPERATURE * self.options.margin
            )
            mean, deviation = torch.zeros_like(mean), torch.ones_like(deviation)
        self._train = (train[0] - mean) / deviation, train[1]
        self._test = (test[0] - mean) / deviation, test[1]
        self.stretch = float(1 / deviation.min())  # of distances, by the division
        self._black = -(mean / deviation).squeeze(0)
        self.channels = train[0].shape[1]
        self.image_size = (train[0].shape[2], train[0].shape[3])
        self.output_size = int(train[1].max()) + 1
        guess = torch.zeros(1, self.output_size)
        self.naive = float(self._loss(guess, torch.zeros(1, dtype=torch.int64)))

    @classmethod
    def defaults_for(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        return super().defaults_for(given) | _NETWORK_DEFAULTS.get(given.get("model", ""), {})

    @classmethod
    def check(cls, options: TaskOptions) -> None:
        if options.complex or options.width % 2:
            raise ValueError("dtype, width: images take float32 and an even width")
        if options.certify is not None and options.model != "lipschitz":
            raise ValueError(_CERTIFY.elsewhere)
        if options.margin is not None and options.model != "lipschitz":
            raise ValueError(_MARGIN.elsewhere)
        if options.model == "lipschitz" and "plain" in options.compare:
            raise ValueError("compare: got 'plain', wanted 'cayley': plain layers are not 1-Lipschitz")

    @property
    def title(self) -> str:
        return f"{self._name}: {self.options.model}"

    def build(self, body: str) -> nn.Module:
        model = self.options.model
        special: dict[str, Any] = {"depth": self.options.depth} if model == "deep" else {}
        if self._mean is not None:
            special = {"last_layer": "normalized", "mean": self._mean}
        shape = (self.channels, self.output_size, self.image_size)
        return _NETWORKS[model](*shape, conv=body, width=self.options.width, **special)

    def batch(self, generator: torch.Generator) -> Batch:
        images, labels = self._train
        size = (self.options.batch_size,)
        chosen = torch.randint(0, len(labels), size, generator=generator)
        x = images[chosen]
        return (self._augmented(x, generator) if self.options.augment else x), labels[chosen]

    def _augmented(self, x: Tensor, generator: torch.Generator) -> Tensor:
        batch, (height, width) = len(x), self.image_size
        reach = max(1, min(height, width) // 8)
        padded = functional.pad(x - self._black, (reach,) * 4) + self._black
        down, right = torch.randint(0, 2 * reach + 1, (2, batch, 1), generator=generator)
        rows, columns = down + torch.arange(height), right + torch.arange(width)
        if self.options.dataset.startswith("cifar"):
            mirrored = torch.rand(batch, 1, generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        each = torch.arange(batch)[:, None, None]
        cut = padded[each, :, rows[:, :, None], columns[:, None, :]]
        return rearrange(cut, "image h w c -> image c h w").contiguous()

    def test_data(self) -> Batch:
        """The held-out images and their labels."""
        return self._test

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = self._loss(output, target)
        return loss

    def accuracy(self, output: Tensor, target: Tensor) -> Tensor:
        return (output.argmax(-1) == target).float().mean()

    def measure(self, model: nn.Module, device: torch.device) -> dict[str, Any]:
        radius = self.options.certify
        return {
            "certified": None if radius is None else self.certified(model, device, radius),
            "gains": norm_gains(model, self._test[0][:_GAINS_FROM].to(device)),
        }

    def draw(self, figure: "Figure", models: list[Trained], axis: str, rank: int) -> None:
        """Draw the accuracy, the norm gain of every layer, and filters of the first one."""
        from projunn.tasks.images_picture import draw_images

        draw_images(figure, models, axis, self.output_size, self.options.certify)

    def certified(self, model: nn.Module, device: torch.device, radius: float) -> float:
        """The share of held-out images whose right answer no change of 2-norm ``radius`` can make wrong.

        The radius is in units of the pixels' range, 0 to 1.  Where the images that a model gets are
        divided by the deviation of each channel, so are their distances.  The model's Lipschitz constant
        is measured on its weights (`projunn.certified_accuracy`).
        """
        images, labels = self._test
        chunks = zip(images.split(_TEST_CHUNK), labels.split(_TEST_CHUNK), strict=True)
        batches = ((x.to(device), y.to(device)) for x, y in chunks)
        training = model.training
        model.eval()
        (share,) = certified_accuracy(model, batches, [radius * self.stretch])
        model.train(training)
        return share

    @torch.no_grad()
    def score(self, model: nn.Module, device: torch.device) -> Score:
        """The loss and the accuracy of the model, in evaluation mode, on the held-out images."""
        images, labels = self._test
        training = model.training
        model.eval()
        losses = rights = 0.0
        for x, y in zip(images.split(_TEST_CHUNK), labels.split(_TEST_CHUNK), strict=True):
            x, y = x.to(device), y.to(device)
            output = model(x)
            losses += len(y) * self.loss(output, y).item()
            rights += len(y) * self.accuracy(output, y).item()
        model.train(training)
        return Score(losses / len(labels), rights / len(labels))


@torch.no_grad()
def norm_gains(model: nn.Module, images: Tensor) -> list[float]:
    """The norm of each convolution's output, without its bias, over the norm of its input."""
    gains: list[float] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        bias = getattr(layer, "bias", None)
        linear = output if bias is None else output - bias[:, None, None]
        gains.append(float(linear.norm() / inputs[0].norm().clamp_min(1e-30)))

    kinds = (UnitaryConv2d, CayleyConv2d, nn.Conv2d)
    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, kinds)]
    training = model.training
    model.eval()
    model(images)
    model.train(training)
    for hook in hooks:
        hook.remove()
    return gains
