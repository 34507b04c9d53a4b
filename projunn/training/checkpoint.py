"""Checkpoints: written whole or not at all, read without running any code in them."""

from pathlib import Path
from typing import Any

import torch

from projunn.training.atomic import replacing

_FORMAT = 1


def save_checkpoint(path: Path, learners: dict[str, dict[str, Any]]) -> None:
    """Write the learners' states; a reader sees the old file or the new one, never half of one."""
    with replacing(path) as file:
        torch.save({"format": _FORMAT, "learners": learners}, file)


def load_checkpoint(path: Path, device: torch.device) -> dict[str, dict[str, Any]]:
    """Read the learners' states.

    Raises:
        ValueError: the file is missing, broken, or of another version.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no checkpoint")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        if content["format"] != _FORMAT:
            raise ValueError(f"its format is {content['format']}, this version reads {_FORMAT}")
        learners: dict[str, dict[str, Any]] = content["learners"]
        for state in learners.values():
            state["generator"] = state["generator"].cpu()
    except Exception as error:  # torch.load meets broken files with many kinds of exception
        raise ValueError(f"{path}: not a readable checkpoint ({_first_line(error)})") from error
    return learners


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
