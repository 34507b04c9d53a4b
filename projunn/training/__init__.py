"""The training loop behind ``projunn train``.

Data flows one way: ``config`` (what to run) -> ``models`` (bodies with a readout) -> ``learner`` (one
model, its optimizer and its data stream) -> ``run`` (learners side by side, a folder of results),
which shows itself through ``display`` and ``plots`` and is saved by ``checkpoint``.
"""

from projunn.training.config import BODIES, OPTIMIZERS, TrainConfig
from projunn.training.run import Run, train

__all__ = ["BODIES", "OPTIMIZERS", "Run", "TrainConfig", "train"]
