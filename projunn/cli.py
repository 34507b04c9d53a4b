"""The command line: ``projunn train``, ``projunn reproduce``, ``projunn autotune``, ``projunn info``."""

import argparse
import importlib.metadata
import os
import platform
import signal
import sys
from collections.abc import Sequence

import torch

from projunn import autotuning, interruption
from projunn.exit_status import INTERRUPTED
from projunn.reproduce import command as reproduction
from projunn.training import command
from projunn_kernels import arrays, selfcheck
from projunn_kernels.backends import chosen_backend
from projunn_kernels.configs import choice as tuning
from projunn_kernels.configs import tables
from projunn_kernels.configs.problem import device_of
from projunn_kernels.convolution import ways


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process) and return its exit status.

    It is 0 if all went well, 2 if the command cannot be carried out (an error is printed in one line),
    130 after Ctrl-C and 143 after SIGTERM.  Options that cannot be parsed end in ``SystemExit`` with
    status 2, as argparse has it.  With the variable ``PROJUNN_TRACEBACK`` errors are raised.
    """
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
        interruption.say(signal.SIGINT)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="projunn", description="Train unitary and orthogonal weights by low-rank updates (projUNN)."
    )
    parser.add_argument("--version", action="version", version=_version("projunn"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command.add_command(commands)
    reproduction.add_command(commands)
    autotuning.add_command(commands)
    info = commands.add_parser(
        "info", help="show versions, devices, the backend in force and the tables of tile sizes"
    )
    info.set_defaults(run=_info)
    return parser


def _info(arguments: argparse.Namespace) -> int:
    backend, chosen_by = chosen_backend()
    rows = [("python", platform.python_version())]
    rows += [(name, _version(name)) for name in ("projunn", "torch")]
    rows += [("triton", tables.triton_version() or "not installed"), ("numpy", _version("numpy"))]
    rows.append(("cpu", f"{platform.machine()}, {torch.get_num_threads()} threads"))
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows.append(("gpu", ", ".join(gpus) or "none"))
    rows.append(("backend", f"{backend} ({chosen_by})"))
    rows.append(("tables", _said_of_cache() + ("" if tuning.uses_tables() else " (off)")))
    if not gpus:
        rows += [("table", found.described(None)) for found in tuning.found_tables(None)]
        rows.append(("configs", "closed form: there is no GPU to have a table for"))
    devices = {device_of(torch.device("cuda", i)): None for i in range(len(gpus))}
    for device in devices:
        rows += [("table", found.described(device)) for found in tuning.found_tables(device)]
        reasons = tuning.in_force(device).items()
        rows += [(operation, f"{device.name}: {reason}") for operation, reason in reasons]
    steps = "NumPy" if arrays.available() else "PyTorch, in 1.3 to 2 times the time that NumPy 2 takes"
    rows.append(("steps", f"on a CPU, of matrices of up to {arrays.SMALL:,} numbers by {steps}"))
    rows += [("convolution", way) for way in ways()]
    rows.append(("self-check", _said_of_verdicts()))
    rows += [("distrusted", one.said) for one in selfcheck.verdicts() if one.problem]
    width = 2 + max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}{value}")
    return 0


def _said_of_cache() -> str:
    """The folder of the user's tables, or why there is none."""
    try:
        return str(tables.cache_folder())
    except OSError as error:
        return str(error)


def _said_of_verdicts() -> str:
    """How many variants of kernels have been checked, and how many failed."""
    every = selfcheck.verdicts()
    failed = sum(bool(one.problem) for one in every)
    return f"{selfcheck.mode()}: {len(every)} variants of kernels checked, {failed} failed"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
