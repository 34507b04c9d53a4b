"""The tasks that ``projunn train`` knows, one a file.

To add a task, write a subclass of `Task` in a file of its own, add it to `TASKS` below, and test it in
``tests/tasks/``.  Nothing outside this folder names a task: the command line, the checks, the training
loop and the pictures all read what the classes in `TASKS` declare.
"""

from projunn.tasks.adding import Adding
from projunn.tasks.copying import Copying
from projunn.tasks.images import Images
from projunn.tasks.measurements import LogPoint, Metric, Score
from projunn.tasks.options import Option, TaskOptions
from projunn.tasks.pixels import Pixels
from projunn.tasks.sequences import GeneratedTask, SequenceTask
from projunn.tasks.task import Batch, Task
from projunn.tasks.unitary import Unitary

TASKS: dict[str, type[Task]] = {task.name: task for task in (Adding, Copying, Images, Pixels, Unitary)}

# The names of all metrics: a line of metrics.jsonl has the same keys whatever the task.
METRICS = tuple(dict.fromkeys(metric.name for task in TASKS.values() for metric in task.metrics))


def declarations() -> dict[str, dict[str, Option]]:
    """Every option that tasks declare, by its name and then by the name of the task."""
    found: dict[str, dict[str, Option]] = {}
    for task in TASKS.values():
        for option in task.declares:
            found.setdefault(option.name, {})[task.name] = option
    return found


__all__ = [
    "METRICS",
    "TASKS",
    "Adding",
    "Batch",
    "Copying",
    "GeneratedTask",
    "Images",
    "LogPoint",
    "Metric",
    "Option",
    "Pixels",
    "Score",
    "SequenceTask",
    "Task",
    "TaskOptions",
    "Unitary",
    "declarations",
]
