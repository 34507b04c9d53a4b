"""The tasks that ``projunn train`` knows, one a file: data, loss, and what a naive guess scores."""

from projunn.tasks.adding import Adding
from projunn.tasks.copying import Copying
from projunn.tasks.images import Images
from projunn.tasks.pixels import Pixels
from projunn.tasks.task import Batch, Score, SequenceTask, TaskOptions
from projunn.tasks.unitary import Unitary

Task = SequenceTask | Unitary | Images

TASKS: dict[str, type[Task]] = {
    "adding": Adding,
    "copying": Copying,
    "images": Images,
    "pixels": Pixels,
    "unitary": Unitary,
}

__all__ = [
    "TASKS",
    "Adding",
    "Batch",
    "Copying",
    "Images",
    "Pixels",
    "Score",
    "SequenceTask",
    "Task",
    "TaskOptions",
    "Unitary",
]
