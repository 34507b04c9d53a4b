"""Steps a second of a whole training run, as ``projunn train`` makes it."""

import tempfile
import time
from pathlib import Path

from bench.gpu.case import Case, Row
from bench.gpu.machine import Machine
from projunn.training.config import TrainConfig
from projunn.training.run import Run

NAME = "projunn train copying --length 1000"
SECONDS = 1.5


def cases(on: Machine) -> list[Case]:
    return [Case(NAME, "training", lambda: _rate(on))]


def _rate(on: Machine) -> Row:
    """The pace of the loop, without the measurements on held-out data at the end of a run."""
    options = {"hidden": 6, "batch_size": 4} if on.dry else {}
    options |= {"length": on.size(1000, 5), "device": on.device.type}
    config = TrainConfig.for_task("copying", steps=100_000, log_every=100_000, **options)
    with tempfile.TemporaryDirectory() as folder:
        learner = Run(config, Path(folder)).learners[0]
        for _ in range(on.size(5, 1)):  # compiles
            learner.take_step()
        on.wait()
        steps, started, enough = 0, time.perf_counter(), on.size(SECONDS, 0)
        while steps < 1 or time.perf_counter() - started < enough:
            learner.take_step()
            steps += 1
            if steps % 10 == 0:
                on.wait()
        on.wait()
        return {"steps_per_s": round(steps / (time.perf_counter() - started), 2)}
