"""Images, classified as pictures."""

from math import log
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from projunn.lipschitz import certified_accuracy
from projunn.tasks.task import Batch, Score, TaskOptions

_DATASETS = ("digits", "mnist", "cifar10", "cifar100")
_TORCHVISION = {"mnist": "MNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
_TEST_CHUNK = 250


class Images:
    """Classify images (batch, channels, height, width), each channel with mean 0 and deviation 1.

    ``digits``: 1,797 images of 8 x 8 that come with scikit-learn, a fifth of them held out.  ``mnist``,
    ``cifar10``, ``cifar100``: through torchvision, downloaded to ``data/`` where they are not there yet.
    With ``augment`` each training image is shifted at random, by up to an eighth of its size, and
    mirrored at random where mirrored objects exist (CIFAR).  Guessing scores the log of the classes.
    """

    summary = "classify images by convolutions (--dataset, --model)"
    loss_name = "cross-entropy"
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer": "rmsprop",
        "lr": 1e-3,
        "unitary_lr": 4e-3,
        "schedule": "cosine",
        "augment": True,
        "batch_size": 64,
        "steps": 1200,
    }
    # Small turns add up over a hundred layers.  36/255: the usual radius of certified accuracy.
    model_defaults: ClassVar[dict[str, dict[str, Any]]] = {
        "deep": {"unitary_lr": 1e-4},
        "lipschitz": {"certify": 36 / 255},
    }
    every_step = False

    def __init__(self, options: TaskOptions) -> None:
        if options.dataset not in _DATASETS:
            wanted = ", ".join(_DATASETS)
            raise ValueError(f"dataset: got {options.dataset!r}, wanted one of {wanted}")
        self.options = options
        load = _digits if options.dataset == "digits" else _torchvision
        train, test = load(options.dataset)
        axes = (0, 2, 3)
        mean, deviation = train[0].mean(axes, keepdim=True), train[0].std(axes, keepdim=True)
        self._train = (train[0] - mean) / deviation, train[1]
        self._test = (test[0] - mean) / deviation, test[1]
        self.stretch = float(1 / deviation.min())  # of distances, by bringing pixels to deviation 1
        self._black = -(mean / deviation).squeeze(0)
        self.channels = train[0].shape[1]
        self.image_size = (train[0].shape[2], train[0].shape[3])
        self.output_size = int(train[1].max()) + 1
        self.input_size = self.channels
        self.naive = log(self.output_size)

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
        return self._test

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(output, target)

    def accuracy(self, output: Tensor, target: Tensor) -> Tensor:
        return (output.argmax(-1) == target).float().mean()

    def certified(self, model: nn.Module, device: torch.device, radius: float) -> float:
        """Share of held-out images answered rightly whatever is added to them up to a 2-norm.

        The radius is in units of the pixels' range, 0 to 1: the images a model gets are larger by
        1 / (deviation of the channel), and so are their distances.  The model's Lipschitz constant is
        measured on its weights (`projunn.certified_accuracy`).
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
        """The model in evaluation mode on the held-out data."""
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


def _digits(name: str) -> tuple[Batch, Batch]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        message = "dataset: digits comes with scikit-learn: pip install 'projunn[train]'"
        raise RuntimeError(message) from error
    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(data.target).long()
    test = torch.arange(len(labels)) % 5 == 4
    return (images[~test], labels[~test]), (images[test], labels[test])


def _torchvision(name: str) -> tuple[Batch, Batch]:
    try:
        import torchvision
    except ImportError as error:
        message = f"dataset: {name} is read by torchvision, which is not installed; or take digits"
        raise RuntimeError(message) from error
    parts = []
    for train in (True, False):
        try:
            kind = getattr(torchvision.datasets, _TORCHVISION[name])
            part = kind("data", train=train, download=True)
        except (OSError, RuntimeError) as error:
            message = f"dataset: {name} is not in data/ and could not be downloaded ({error})"
            raise RuntimeError(message) from error
        images = torch.as_tensor(part.data)  # bytes
        pattern = "image h w -> image 1 h w" if images.ndim == 3 else "image h w c -> image c h w"
        images = rearrange(images, pattern)
        parts.append((images.float() / 255, torch.as_tensor(part.targets).long()))
    return parts[0], parts[1]
