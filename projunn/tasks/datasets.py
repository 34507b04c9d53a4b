"""Sets of labelled images, read from scikit-learn or through torchvision."""

import torch
from einops import rearrange
from torch import Tensor

Labelled = tuple[Tensor, Tensor]

_TORCHVISION = {"mnist": "MNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
DATASETS = ("digits", *_TORCHVISION)


def load_images(name: str) -> tuple[Labelled, Labelled]:
    """Images (count, channels, height, width) in [0, 1] and labels (count,), for training and held out.

    Args:
        name: one of `DATASETS`.  ``digits`` are 1,797 images of 8 x 8 that come with scikit-learn, of
            which every fifth is held out.  torchvision downloads the others to ``data/`` where they are
            not there yet.

    Raises:
        RuntimeError: the package that reads the set is missing, or the download fails.
    """
    return _digits() if name == "digits" else _torchvision(name)


def _digits() -> tuple[Labelled, Labelled]:
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


def _torchvision(name: str) -> tuple[Labelled, Labelled]:
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
