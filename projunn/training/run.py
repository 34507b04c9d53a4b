"""A run: learners trained side by side on the same data, and the folder that holds the results."""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from filelock import FileLock, Timeout

from projunn.tasks import TASKS, LogPoint
from projunn.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from projunn.training.config import TrainConfig
from projunn.training.learner import Learner
from projunn.training.tensorboard import Board, check_installed
from projunn_kernels.files import PARTIAL, replacing

_CHECKPOINT_EVERY = 30.0  # seconds
_SLICE = 10  # steps of one learner before the next one takes its steps


class Run:
    """The learners of a configuration and their folder.

    The folder holds ``config.json``, ``metrics.jsonl``, ``plot.png`` and ``checkpoint.pt``.

    Args:
        config: the options of the run.
        folder: where the results go; `train` makes it.

    Raises:
        ValueError: the device of ``config`` is not one of this machine.
        RuntimeError: a data set cannot be read.
    """

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        config.check_device()
        if config.tensorboard:
            check_installed()
        self.config, self.folder = config, folder
        self.threads = torch.get_num_threads()
        self.stopped_by: int | None = None  # the signal that ended the training, if one did
        self._seen: tuple[int, int] | None = None  # the checkpoint that it was read from, or wrote
        self.task = TASKS[config.task](config.task_options)
        bodies = ("unitary", *config.compare)
        self.learners = [Learner(body, self.task, config) for body in bodies]

    @classmethod
    def resume(cls, folder: Path, **given: Any) -> "Run":
        """The run of a folder in the state of its checkpoint, with what is given of its other options.

        These may be ``steps``, ``seconds``, ``device``, ``log_every`` and ``tensorboard``.
        Nothing in the folder changes.  `train` then goes on with as many threads as before, without
        which sums would be rounded in another order.

        Raises:
            ValueError: the folder holds no configuration and checkpoint that fit each other, or the
                checkpoint is broken, or holds weights that no training leaves behind.
        """
        config = TrainConfig.load(folder / "config.json").followed(**given)
        run = cls(config, folder)
        run._seen = _checkpoint_in(folder)
        checkpoint = load_checkpoint(folder / "checkpoint.pt", config.torch_device)
        try:
            config.check_made_by(checkpoint.config or {})
        except ValueError as error:
            raise ValueError(f"{folder}: checkpoint.pt does not fit config.json: {error}") from error
        run.threads = checkpoint.threads or run.threads
        states = checkpoint.learners
        if set(states) != {learner.body for learner in run.learners}:
            raise ValueError(f"{folder}: the checkpoint holds other models than config.json names")
        for learner in run.learners:
            try:
                learner.load_state_dict(states[learner.body], (checkpoint.config or {}).get("log_every"))
            except Exception as error:  # a state that does not fit can fail in any way
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                message = f"{folder}: checkpoint.pt does not fit config.json: {reason}"
                raise ValueError(message) from error
        return run

    def save(self) -> None:
        """Write everything but the plot."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config.save(self.folder / "config.json")
        with replacing(self.folder / "metrics.jsonl") as file:
            for point in self.points:
                file.write((json.dumps(_finite(point), allow_nan=False) + "\n").encode())
        states = {learner.body: learner.state_dict() for learner in self.learners}
        checkpoint = Checkpoint(states, asdict(self.config), self.threads)
        save_checkpoint(self.folder / "checkpoint.pt", checkpoint)
        self._seen = _checkpoint_in(self.folder)

    @property
    def points(self) -> list[LogPoint]:
        """What all learners have logged, one learner after another."""
        return [point for learner in self.learners for point in learner.points]


def _finite(point: LogPoint) -> dict[str, Any]:
    """A log point as JSON can hold it: a diverged number is null."""
    return {name: _number(value) for name, value in point.flat().items()}


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def train(run: Run) -> bool:
    """Train until the budgets are spent or the process is told to stop; False if it was told to.

    Either way the folder holds a valid checkpoint, the metrics and the plot when it returns.  A model
    whose loss is not finite for 100 steps is given up.

    Raises:
        ValueError: another process trains in the folder, or has since the run was made or read.  To be
            sure of one that is resumed, read it inside of `alone_in`.
    """
    from projunn.training.display import Display
    from projunn.training.plots import plot_run

    with alone_in(run.folder), _threads(run.threads):
        _refuse_another_run(run)
        run.save()
        with (
            _stop_requests() as stopped,
            Display(run.task, run.learners) as display,
            _tensorboard(run) as board,
        ):

            def tell(learner: Learner, logged: int) -> None:
                display.advance(learner)
                for point in learner.points[logged:]:
                    display.log(point)
                    if board is not None:
                        board.add(point)

            _take_steps(run, stopped, tell)
            run.save()  # first, because the measurements take a while
            for learner in run.learners:
                logged = len(learner.points)
                learner.log()
                tell(learner, logged)
            run.save()
            plot_run(run.folder / "plot.png", run.task, run.config, run.learners)
    run.stopped_by = stopped[0] if stopped else None
    display.close(run.learners, run.folder, interrupted=bool(stopped))
    return not stopped


def _take_steps(run: Run, stopped: list[int], tell: Callable[[Learner, int], None]) -> None:
    saved = time.monotonic()
    while not stopped and not all(learner.finished for learner in run.learners):
        for learner in run.learners:
            logged = len(learner.points)
            for _ in range(_SLICE):
                if stopped or learner.finished:
                    break
                learner.take_step()
            tell(learner, logged)
        if time.monotonic() - saved > _CHECKPOINT_EVERY:
            run.save()
            saved = time.monotonic()


@contextmanager
def _tensorboard(run: Run) -> Iterator[Board | None]:
    """What writes the points for TensorBoard, if the run asks for it."""
    if not run.config.tensorboard:
        yield None
        return
    board = Board(run.folder, {learner.body: learner.step for learner in run.learners})
    try:
        yield board
    finally:
        board.close()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Locks a folder, made if it is missing, and clears it of what killed processes left half written.

    The operating system releases the lock when a process ends, however it ends.  A thread that has it
    may take it again.

    Raises:
        ValueError: another process or thread has it, or ``folder`` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out: {folder} is a file, wanted a folder")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.resolve() / ".lock", is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"out: another process trains in {folder}") from error
    try:
        for left in folder.glob(f"*{PARTIAL}"):
            left.unlink()
        yield
    finally:
        lock.release()


def _refuse_another_run(run: Run) -> None:
    """Raises ValueError if the checkpoint in the folder is not the one that the run knows."""
    if _checkpoint_in(run.folder) == run._seen:
        return
    if run._seen is None:
        raise ValueError(f"out: {run.folder} holds a run already; --resume {run.folder} goes on with it")
    raise ValueError(f"out: another process has trained in {run.folder} since it was read; resume again")


def _checkpoint_in(folder: Path) -> tuple[int, int] | None:
    """Which checkpoint a folder holds: every one that is written is a new file."""
    try:
        found = (folder / "checkpoint.pt").stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that fills when the process gets SIGINT or SIGTERM, in place of dying of it."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 2:  # the third request ends the process at once
            raise KeyboardInterrupt

    previous = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
