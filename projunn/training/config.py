"""What to train: the options of a run, checked, and kept in its folder as JSON."""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from projunn.lowrank import FACTORIZATIONS
from projunn.tasks import TASKS, TaskOptions
from projunn.training.atomic import replacing
from projunn_kernels import NONLINEARITIES, RETRACTIONS

BODIES = ("unitary", "lstm", "gru", "rnn", "linear", "plain", "cayley")
COMPARED = {"unitary": ("linear",), "images": ("plain", "cayley")}
MODELS = ("resnet9", "deep", "lipschitz")
OPTIMIZERS = ("sgd", "rmsprop", "adamw")
INITS = ("haar", "identity", "henaff", "cayley")
DTYPES = ("float32", "complex64")
SCHEDULES = ("constant", "cooldown", "cosine", "step")

CHOICES = {
    "task": tuple(TASKS),
    "nonlinearity": NONLINEARITIES,
    "retraction": RETRACTIONS,
    "factorization": FACTORIZATIONS,
    "optimizer": OPTIMIZERS,
    "init": INITS,
    "dtype": DTYPES,
    "model": MODELS,
    "schedule": SCHEDULES,
}


@dataclass(frozen=True)
class TrainConfig:
    """The options of ``projunn train``; the names are those of its flags."""

    task: str
    length: int = 200
    size: int = 128
    dataset: str = "digits"
    permuted: bool = False
    augment: bool = False
    model: str = "resnet9"
    width: int = 16
    depth: int = 100
    certify: float | None = None
    hidden: int = 128
    nonlinearity: str = "modrelu"
    init: str = "henaff"
    dtype: str = "float32"
    compare: tuple[str, ...] = ()
    optimizer: str = "rmsprop"
    lr: float = 1e-3
    unitary_lr: float | None = None
    schedule: str = "constant"
    clip: float | None = None
    momentum: float = 0.0
    rank: int = 1
    sketch_rank: int | None = None
    retraction: str = "exp"
    factorization: str = "subspace"
    batch_size: int = 50
    steps: int | None = None
    seconds: float | None = None
    log_every: int = 100
    seed: int = 0
    device: str = "auto"

    @classmethod
    def for_task(cls, task: str, **given: Any) -> "TrainConfig":
        """The task's own defaults, with the options that were ``given`` (not None) in their place."""
        if task not in TASKS:
            raise ValueError(f"task: got {task!r}, wanted one of {', '.join(TASKS)}")
        chosen = {name: value for name, value in given.items() if value is not None}
        defaults = dict(TASKS[task].defaults)
        by_model = getattr(TASKS[task], "model_defaults", {})
        defaults |= by_model.get(chosen.get("model"), {})
        if "steps" in chosen or "seconds" in chosen:  # a given budget replaces the default one
            defaults.pop("steps", None)
        return cls(task, **{**defaults, **chosen})

    def __post_init__(self) -> None:
        for name, wanted in CHOICES.items():
            got = getattr(self, name)
            if got not in wanted:
                raise ValueError(f"{name}: got {got!r}, wanted one of {', '.join(wanted)}")
        for name in ("hidden", "rank", "batch_size", "log_every", "length", "size", "width", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted at least 1")
        for name in ("lr", "unitary_lr", "momentum"):
            got = getattr(self, name)
            if got is not None and not 0 <= got < float("inf"):
                raise ValueError(f"{name}: got {got}, wanted a finite number that is not negative")
        for name in ("clip", "certify", "steps", "seconds", "sketch_rank"):
            got = getattr(self, name)
            if got is not None and not 0 < got < float("inf"):
                raise ValueError(f"{name}: got {got}, wanted a finite number above 0")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: got {self.seed}, wanted 0 to 4294967295")
        if self.steps is None and self.seconds is None:
            raise ValueError("steps: give a budget in steps or in seconds")
        if len(set(self.compare)) < len(self.compare):
            raise ValueError(f"compare: got {','.join(self.compare)}, wanted each model once")
        bodies = COMPARED.get(self.task, BODIES[1:4])
        for body in self.compare:
            if body not in bodies:
                raise ValueError(
                    f"compare: got {body!r}, wanted some of {', '.join(bodies)} for {self.task!r}"
                )

        if self.sketch_rank is not None and self.task == "images":
            raise ValueError("sketch_rank: the models of images have dense gradients; wanted none")
        if self.task == "images" and (self.dtype != "float32" or self.width % 2):
            raise ValueError("dtype, width: images take float32 and an even width")
        if self.certify is not None and (self.task != "images" or self.model != "lipschitz"):
            raise ValueError("certify: wanted images and --model lipschitz: others have no known bound")
        if self.model == "lipschitz" and "plain" in self.compare:
            raise ValueError("compare: got 'plain', wanted 'cayley': plain layers are not 1-Lipschitz")

    @property
    def task_options(self) -> TaskOptions:
        return TaskOptions(
            length=self.length,
            size=self.size,
            batch_size=self.batch_size,
            complex=self.dtype == "complex64",
            permuted=self.permuted,
            augment=self.augment,
            dataset=self.dataset,
            seed=self.seed,
        )

    @property
    def torch_device(self) -> torch.device:
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
        with replacing(path) as file:
            file.write((json.dumps(asdict(self), indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> "TrainConfig":
        """Read what `save` wrote; ValueError tells what is wrong with the file."""
        try:
            values = json.loads(path.read_text())
            known = {field.name for field in fields(cls)}
            if not isinstance(values, dict) or not known >= set(values):
                raise ValueError("it has options that this version does not know")
            values["compare"] = tuple(values.get("compare", ()))
            return cls(**values)
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no configuration of a run: {error}") from error

    def extended(self, steps: int | None, seconds: float | None) -> "TrainConfig":
        """The same run with another budget, where one is given."""
        if steps is None and seconds is None:
            return self
        return replace(self, steps=steps, seconds=seconds)
