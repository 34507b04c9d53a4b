"""The command ``projunn train``: its options, its help, and the run that they ask for."""

import argparse
import itertools
import textwrap
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from projunn.arguments import words
from projunn.exit_status import FAILED, of_signal
from projunn.tasks import TASKS, Option, declarations
from projunn.training.config import CHOICES, FOLLOWED, TrainConfig

if TYPE_CHECKING:
    from projunn.training.run import Run

_METAVARS = {int: "N", float: "X"}
# The help lists the defaults of these options for each task, after those that the task declares, and
# the defaults of the second list once for all tasks.
_DEFAULTS = ("dtype", "optimizer", "lr", "unitary_lr", "schedule", "clip", "batch_size", "steps")
_COMMON = ("rank", "retraction", "factorization", "momentum", "seed", "device")


def add_command(commands: Any) -> None:
    """Add ``train`` to the commands of the parser."""
    column = _column()
    lines = (f"  {name:<{column}}{task.summary}" for name, task in TASKS.items())
    tasks = "\n".join(_filled(line, " " * (2 + column)) for line in lines)
    train = commands.add_parser(
        "train",
        help="train a unitary model on a task",
        description=f"Train a unitary model on a task, with a picture and a checkpoint.\n\n{tasks}",
        epilog=_defaults(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.set_defaults(run=run)
    train.add_argument("task", nargs="?", choices=tuple(TASKS), metavar="TASK", help="see above")
    _add_declared(train.add_argument_group("task"), "task")
    model = train.add_argument_group("model")
    _add_declared(model, "model")
    _add_option(model, "dtype", str, "dtype of the weights, orthogonal if real, unitary if complex")
    compared = _by_task({name: ", ".join(task.compared) for name, task in TASKS.items()})
    model.add_argument(
        "--compare",
        type=words,
        metavar="A,B",
        help=f"train these models beside the unitary one: {compared}",
    )
    rule = train.add_argument_group("optimizer")
    _add_rule(rule)
    _add_declared(rule, "optimizer")
    _add_run(train.add_argument_group("run"))


def _add_rule(group: Any) -> None:
    _add_option(group, "optimizer", str, "the optimizer's rule")
    _add_option(group, "lr", float, "learning rate")
    text = "learning rate of the unitary weights; default: that of the optimizer"
    _add_option(group, "unitary_lr", float, text)
    text = "how both rates change over the budget; cooldown goes to 0 in the last third"
    _add_option(group, "schedule", str, text)
    _add_option(group, "clip", float, "clip the norm of the whole gradient to this; default: none")
    _add_option(group, "momentum", float, "momentum of sgd and rmsprop")
    _add_option(group, "rank", int, "rank k of the steps of unitary weights")
    _add_option(group, "retraction", str, "how a step comes back to the unitary matrices")
    _add_option(group, "factorization", str, "how the rank-k factors of a step are found")
    _add_option(group, "batch_size", int, "training examples in a step")


def _add_run(group: Any) -> None:
    _add_option(group, "steps", int, "budget of each model in steps")
    _add_option(group, "seconds", float, "budget of each model in seconds of training")
    text = "steps between two log points; default: a twentieth of the budget, at most 100"
    _add_option(group, "log_every", int, text)
    _add_option(group, "seed", int, "seed of weights and data")
    _add_option(
        group, "device", str, "where to train: auto (a GPU if there is one), cpu, cuda, cuda:1, ..."
    )
    group.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the results; default: runs/TASK-TIME"
    )
    group.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help=f"go on with the run in this folder; with it go {', '.join(map(_flag, FOLLOWED))}",
    )
    group.add_argument(
        "--tensorboard",
        action="store_true",
        default=None,
        help="write the curves into DIR/tensorboard too, for TensorBoard",
    )


def _add_option(group: Any, name: str, kind: type, text: str) -> None:
    choices = CHOICES.get(name)
    text += f" ({', '.join(choices)})" if choices else ""
    metavar = _METAVARS.get(kind, name.upper())
    group.add_argument(_flag(name), type=kind, choices=choices, help=text, metavar=metavar)


def _add_declared(group: Any, heading: str) -> None:
    """Add the options that tasks declare under the heading."""
    for name, by_task in declarations().items():
        if next(iter(by_task.values())).group == heading:
            _add_shared(group, name, by_task)


def _add_shared(group: Any, name: str, by_task: Mapping[str, Option]) -> None:
    """Add an option with the words of all tasks that declare it."""
    words = {task: _words(option) for task, option in by_task.items()}
    kind, text = next(iter(by_task.values())).kind, _by_task(words)
    if kind is bool:
        on = any(TASKS[task].defaults_for({})[name] for task in by_task)
        action = argparse.BooleanOptionalAction if on else "store_true"
        group.add_argument(_flag(name), action=action, default=None, help=text)
        return
    # Where the choices of the tasks differ, the configuration refuses a wrong one: it knows the task.
    choices = {option.choices for option in by_task.values()}
    known = next(iter(choices)) if len(choices) == 1 else ()
    metavar = _METAVARS.get(kind, name.upper())
    group.add_argument(_flag(name), type=kind, choices=known or None, help=text, metavar=metavar)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _words(option: Option) -> str:
    return f"{option.help}: {', '.join(option.choices)}" if option.choices else option.help


def _by_task(words: Mapping[str, str]) -> str:
    """``"length (adding); delay (copying)"``: tasks of the same words stand together."""
    distinct = dict.fromkeys(text for text in words.values() if text)
    together = {text: [task for task in words if words[task] == text] for text in distinct}
    return "; ".join(f"{text} ({', '.join(tasks)})" for text, tasks in together.items())


def _column() -> int:
    return 2 + max(map(len, TASKS))


def _filled(text: str, indent: str) -> str:
    """A text on lines of the width of a terminal, the second and those that follow indented."""
    return textwrap.fill(text, 78, subsequent_indent=indent, break_on_hyphens=False)


def _defaults() -> str:
    """The last part of the help: the defaults of every task."""
    column, lines = _column(), ["defaults:"]
    for name, task in TASKS.items():
        config = TrainConfig.for_task(name)
        values = {key: getattr(config, key) for key in (*(o.name for o in task.declares), *_DEFAULTS)}
        said = [f"{key} {value}" for key, value in values.items() if value not in (None, False)]
        indent = " " * (2 + column)
        lines.append(_filled(f"  {name:<{column}}{', '.join(said)}", indent))
        lines += _other_defaults(name, indent)
    common = ", ".join(f"{key} {getattr(config, key)}" for key in _COMMON)
    lines.append(_filled(f"  {'all':<{column}}{common}", " " * (2 + column)))
    return "\n".join(lines).replace("_", "-")


def _other_defaults(task: str, indent: str) -> list[str]:
    """The defaults that depend on the value of another option, such as the network's."""
    usual, lines = asdict(TrainConfig.for_task(task)), []
    for option in TASKS[task].declares:
        for choice in option.choices:
            other = asdict(TrainConfig.for_task(task, **{option.name: choice}))
            said = [
                f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in other.items()
                if value != usual[key] and key != option.name
            ]
            if said:
                text = f"{indent}with {_flag(option.name)} {choice}: {', '.join(said)}"
                lines.append(_filled(text, indent + "  "))
    return lines


def run(arguments: argparse.Namespace) -> int:
    """Train as the command line asks; returns the exit status."""
    try:
        import filelock  # noqa: F401
        import matplotlib  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        message = f"train needs {error.name}: pip install 'projunn[train]'"
        raise RuntimeError(message) from error
    from projunn.training.run import Run, alone_in

    options = vars(arguments).copy()
    task, out, resume = (options.pop(name) for name in ("task", "out", "resume"))
    del options["run"]
    if resume is not None:
        given = [
            name for name, value in {**options, "task": task, "out": out}.items() if value is not None
        ]
        extra = sorted(set(given) - set(FOLLOWED))
        if extra:
            raise ValueError(f"resume: cannot be combined with {', '.join(extra)}")
        TrainConfig.load(resume / "config.json")  # before a lock is in a folder that holds no run
        with alone_in(resume):
            resumed = Run.resume(resume, **{name: options[name] for name in FOLLOWED})
            _say_if_spent(resumed)
            return _trained(resumed)
    if task is None:
        raise ValueError(f"task: give one of {', '.join(TASKS)}, or --resume DIR")
    started = Run(TrainConfig.for_task(task, **options), out or Path("runs"))
    started.folder = out or _new_folder(task)
    return _trained(started)


def _say_if_spent(run: "Run") -> None:
    """Say that there is nothing to train where the budget of every model is spent already."""
    if not all(learner.finished for learner in run.learners) or run.learners[0].diverged:
        return
    if run.config.steps is not None:
        step = max(learner.step for learner in run.learners)
        print(f"already at step {step}: give --steps above that to train on")
    else:
        seconds = max(learner.seconds for learner in run.learners)
        print(f"already at {seconds:.1f} s of training: give --seconds above that to train on")


def _trained(run: "Run") -> int:
    """Train; returns the exit status."""
    from projunn.training.run import train

    train(run)
    if run.stopped_by is not None:
        return of_signal(run.stopped_by)
    return FAILED if run.learners[0].diverged else 0


def _new_folder(task: str) -> Path:
    """A folder that no other run has: of two runs that start in one second, the second gets a number."""
    name = f"{task}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in itertools.count(1):
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError("there are always more numbers")
