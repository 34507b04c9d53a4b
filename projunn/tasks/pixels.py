"""Images read pixel by pixel."""

from math import log
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from projunn.tasks.task import Batch, SequenceTask, TaskOptions

_DATASETS = ("digits", "mnist")
_PERMUTATION_SEED = 92916  # the order of the pixels is part of the task, not of the run


class Pixels(SequenceTask):
    """Classify an image shown one pixel a time step, in reading order or in one fixed random order.

    ``digits``: 1,797 images of 8 x 8 that come with scikit-learn, a fifth of them held out.
    ``mnist``: 28 x 28, through torchvision, downloaded to ``data/`` where it is not there yet.
    Guessing scores ln 10.  Le, Jaitly, Hinton, arXiv 1504.00941.
    """

    summary = "classify an image shown pixel by pixel (--dataset, --permuted)"
    loss_name = "cross-entropy"
    defaults: ClassVar[dict[str, Any]] = {"steps": 3000}

    def __init__(self, options: TaskOptions) -> None:
        super().__init__(options)
        if options.dataset not in _DATASETS:
            wanted = ", ".join(_DATASETS)
            raise ValueError(f"dataset: got {options.dataset!r}, wanted one of {wanted}")
        self.input_size, self.output_size, self.naive = 1, 10, log(10)
        train, test = _digits() if options.dataset == "digits" else _mnist()
        order = torch.arange(train[0].shape[1])
        if options.permuted:
            source = torch.Generator().manual_seed(_PERMUTATION_SEED)
            order = torch.randperm(len(order), generator=source)
        self._images, self._labels = train[0][:, order], train[1]
        self._test = _one_each_step(test[0][:, order]), test[1]

    def batch(self, generator: torch.Generator) -> Batch:
        size = (self.options.batch_size,)
        chosen = torch.randint(0, len(self._labels), size, generator=generator)
        return _one_each_step(self._images[chosen]), self._labels[chosen]

    def test_data(self) -> Batch:
        return self._test

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(output, target)

    def accuracy(self, output: Tensor, target: Tensor) -> Tensor:
        return (output.argmax(-1) == target).float().mean()


def _one_each_step(images: Tensor) -> Tensor:
    """A pixel a time step: each step has one feature."""
    return rearrange(images, "image pixel -> pixel image 1")


def _digits() -> tuple[Batch, Batch]:
    """(images, pixels) in [0, 1] and labels, of training and test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        message = "dataset: digits comes with scikit-learn: pip install 'projunn[train]'"
        raise RuntimeError(message) from error
    data = load_digits()
    images = torch.from_numpy(data.data).float() / 16
    labels = torch.from_numpy(data.target).long()
    test = torch.arange(len(labels)) % 5 == 4
    return (images[~test], labels[~test]), (images[test], labels[test])


def _mnist() -> tuple[Batch, Batch]:
    try:
        from torchvision.datasets import MNIST
    except ImportError as error:
        message = "dataset: mnist is read by torchvision, which is not installed; or take digits"
        raise RuntimeError(message) from error
    parts = []
    for train in (True, False):
        try:
            part = MNIST("data", train=train, download=True)
        except (OSError, RuntimeError) as error:
            message = f"dataset: mnist is not in data/ and could not be downloaded ({error})"
            raise RuntimeError(message) from error
        images = rearrange(part.data, "image h w -> image (h w)")
        parts.append((images.float() / 255, part.targets.long()))
    return parts[0], parts[1]
