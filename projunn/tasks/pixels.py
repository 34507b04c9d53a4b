"""Images read pixel by pixel."""

from math import log
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from projunn.tasks.datasets import DATA, load_images, name_of
from projunn.tasks.options import Option, TaskOptions
from projunn.tasks.sequences import RECURRENT, SequenceTask
from projunn.tasks.task import Batch

_PERMUTATION_SEED = 92916  # the order of the pixels is part of the task, not of the run


class Pixels(SequenceTask):
    """Classify an image shown one pixel a time step, in reading order or in one fixed random order.

    ``digits``: 1,797 images of 8 x 8 that come with scikit-learn, a fifth of them held out.
    ``mnist``: 28 x 28, through torchvision, downloaded to ``data/`` where it is not there yet.
    ``data`` names other files.  A uniform guess scores the logarithm of the number of classes.  Source:
    Le, Jaitly, Hinton, arXiv 1504.00941.
    """

    name = "pixels"
    summary = "classify an image shown pixel by pixel (--dataset, --permuted)"
    loss_name = "cross-entropy (nats)"
    declares = (
        Option("dataset", str, "digits", "set of images", choices=("digits", "mnist")),
        DATA,
        Option("permuted", bool, False, "shuffle the pixels, all images alike"),
        *RECURRENT,
    )
    defaults: ClassVar[dict[str, Any]] = {"steps": 3000}

    def __init__(self, options: TaskOptions) -> None:
        super().__init__(options)
        self.input_size = 1
        train, test = load_images(self.options.dataset, self.options.data)
        self._name = name_of(self.options.dataset, self.options.data, train, test)
        self.output_size = int(train[1].max()) + 1
        self.naive = log(self.output_size)
        order = torch.arange(train[0][0].numel())
        if self.options.permuted:
            source = torch.Generator().manual_seed(_PERMUTATION_SEED)
            order = torch.randperm(len(order), generator=source)
        images, held_out = (rearrange(part[0], "image c h w -> image (c h w)") for part in (train, test))
        self._images, self._labels = images[:, order], train[1]
        self._test = _one_each_step(held_out[:, order]), test[1]

    @property
    def title(self) -> str:
        order = "permuted " if self.options.permuted else ""
        return f"{order}pixels of {self._name}: {self.options.hidden} hidden units"

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
