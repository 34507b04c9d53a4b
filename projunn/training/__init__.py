"""The training loop behind ``projunn train``.

Data flows one way: ``command`` (the command line) -> ``config`` (what to run) -> ``learner`` (one model
of the task, its optimizer and its stream of data) -> ``run`` (learners side by side and a folder of
results), which shows itself through ``display`` and ``plots`` and is saved by ``checkpoint``.  What is
special about a task is in ``projunn.tasks``.
"""

from projunn.training.config import BODIES, OPTIMIZERS, TrainConfig
from projunn.training.run import Run, train

__all__ = ["BODIES", "OPTIMIZERS", "Run", "TrainConfig", "train"]
