"""The command line: ``projunn train TASK``, ``projunn autotune``, ``projunn info``."""

import argparse
import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

import torch

from projunn.training import command
from projunn_kernels.backends import chosen_backend, interpreting, triton_installed
from projunn_kernels.configs import choice as tuning
from projunn_kernels.configs import tables
from projunn_kernels.configs.closed_form import problems_of, standard_problems, tuned
from projunn_kernels.configs.problem import Problem, device_of

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
    command.add_command(commands)
    _add_autotune(commands)
    info = commands.add_parser("info", help="versions, devices and the backend in force")
    info.set_defaults(run=_info)
    return parser


def _add_autotune(commands: Any) -> None:
    tune = commands.add_parser(
        "autotune",
        help="find the fastest kernel configurations for this GPU",
        description="Time the configurations of the Triton kernels on this GPU and keep the fastest in "
        "its table in the user's cache (PROJUNN_CACHE overrides where). Ctrl-C keeps what is done.",
    )
    tune.set_defaults(run=_autotune)
    tune.add_argument("--op", type=_words, metavar="A,B", help=f"of {', '.join(tuned())}; default: all")
    tune.add_argument(
        "--shapes",
        type=_words,
        metavar="BxMxN,MxN",
        help="matrices a launch, rows, columns; default: a standard list",
    )
    tune.add_argument("--rank", type=_words, metavar="K,L", help="with --shapes; default: 1")
    tune.add_argument("--dtype", choices=("real", "complex"), help="default: both")
    tune.add_argument("--seconds", type=float, default=float("inf"), metavar="X", help="time limit")
    tune.add_argument("--missing", action="store_true", help="only what no table has yet")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _problems(arguments: argparse.Namespace) -> list[Problem]:
    operations = arguments.op or tuned()
    for name in operations:
        if name not in tuned():
            raise ValueError(f"op: got {name!r}, wanted some of {', '.join(tuned())}")
    kinds = [arguments.dtype == "complex"] if arguments.dtype else [False, True]
    if arguments.shapes is None:
        if arguments.rank is not None:
            raise ValueError("rank: needs --shapes")
        found = standard_problems()
        return [p for p in found if p.operation in operations and p.pairs in kinds]
    ranks = [_sizes("rank", rank, 1)[0] for rank in arguments.rank or ("1",)]
    if max(ranks) > 8:
        raise ValueError(f"rank: got {max(ranks)}, wanted at most 8: wider steps use library functions")
    shapes = []
    for shape in arguments.shapes:
        *blocks, m, n = _sizes("shapes", shape, 2, 3)
        shapes.append((blocks[0] if blocks else 1, m, n))
    found = problems_of(operations, shapes, ranks, kinds)
    if not found:
        raise ValueError(
            "shapes: no operation has these: fused_step needs m <= n <= 128, ranks fit in m"
        )
    return found


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


def _autotune(arguments: argparse.Namespace) -> int:
    problems = _problems(arguments)
    if not triton_installed():
        raise RuntimeError("autotune needs triton: pip install 'projunn[triton]'")
    if interpreting():
        raise RuntimeError("autotune: TRITON_INTERPRET is set, there is nothing to time")
    if not torch.cuda.is_available():
        raise RuntimeError("autotune needs a GPU, and PyTorch sees none")
    from projunn.tuning_display import show
    from projunn_kernels.tuning.autotune import autotune, cold_time

    device = torch.device("cuda", torch.cuda.current_device())
    properties = device_of(device)
    if arguments.missing:
        known = {bucket for _, configs in tables.tables_of(properties) for bucket in configs}
        problems = [p for p in problems if p.bucket not in known]
    results = autotune(problems, device, properties, cold_time, seconds=arguments.seconds)
    finished = show(results, len({p.bucket for p in problems}))
    print(f"table: {tables.cache_folder() / tables.table_name(properties.name)}")
    return 0 if finished else _INTERRUPTED


def _info(arguments: argparse.Namespace) -> int:
    backend, chosen_by = chosen_backend()
    rows = [("python", platform.python_version())]
    rows += [(name, _version(name)) for name in ("projunn", "torch", "triton")]
    rows.append(("cpu", f"{platform.machine()}, {torch.get_num_threads()} threads"))
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows.append(("gpu", ", ".join(gpus) or "none"))
    rows.append(("backend", f"{backend} ({chosen_by})"))
    rows.append(("tables", str(tables.cache_folder())))
    for i, gpu in enumerate(gpus):
        for operation, reason in tuning.in_force(device_of(torch.device("cuda", i))).items():
            rows.append((operation, f"{gpu}: {reason}"))
    if not gpus:
        rows.append(("configs", "closed form: there is no GPU to have a table for"))
    width = 2 + max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}{value}")
    return 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
