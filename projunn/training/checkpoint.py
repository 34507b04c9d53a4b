"""Checkpoints: written whole or not at all, verified, and read without running any code in them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from projunn_kernels.files import replacing

_FORMAT = 2
_UNVERIFIED = 1  # the format before, without checksum, configuration and threads


@dataclass(frozen=True)
class Checkpoint:
    """The state that an interrupted run goes on from.

    Attributes:
        learners: the states of the learners, by name.
        config: the options of the run; None in files of older versions.
        threads: how many threads PyTorch had: sums are rounded in an order that depends on it.
    """

    learners: dict[str, dict[str, Any]]
    config: dict[str, Any] | None
    threads: int | None


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; a reader sees the old file or the new one, never half of one."""
    content = {"format": _FORMAT, **vars(checkpoint)}
    with replacing(path) as file:
        torch.save({**content, "sha256": _checksum(content)}, file)


def load_checkpoint(path: Path, device: torch.device) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ValueError: the file is missing, broken, changed since it was written, or of another version.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no checkpoint")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        written = content.pop("sha256", None)
        if content["format"] not in (_FORMAT, _UNVERIFIED):
            raise ValueError(f"its format is {content['format']}, this version reads {_FORMAT}")
        if content["format"] == _FORMAT and _checksum(content) != written:
            raise ValueError("its contents are not those that were written: the checksum differs")
        learners: dict[str, dict[str, Any]] = content["learners"]
        for state in learners.values():
            state["generator"] = state["generator"].cpu()
        return Checkpoint(learners, content.get("config"), content.get("threads"))
    except Exception as error:  # torch.load meets broken files with many kinds of exception
        raise ValueError(f"{path}: not a readable checkpoint ({_first_line(error)})") from error


def _checksum(content: Any) -> str:
    """SHA-256 of all numbers, words and names in nested dictionaries and lists, and of their types."""
    digest = hashlib.sha256()
    _feed(digest, content)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"tensor {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)}".encode())
        for key, item in value.items():
            _feed(digest, key)
            _feed(digest, item)
    elif isinstance(value, list | tuple):
        digest.update(f"list {len(value)}".encode())
        for item in value:
            _feed(digest, item)
    elif value is None or isinstance(value, bool | int | float | str):
        digest.update(f"{type(value).__name__} {value!r};".encode())
    else:
        raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
