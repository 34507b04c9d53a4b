"""The command ``projunn autotune``: its options, what they ask to be tuned, and the run."""

import argparse
import os
from typing import Any

import torch

from projunn import interruption
from projunn.arguments import words
from projunn.exit_status import INTERRUPTED
from projunn.model_problems import IMAGES, LENGTH, SEQUENCES, load_model, model_problems
from projunn.tuning_display import Board
from projunn_kernels.backends import interpreting, triton_installed
from projunn_kernels.configs import choice as tuning
from projunn_kernels.configs import tables
from projunn_kernels.configs.closed_form import problems_of, standard_problems, tuned
from projunn_kernels.configs.problem import Device, Problem, device_of
from projunn_kernels.tuning.plan import Plan, duration


def add_command(commands: Any) -> None:
    """Add ``autotune`` to the commands of the parser."""
    tune = commands.add_parser(
        "autotune",
        help="find the fastest kernel configurations for this GPU",
        description="Time the configurations of the Triton kernels on this GPU and keep those that beat "
        "the default, a closed form, by 2 %. They are written to this GPU's table in the user's cache "
        "(a folder that PROJUNN_CACHE overrides). Ctrl-C keeps what is done.",
    )
    tune.set_defaults(run=run)
    what = tune.add_argument_group("what to tune; default: a standard list")
    what.add_argument(
        "--model",
        metavar="MODULE:FUNCTION",
        help="tune what the layers of this model and its optimizer's step run; the function returns a"
        " module, or (module, optimizer)",
    )
    sizes = f"default: {SEQUENCES}, of images {IMAGES}"
    what.add_argument(
        "--batch", type=int, metavar="N", help=f"batch size of the model's layers; {sizes}"
    )
    what.add_argument(
        "--length", type=int, metavar="T", help=f"time steps of its recurrent layers; default: {LENGTH}"
    )
    what.add_argument(
        "--standard", action="store_true", help="go on with the standard list after the model's problems"
    )
    what.add_argument(
        "--shapes",
        type=words,
        metavar="BxMxN,MxN",
        help="tune for these: matrices in a launch (default: 1), rows, columns",
    )
    what.add_argument(
        "--rank",
        type=words,
        metavar="K,L",
        help="ranks of steps, with --shapes (default: 1) or --model (default: the optimizer's, or 1)",
    )
    what.add_argument(
        "--op", type=words, metavar="A,B", help=f"some of {', '.join(tuned())}; default: all"
    )
    what.add_argument("--dtype", choices=("real", "complex"), help="kind of numbers; default: both")
    what.add_argument("--missing", action="store_true", help="tune only what no table in use has yet")
    how = tune.add_argument_group("run")
    how.add_argument("--seconds", type=float, default=float("inf"), metavar="X", help="time limit")
    how.add_argument(
        "--processes", type=int, metavar="N", help="processes that compile; default: one for each core"
    )


def run(arguments: argparse.Namespace) -> int:
    """Tune as the command line asks; returns the exit status."""
    _check(arguments)
    problems = [] if arguments.model else _problems(arguments)
    model = load_model(arguments.model) if arguments.model else None
    if not triton_installed():
        raise RuntimeError("autotune needs triton: pip install 'projunn[triton]'")
    if interpreting():
        raise RuntimeError("autotune: TRITON_INTERPRET is set, there is nothing to time")
    if not torch.cuda.is_available():
        raise RuntimeError("autotune needs a GPU, and PyTorch sees none")
    tables.check_writable()
    device = torch.device("cuda", torch.cuda.current_device())
    if model is not None:
        problems = _of_model(arguments, *model, device)
        del model  # its memory is free for the problems
        torch.cuda.empty_cache()
    return _tune(arguments, problems, device, device_of(device))


def _tune(
    arguments: argparse.Namespace, problems: list[Problem], device: torch.device, properties: Device
) -> int:
    from projunn_kernels.tuning.autotune import autotune
    from projunn_kernels.tuning.compilers import Compilers
    from projunn_kernels.tuning.timing import cold_time

    if arguments.missing:
        known = tuning.tuned_buckets(properties)
        problems = [p for p in problems if p.bucket not in known]
    processes = _cores() if arguments.processes is None else arguments.processes
    plan = Plan(problems, properties, processes)
    print(announcement(plan, arguments.seconds))
    if not tuning.uses_tables():
        print("PROJUNN_TABLES=off: the table will be written, but not used")
    board = Board(len(plan.problems))
    interruption.raise_on_interrupt()
    with Compilers(processes) as compilers:
        results = autotune(
            plan,
            device,
            properties,
            cold_time,
            seconds=arguments.seconds,
            compilers=compilers,
            tell=board.tell,
        )
        finished = board.show(results)
    print(f"table: {tables.cache_folder() / tables.table_name(properties.name)}")
    return 0 if finished else INTERRUPTED


def announcement(plan: Plan, seconds: float) -> str:
    """The line that says what is going to be done, and how long that will take."""
    text = f"{len(plan.problems)} buckets, {plan.candidates} configurations,"
    text += f" {plan.processes} processes that compile: about {duration(plan.seconds_left)}"
    if seconds < plan.seconds_left:
        text += f", and the limit is {duration(seconds)}"
    return text


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check(arguments: argparse.Namespace) -> None:
    """Raise ValueError if an option is out of range, or options do not go together."""
    for name in ("op", "rank", "shapes"):  # as a variable of the shell that is not set
        if getattr(arguments, name) == ():
            raise ValueError(f"{name}: got none, wanted at least one")
    for name in arguments.op or ():
        if name not in tuned():
            raise ValueError(f"op: got {name!r}, wanted some of {', '.join(tuned())}")
    for name in ("batch", "length", "processes"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}: got {value}, wanted a positive integer")
    if not arguments.seconds > 0:
        raise ValueError(f"seconds: got {arguments.seconds}, wanted a positive number")
    if arguments.model is not None and arguments.shapes is not None:
        raise ValueError("shapes: cannot be combined with --model, which has its own")
    if arguments.model is None:
        for name in ("batch", "length", "standard"):
            if getattr(arguments, name):
                raise ValueError(f"{name}: needs --model")
        if arguments.rank is not None and arguments.shapes is None:
            raise ValueError("rank: needs --shapes or --model")


def _wanted(arguments: argparse.Namespace, problems: list[Problem]) -> list[Problem]:
    """Those problems whose operation and kind of numbers were asked for."""
    operations = arguments.op or tuned()
    kinds = [arguments.dtype == "complex"] if arguments.dtype else [False, True]
    return [p for p in problems if p.operation in operations and p.pairs in kinds]


def _problems(arguments: argparse.Namespace) -> list[Problem]:
    """The problems to tune for if no model is given."""
    if arguments.shapes is None:
        return _wanted(arguments, standard_problems())
    ranks = [_sizes("rank", rank, 1)[0] for rank in arguments.rank or ("1",)]
    if max(ranks) > 8:
        raise ValueError(f"rank: got {max(ranks)}, wanted at most 8: wider steps use library functions")
    shapes = []
    for shape in arguments.shapes:
        *blocks, m, n = _sizes("shapes", shape, 2, 3)
        shapes.append((blocks[0] if blocks else 1, m, n))
    found = _wanted(arguments, problems_of(tuned(), shapes, ranks, [False, True]))
    if not found:
        raise ValueError(
            "shapes: no operation has these: fused_step needs m <= n <= 128 (fewer for rank > 1), and a"
            " rank of at most m"
        )
    return found


def _of_model(
    arguments: argparse.Namespace, model: Any, optimizer: Any, device: torch.device
) -> list[Problem]:
    """The problems that the model runs, and then the standard list if it is asked for."""
    found = model_problems(
        model,
        optimizer,
        device,
        ranks=[_sizes("rank", rank, 1)[0] for rank in arguments.rank or ()],
        batch=arguments.batch,
        length=LENGTH if arguments.length is None else arguments.length,
    )
    found = _wanted(arguments, found)
    if not found:
        raise ValueError("model: it runs none of the operations asked for by --op and --dtype")
    return found + (_wanted(arguments, standard_problems()) if arguments.standard else [])


def _sizes(name: str, text: str, *lengths: int) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split("x"))
    except ValueError:
        numbers = ()
    if len(numbers) not in lengths or min(numbers) < 1:
        raise ValueError(
            f"{name}: got {text!r}, wanted {' or '.join('x'.join('N' * n) for n in lengths)}"
        )
    return numbers
