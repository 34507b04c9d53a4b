"""The tasks that ``projunn train`` knows, one a file: data, loss, and what a naive guess scores."""

from projunn.tasks.adding import Adding
from projunn.tasks.copying import Copying
from projunn.tasks.pixels import Pixels
from projunn.tasks.task import Batch, Score, SequenceTask, TaskOptions
from projunn.tasks.unitary import Unitary

Task = SequenceTask | Unitary

TASKS: dict[str, type[Task]] = {
    "adding": Adding,
    "copying": Copying,
    "pixels": Pixels,
    "unitary": Unitary,
}

__all__ = [
    "TASKS",
    "Adding",
    "Batch",
    "Copying",
    "Pixels",
    "Score",
    "SequenceTask",
    "Task",
    "TaskOptions",
    "Unitary",
]
