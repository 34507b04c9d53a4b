"""Sets of labelled images, read from files, from scikit-learn or through torchvision."""

import gzip
import struct
import zlib
from pathlib import Path
from zipfile import BadZipFile

import torch
from einops import rearrange
from torch import Tensor

from projunn.tasks.options import Option

Labelled = tuple[Tensor, Tensor]

_TORCHVISION = {"mnist": "MNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
DATASETS = ("digits", *_TORCHVISION)


DATA = Option(
    "data",
    str,
    None,
    "images in place of --dataset's: a folder of MNIST's files, or an .npz of images and labels",
)
_BROKEN = OSError, EOFError, zlib.error, NotImplementedError  # of files that are cut off or damaged
_HELD_OUT = 5  # of the images of an .npz the last fifth
_CHANNELS = (1, 3)  # of images as they usually are
_IDX = {True: "train", False: "t10k"}


def load_images(name: str, data: str | None = None) -> tuple[Labelled, Labelled]:
    """Images (count, channels, height, width) in [0, 1] and labels (count,), for training and held out.

    Args:
        name: one of `DATASETS`.  ``digits`` are 1,797 images of 8 x 8 that come with scikit-learn, of
            which every fifth is held out.  torchvision downloads the others to ``data/`` where they are
            not there yet.
        data: a folder with the four files of MNIST, as they are or compressed by gzip, or an ``.npz``
            whose ``images`` are bytes (count, height, width) or (count, height, width, channels), and
            ``labels``; its last fifth is held out.  It is read in the place of the set ``name``.

    Raises:
        RuntimeError: the package that reads the set is missing, or the download fails.
        ValueError: ``data`` names no such file or folder, or what is held out has labels that those that
            train have not.
    """
    if data is not None:
        path = Path(data)
        train, test = _folder(path) if path.is_dir() else _file(path)
        _check_labels(train[1], test[1])
        return train, test
    return _digits() if name == "digits" else _torchvision(name)


def name_of(dataset: str, data: str | None, train: Labelled, test: Labelled) -> str:
    """What results call a set: of files also how many images train and are held out."""
    if data is None:
        return dataset
    return f"{Path(data).stem} ({len(train[1]):,} / {len(test[1]):,})"


def _file(path: Path) -> tuple[Labelled, Labelled]:
    try:
        import numpy
    except ImportError as error:
        message = "data: .npz files are read by numpy: pip install 'projunn[train]'"
        raise RuntimeError(message) from error
    try:
        with numpy.load(path) as arrays:
            images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    except (*_BROKEN, LookupError, ValueError, BadZipFile, AttributeError, TypeError) as error:
        raise ValueError(f"data: {path} is no .npz of images and labels ({error})") from error
    if images.ndim not in (3, 4) or images.dtype != torch.uint8 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"data: got images {tuple(images.shape)} of {images.dtype} and labels {tuple(labels.shape)},"
            " wanted bytes (count, height, width) or (count, height, width, channels), and (count,)"
        )
    if images.ndim == 4 and images.shape[1] in _CHANNELS and images.shape[3] not in _CHANNELS:
        raise ValueError(
            f"data: got images {tuple(images.shape)}, wanted channels on the last axis,"
            " (count, height, width, channels)"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"data: got labels of {labels.dtype}, wanted integers")
    kept = len(labels) - len(labels) // _HELD_OUT
    pattern = "image h w -> image 1 h w" if images.ndim == 3 else "image h w c -> image c h w"
    pixels, numbers = rearrange(images, pattern).float() / 255, labels.long()
    return (pixels[:kept], numbers[:kept]), (pixels[kept:], numbers[kept:])


def _check_labels(train: Tensor, test: Tensor) -> None:
    if not len(train) or not len(test):
        raise ValueError(
            f"data: got {len(train)} images that train and {len(test)} that are held out, wanted some of"
            f" both; of an .npz at least {_HELD_OUT}"
        )
    least, most = int(min(train.min(), test.min())), int(train.max())
    if least < 0:
        raise ValueError(f"data: got a label {least}, wanted classes from 0 on")
    if test.max() > most:
        raise ValueError(
            f"data: the images that are held out have a label {int(test.max())}, and those that train"
            f" labels up to {most}; wanted the same classes in both: of an .npz the last fifth is held"
            " out, so that its images are to be in random order"
        )


def _folder(path: Path) -> tuple[Labelled, Labelled]:
    parts = []
    for train in (True, False):
        images = _idx(path, f"{_IDX[train]}-images-idx3-ubyte", 3)
        labels = _idx(path, f"{_IDX[train]}-labels-idx1-ubyte", 1)
        if len(images) != len(labels):
            raise ValueError(f"data: {path} has {len(images)} images and {len(labels)} labels")
        parts.append((images.unsqueeze(1).float() / 255, labels.long()))
    return parts[0], parts[1]


def _idx(folder: Path, name: str, axes: int) -> Tensor:
    """The array of bytes in a file of MNIST: a magic number, the sizes of its axes, the bytes."""
    for path, read in ((folder / name, open), (folder / f"{name}.gz", gzip.open)):
        if not path.exists():
            continue
        try:
            with read(path, "rb") as file:
                content = file.read()
        except _BROKEN as error:
            raise ValueError(f"data: {path} cannot be read: {error}") from error
        start = 4 * (1 + axes)
        if len(content) >= start:
            magic, *sizes = struct.unpack(f">{1 + axes}I", content[:start])
            if magic == 0x800 + axes and len(content) - start == torch.Size(sizes).numel():
                return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).view(sizes)
        raise ValueError(f"data: {path} is no file of MNIST's")
    raise ValueError(f"data: {folder} has no {name}, nor {name}.gz")


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
