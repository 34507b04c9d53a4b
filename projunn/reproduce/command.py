"""The command ``projunn reproduce``: the experiments of the paper by name."""

import argparse
import datetime
import importlib.metadata
import json
import platform
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from projunn.exit_status import of_signal
from projunn.reproduce.recipe import SCALES, Measured, Recipe, Row


def add_command(commands: Any) -> None:
    """Add ``reproduce`` to the commands of the parser."""
    parser = commands.add_parser(
        "reproduce",
        help="run an experiment of the paper; without a name: list them",
        description="Run an experiment of the paper (arXiv 2203.05483), or go on with one.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the experiment; default: list them")
    parser.add_argument(
        "--scale",
        choices=SCALES,
        help="the paper's sizes, or those for two CPU cores; default: the paper's if there is a GPU",
    )
    parser.add_argument("--only", metavar="A,B", help="some of its trainings, by their labels")
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="images: a folder of MNIST's files, or an .npz of images and labels",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and data")
    parser.add_argument("--device", default="auto", help="where to run; default: a GPU if there is one")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of its results; default: runs/reproduce-NAME-SCALE",
    )
    parser.add_argument(
        "--dry", action="store_true", help="two steps of small networks, to see whether all of it runs"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run, go on with, or list experiments; returns the exit status."""
    try:
        import filelock  # noqa: F401
        import matplotlib  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        message = f"reproduce needs {error.name}: pip install 'projunn[train]'"
        raise RuntimeError(message) from error
    from projunn.reproduce.recipes import RECIPES

    if arguments.name is None:
        _list(RECIPES)
        return 0
    if arguments.name not in RECIPES:
        raise ValueError(f"name: got {arguments.name!r}, wanted one of {', '.join(RECIPES)}")
    recipe = RECIPES[arguments.name]
    scale = arguments.scale or ("paper" if torch.cuda.is_available() else "cpu")
    if arguments.dry:
        with TemporaryDirectory() as passing:
            status = _reproduce(recipe, scale, Path(passing), arguments)
        print("The dry run has removed its folder.")
        return status
    folder: Path = arguments.out or Path("runs") / f"reproduce-{arguments.name}-{scale}"
    return _reproduce(recipe, scale, folder, arguments)


def _list(recipes: dict[str, Recipe]) -> None:
    width = 2 + max(map(len, recipes))
    for name, recipe in recipes.items():
        labels = ", ".join(training.label for training in recipe.trainings)
        print(f"{name:<{width}}{recipe.summary}" + (f": {labels}" if labels else ""))


def _reproduce(recipe: Recipe, scale: str, folder: Path, arguments: argparse.Namespace) -> int:
    if arguments.data and not any(training.images for training in recipe.trainings):
        raise ValueError("data: the experiment reads no images; wanted none")
    if recipe.measure is not None:
        if arguments.only:
            raise ValueError("only: the experiment is one measurement; wanted none")
        folder.mkdir(parents=True, exist_ok=True)
        options = (arguments.device, arguments.seed, arguments.data, arguments.dry)
        rows = recipe.measure(Measured(folder, scale, *options))
        _record(folder, arguments, scale, rows)
        return 0
    from projunn.training.run import Run, train

    wanted = arguments.only.split(",") if arguments.only else [t.label for t in recipe.trainings]
    trainings = {training.label: training for training in recipe.trainings}
    for label in wanted:  # before the first of them trains for hours
        if label not in trainings:
            raise ValueError(f"only: got {label!r}, wanted some of {', '.join(trainings)}")
    rows = []
    for label in wanted:
        config = trainings[label].config(
            scale,
            seed=arguments.seed,
            device=arguments.device,
            data=arguments.data,
            dry=arguments.dry,
        )
        own = folder / label
        done = (own / "checkpoint.pt").exists()
        print(f"{label}: {own}", flush=True)
        one = Run.resume(own) if done else Run(config, own)
        if done and one.config != config:
            raise ValueError(f"out: {own} holds a run with other options; name another folder")
        train(one)
        if one.stopped_by is not None:
            return of_signal(one.stopped_by)
        for learner in one.learners:
            last = learner.points[-1]
            row = {"training": label, "model": learner.body, "task": one.task.title}
            row |= {"step": last.step, "seconds": last.seconds, "test_loss": last.test_loss}
            rows.append(row | {"test_accuracy": last.test_accuracy, "defect": last.defect})
    _record(folder, arguments, scale, rows)
    return 0


def _record(folder: Path, arguments: argparse.Namespace, scale: str, rows: list[Row]) -> None:
    """Writes ``results.jsonl``, and prints the rows of trainings; measurements have printed theirs."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    shared = {"experiment": arguments.name, "scale": scale, "dry": arguments.dry}
    shared |= {"seed": arguments.seed, "device": gpu, "torch": torch.__version__}
    shared |= {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    shared |= {"machine": platform.machine(), "threads": torch.get_num_threads()}
    shared |= {"projunn": _version()}
    lines = [json.dumps(shared | row) for row in rows]
    (folder / "results.jsonl").write_text("\n".join(lines) + "\n")
    for row in (row for row in rows if "training" in row):
        print("  ".join(f"{key} {_text(value)}" for key, value in row.items() if value is not None))
    print(f"{folder / 'results.jsonl'}")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _version() -> str:
    try:
        return importlib.metadata.version("projunn")
    except importlib.metadata.PackageNotFoundError:  # in a checkout, on the path
        return "not installed"
