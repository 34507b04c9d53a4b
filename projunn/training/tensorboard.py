"""The log points of a run as TensorBoard reads them: a curve for each model in one picture."""

from pathlib import Path
from typing import Any

from projunn.tasks import LogPoint

_TAGS = {
    "train_loss": "loss/in training",
    "test_loss": "loss/held-out",
    "test_accuracy": "accuracy/held-out",
    "defect": "unitary/defect",
    "energy": "unitary/gradient energy",
    "skipped": "unitary/steps not taken",
}


class Board:
    """Writes log points into ``tensorboard/MODEL`` of a run's folder.

    A resumed run repeats the steps since its checkpoint, and what was written of them is purged.

    Raises:
        RuntimeError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, steps: dict[str, int]) -> None:
        writer = _writer()
        self._writers: dict[str, Any] = {
            model: writer(str(folder / "tensorboard" / model), purge_step=step + 1)
            for model, step in steps.items()
        }

    def add(self, point: LogPoint) -> None:
        """Write a point: its losses, and what else was measured."""
        writer = self._writers[point.model]
        values = {tag: getattr(point, name) for name, tag in _TAGS.items()}
        values |= {f"task/{name}": value for name, value in point.measured.items()}
        if point.seconds:
            values["speed/steps per second"] = point.step / point.seconds
        for tag, value in values.items():
            if isinstance(value, int | float):
                writer.add_scalar(tag, value, point.step)
        writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


def _writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        name = error.name or "tensorboard"
        raise RuntimeError(f"tensorboard: needs {name}: pip install 'projunn[tensorboard]'") from error
    return SummaryWriter


def check_installed() -> None:
    """Raise RuntimeError, in words, if TensorBoard is not installed."""
    _writer()
