"""The command line: ``projunn train TASK``, ``projunn autotune``, ``projunn info``."""

import argparse
import importlib.metadata
import os
import platform
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from projunn import autotuning
from projunn.tasks import TASKS
from projunn.training.config import CHOICES, TrainConfig
from projunn_kernels import selfcheck
from projunn_kernels.backends import chosen_backend
from projunn_kernels.configs import choice as tuning
from projunn_kernels.configs import tables
from projunn_kernels.configs.problem import device_of

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 2 for a mistake in the options, 130 for Ctrl-C."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        return status
    except (ValueError, RuntimeError, OSError) as error:
        if os.environ.get("PROJUNN_TRACEBACK"):
            raise
        lines = str(error).splitlines() or [type(error).__name__]
        print(f"projunn: {lines[0]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="projunn", description="Unitary and orthogonal weights by low-rank updates (projUNN)."
    )
    parser.add_argument("--version", action="version", version=_version("projunn"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands)
    autotuning.add_command(commands)
    info = commands.add_parser("info", help="versions, devices and the backend in force")
    info.set_defaults(run=_info)
    return parser


def _add_train(commands: Any) -> None:
    tasks = "\n".join(f"  {name:<9}{task.summary}" for name, task in TASKS.items())
    train = commands.add_parser(
        "train",
        help="train a unitary model on a task",
        description=f"Train a unitary model on a task, with a picture and a checkpoint.\n\n{tasks}",
        epilog=_defaults(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.set_defaults(run=_train)
    train.add_argument("task", nargs="?", choices=tuple(TASKS), metavar="TASK", help="see above")

    def option(flag: str, kind: Any, text: str, group: Any) -> None:
        name = flag.removeprefix("--").replace("-", "_")
        shown = CHOICES.get(name)
        text += f" ({', '.join(shown)})" if shown else ""
        metavar = {int: "N", float: "X", str: name.upper()}[kind]
        group.add_argument(flag, type=kind, choices=shown, help=text, metavar=metavar)

    data = train.add_argument_group("task")
    option("--length", int, "length of the sequence, delay of copying", data)
    option("--size", int, "size of the matrix to learn (unitary)", data)
    option("--dataset", str, "digits or mnist (pixels), cifar10, cifar100 (images)", data)
    data.add_argument("--permuted", action="store_true", default=None, help="shuffle the pixels")
    data.add_argument(
        "--augment",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="shift (and mirror) the images",
    )
    model = train.add_argument_group("model")
    option("--hidden", int, "hidden units", model)
    option("--nonlinearity", str, "of the unitary RNN", model)
    option("--init", str, "of the recurrent weight", model)
    option("--model", str, "of the images", model)
    option("--width", int, "channels of the first convolution", model)
    option("--depth", int, "convolutions of the deep model", model)
    option("--certify", float, "radius of the certified accuracy (lipschitz); pixels are 0 to 1", model)
    option("--dtype", str, "orthogonal or unitary weights", model)
    model.add_argument(
        "--compare",
        type=lambda text: tuple(text.split(",")),
        metavar="A,B",
        help="train these beside it: lstm, gru, rnn; linear (unitary); plain, cayley (images)",
    )
    rule = train.add_argument_group("optimizer")
    option("--optimizer", str, "the rule", rule)
    option("--lr", float, "learning rate", rule)
    option("--unitary-lr", float, "that of the unitary weights; default: lr / 32", rule)
    option("--schedule", str, "of both rates over the budget; cooldown: to 0 in the last third", rule)
    option("--clip", float, "largest norm of the whole gradient; default: none", rule)
    option("--momentum", float, "of sgd and rmsprop", rule)
    option("--rank", int, "rank of the steps", rule)
    option("--sketch-rank", int, "of sketched gradients; default: dense ones (not: images)", rule)
    option("--retraction", str, "back to the unitary matrices", rule)
    option("--factorization", str, "of the step", rule)
    option("--batch-size", int, "sequences or vectors a step", rule)
    run = train.add_argument_group("run")
    option("--steps", int, "budget in steps, each model", run)
    option("--seconds", float, "budget in seconds of training, each model", run)
    option("--log-every", int, "steps between two log points", run)
    option("--seed", int, "of weights and data", run)
    option("--device", str, "auto, cpu, cuda, cuda:1, ...", run)
    run.add_argument("--out", type=Path, metavar="DIR", help="folder of the results; default: runs/...")
    run.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="go on with the run in this folder; only --steps or --seconds may be given with it",
    )


def _defaults() -> str:
    data = {"unitary": ("size",), "pixels": ("dataset",), "images": ("dataset", "augment")}
    models = {"unitary": (), "images": ("model", "width", "depth")}
    rule = ("dtype", "optimizer", "lr", "unitary_lr", "schedule", "clip", "batch_size", "steps")
    lines = ["defaults:"]
    for name in TASKS:
        config = TrainConfig.for_task(name)
        model = models.get(name, ("hidden", "nonlinearity", "init"))
        kept = (*data.get(name, ("length",)), *model, *rule)
        values = [f"{key} {getattr(config, key)}" for key in kept if getattr(config, key) is not None]
        text = textwrap.fill(", ".join(values), 78, subsequent_indent=" " * 11, break_on_hyphens=False)
        lines.append(f"  {name:<9}{text}")
    every = ("rank", "retraction", "factorization", "momentum", "log_every", "seed", "device")
    lines.append("  all      " + ", ".join(f"{key} {getattr(config, key)}" for key in every))
    return "\n".join(lines).replace("_", "-")


def _train(arguments: argparse.Namespace) -> int:
    try:
        import matplotlib  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        message = f"train needs {error.name}: pip install 'projunn[train]'"
        raise RuntimeError(message) from error
    from projunn.training.run import Run, train

    options = vars(arguments).copy()
    task, out, resume = (options.pop(name) for name in ("task", "out", "resume"))
    del options["run"]
    if resume is not None:
        given = [
            name for name, value in {**options, "task": task, "out": out}.items() if value is not None
        ]
        extra = sorted(set(given) - {"steps", "seconds"})
        if extra:
            raise ValueError(f"resume: cannot be combined with {', '.join(extra)}")
        run = Run.resume(resume, options["steps"], options["seconds"])
    else:
        if task is None:
            raise ValueError(f"task: give one of {', '.join(TASKS)}, or --resume DIR")
        config = TrainConfig.for_task(task, **options)
        folder = out or Path("runs") / f"{task}-{time.strftime('%Y%m%d-%H%M%S')}"
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"out: {folder} is a file, wanted a folder")
        if (folder / "checkpoint.pt").exists():
            raise ValueError(f"out: {folder} holds a run already; --resume {folder} goes on with it")
        run = Run(config, folder)
    return 0 if train(run) else _INTERRUPTED


def _info(arguments: argparse.Namespace) -> int:
    backend, chosen_by = chosen_backend()
    rows = [("python", platform.python_version())]
    rows += [(name, _version(name)) for name in ("projunn", "torch", "triton")]
    rows.append(("cpu", f"{platform.machine()}, {torch.get_num_threads()} threads"))
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows.append(("gpu", ", ".join(gpus) or "none"))
    rows.append(("backend", f"{backend} ({chosen_by})"))
    rows.append(("tables", str(tables.cache_folder()) + ("" if tuning.uses_tables() else " (off)")))
    if not gpus:
        rows += [("table", found.described(None)) for found in tuning.found_tables(None)]
        rows.append(("configs", "closed form: there is no GPU to have a table for"))
    devices = {device_of(torch.device("cuda", i)): None for i in range(len(gpus))}
    for device in devices:
        rows += [("table", found.described(device)) for found in tuning.found_tables(device)]
        reasons = tuning.in_force(device).items()
        rows += [(operation, f"{device.name}: {reason}") for operation, reason in reasons]
    rows.append(("self-check", _said_of_verdicts()))
    rows += [("distrusted", one.said) for one in selfcheck.verdicts() if one.problem]
    width = 2 + max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}{value}")
    return 0


def _said_of_verdicts() -> str:
    """How many variants of kernels have been checked, and how they did."""
    every = selfcheck.verdicts()
    failed = sum(bool(one.problem) for one in every)
    return f"{selfcheck.mode()}: {len(every)} variants of kernels checked, {failed} failed"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
