"""The options of a training run, checked, and kept in its folder as JSON."""

import inspect
import json
import typing
from collections.abc import Callable
from dataclasses import Field, asdict, dataclass, fields, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from projunn import optim
from projunn.optim.base import UnitaryOptimizer
from projunn.optim.options import FACTORIZATIONS
from projunn.tasks import TASKS, TaskOptions, declarations
from projunn.tasks.options import above_zero, at_least_one, one_of
from projunn_kernels import RETRACTIONS
from projunn_kernels.files import replacing

BODIES = tuple(dict.fromkeys(["unitary", *(b for task in TASKS.values() for b in task.compared)]))
# The rules that step unitary parameters; `projunn.optim` has classes that do other things too.
OPTIMIZERS: dict[str, type[Any]] = {
    name.lower(): found
    for name in optim.__all__
    if issubclass(found := getattr(optim, name), UnitaryOptimizer)
}
DTYPES = ("float32", "complex64")
FOLLOWED = ("steps", "seconds", "device", "log_every", "tensorboard")  # what --resume may change
SCHEDULES = ("constant", "cooldown", "cosine", "exponential", "step")

# The values that general options may have, where those are words.
CHOICES = {
    "task": tuple(TASKS),
    "retraction": tuple(RETRACTIONS),
    "factorization": FACTORIZATIONS,
    "optimizer": tuple(OPTIMIZERS),
    "dtype": DTYPES,
    "schedule": SCHEDULES,
}

if TYPE_CHECKING:  # The type checker sees no fields that are made below.

    @dataclass(frozen=True)
    class _TaskFields:
        task: str

        def __getattr__(self, name: str) -> Any: ...

else:
    # The task's name, and a field for every option that some task declares.
    _declared = [next(iter(by_task.values())) for by_task in declarations().values()]
    _TaskFields = make_dataclass(
        "_TaskFields",
        [("task", str), *((option.name, option.kind, option.default) for option in _declared)],
        frozen=True,
    )


@dataclass(frozen=True)
class TrainConfig(_TaskFields):
    """The options of ``projunn train``; the names are those of its flags.

    Its first fields are ``task`` and the options that tasks declare, those of all tasks: a run of any
    task can be written and read in the same way.  The fields below are the options of every task.

    Raises:
        ValueError: an option has a value that it may not have, or options do not go together.
    """

    dtype: str = "float32"
    compare: tuple[str, ...] = ()
    optimizer: str = "rmsprop"
    lr: float = 1e-3
    unitary_lr: float | None = None
    schedule: str = "constant"
    clip: float | None = None
    momentum: float = 0.0
    rank: int = 1
    retraction: str = "exp"
    factorization: str = "subspace"
    batch_size: int = 50
    steps: int | None = None
    seconds: float | None = None
    log_every: int = 100
    seed: int = 0
    device: str = "auto"
    tensorboard: bool = False

    @classmethod
    def for_task(cls, task: str, **given: Any) -> "TrainConfig":
        """The task's own defaults, with the options that were ``given`` (not None) in their place.

        Raises:
            ValueError: an option that neither this task nor every task has, or one of another model;
                and as the class does.
        """
        one_of("task", task, TASKS)
        chosen = {name: value for name, value in given.items() if value is not None}
        defaults = TASKS[task].defaults_for(chosen)
        _refuse_unused(task, chosen, {**defaults, **chosen})
        if "steps" in chosen or "seconds" in chosen:  # a given budget replaces the default one
            defaults.pop("steps", None)
        values = {**defaults, **chosen}
        values.setdefault("log_every", _often_enough(values.get("steps"), values.get("seconds")))
        return cls(task, **values)

    def __post_init__(self) -> None:
        for name, wanted in CHOICES.items():
            one_of(name, getattr(self, name), wanted)
        for name in ("rank", "batch_size", "log_every"):
            at_least_one(name, getattr(self, name))
        for name in ("lr", "unitary_lr", "momentum"):
            got = getattr(self, name)
            if got is not None and not 0 <= got < float("inf"):
                raise ValueError(f"{name}: got {got}, wanted a finite number that is not negative")
        if self.momentum and not self.takes_momentum:
            rules = " or ".join(name for name, rule in OPTIMIZERS.items() if _has_momentum(rule))
            raise ValueError(
                f"momentum: got {self.momentum} with optimizer {self.optimizer!r}, which has averages of"
                f" its own; wanted 0, or one of the optimizers {rules}"
            )
        for name in ("clip", "steps", "seconds"):
            above_zero(name, getattr(self, name))
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: got {self.seed}, wanted 0 to 4294967295")
        if self.steps is None and self.seconds is None:
            raise ValueError("steps: give a budget in steps or in seconds")
        self._check_compared()
        self._check_declared()
        if self.sketch_rank is not None:
            self._check_sketched()
        TASKS[self.task].check(self.task_options)

    def _check_compared(self) -> None:
        if len(set(self.compare)) < len(self.compare):
            raise ValueError(f"compare: got {','.join(self.compare)}, wanted each model once")
        bodies = TASKS[self.task].compared
        for body in self.compare:
            if body not in bodies:
                wanted = f"some of {', '.join(bodies)}" if bodies else "none"
                raise ValueError(f"compare: got {body!r}, wanted {wanted} for {self.task!r}")

    def _check_declared(self) -> None:
        for name, by_task in declarations().items():
            got = getattr(self, name)
            # A value that the task ignores is checked as well, to find mistakes such as --width 0.
            option = by_task.get(self.task, next(iter(by_task.values())))
            option.check(got)
            if self.task not in by_task and option.elsewhere and got != option.default:
                raise ValueError(option.elsewhere)

    def _check_sketched(self) -> None:
        """Raise ValueError for what sketched gradients cannot have, which steps would refuse."""
        given = f"with sketch_rank {self.sketch_rank}"
        if self.factorization == "tangent":
            others = " or ".join(name for name in FACTORIZATIONS if name != "tangent")
            raise ValueError(
                f"factorization: got 'tangent' {given}: a sketch of the gradient lacks its tangent part;"
                f" wanted {others}, or no sketch_rank"
            )
        if not OPTIMIZERS[self.optimizer].takes_sketches:
            others = " or ".join(name for name, rule in OPTIMIZERS.items() if rule.takes_sketches)
            raise ValueError(
                f"optimizer: got {self.optimizer!r} {given}: it needs the entries of the gradient, which"
                f" is never formed; wanted {others}, or no sketch_rank"
            )

    @property
    def takes_momentum(self) -> bool:
        """Whether the optimizer has an option of that name."""
        return _has_momentum(OPTIMIZERS[self.optimizer])

    @property
    def task_options(self) -> TaskOptions:
        """The options that the task is made from."""
        declared = [option.name for option in TASKS[self.task].declares]
        return TaskOptions(
            batch_size=self.batch_size,
            complex=self.dtype == "complex64",
            compare=self.compare,
            seed=self.seed,
            **{name: getattr(self, name) for name in declared},
        )

    @property
    def torch_device(self) -> torch.device:
        """The device; ``"auto"`` is the current GPU, or the CPU where PyTorch sees no GPU."""
        if self.device != "auto":
            return torch.device(self.device)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def check_device(self) -> None:
        """Raise ValueError if the device is not one of this machine."""
        try:
            torch.empty(0, device=self.torch_device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device: {self.device!r} is not available here") from error

    def save(self, path: Path) -> None:
        """Write the options to a JSON file."""
        with replacing(path) as file:
            file.write((json.dumps(asdict(self), indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> "TrainConfig":
        """Read what `save` wrote; raise ValueError if the file holds no configuration of a run."""
        try:
            values = json.loads(path.read_text())
            known = {field.name for field in fields(cls)}
            if not isinstance(values, dict) or not known >= set(values):
                raise ValueError("it has options that this version does not know")
            values["compare"] = _words(values.get("compare", []))
            for field in fields(cls):
                if field.name in values:
                    _check_type(field, values[field.name])
            return cls(**values)
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no configuration of a run: {error}") from error

    def check_made_by(self, made: dict[str, Any]) -> None:
        """Raise ValueError if a checkpoint was made with other options than these.

        Options that a run may be resumed with are followed: its budget, its device, and how often it
        logs.
        """
        for name, own in asdict(self).items():
            before = made.get(name, own)
            before = tuple(before) if isinstance(before, list) else before
            if name not in FOLLOWED and before != own:
                raise ValueError(f"{name} is {own!r} there, and was {before!r}")

    def followed(self, **given: Any) -> "TrainConfig":
        """The configuration with the options that are ``given`` (not None) and may change in a run.

        A budget in steps takes the place of one in seconds, and the other way round.
        """
        changed = {name: value for name, value in given.items() if value is not None}
        assert changed.keys() <= set(FOLLOWED), changed
        if "steps" in changed or "seconds" in changed:
            changed = {"steps": None, "seconds": None, **changed}
        return replace(self, **changed)


def _has_momentum(rule: Callable[..., UnitaryOptimizer]) -> bool:
    return "momentum" in inspect.signature(rule).parameters


def _refuse_unused(task: str, chosen: dict[str, Any], values: dict[str, Any]) -> None:
    """Raise ValueError if a chosen option is one of other tasks, or needs another value of a second."""
    for name, by_task in declarations().items():
        if name not in chosen:
            continue
        if task not in by_task:
            own = f"{name}: wanted none for {task}: it is an option of {', '.join(by_task)}"
            raise ValueError(next(iter(by_task.values())).elsewhere or own)
        only = by_task[task].only
        if only is not None:
            other, wanted = only
            if values[other] != wanted:
                got = f"{other} {values[other]}"
                raise ValueError(f"{name}: wanted none for {got}: it is an option of {other} {wanted}")


def _often_enough(steps: int | None, seconds: float | None) -> int:
    """Steps between two log points for a budget: about twenty points of a short run, 100 at most."""
    shares = [100.0]
    if steps is not None and steps > 0:
        shares.append(steps / 20)
    if seconds is not None and seconds > 0:
        shares.append(max(10.0, 2 * seconds))  # at a few dozen steps a second
    return max(1, int(min(shares)))


def _words(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ValueError(f"compare: got {value!r:.40}, wanted a list of words")
    return tuple(value)


def _check_type(field: Field[Any], value: Any) -> None:
    """Raise ValueError if a JSON value is of another type than an option."""
    kinds = typing.get_args(field.type) or (field.type,)
    if field.name == "compare" or (value is None and field.default is None):
        return
    wanted = (int, float) if float in kinds else kinds
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in kinds):
        raise ValueError(f"{field.name}: got {value!r:.40}, wanted {kinds[0].__name__}")
