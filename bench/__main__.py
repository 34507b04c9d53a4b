"""``python -m bench [NAME ...]``: run benchmarks, print tables, append to ``bench/results/``."""

import argparse
import importlib
import time
from pathlib import Path
from types import ModuleType

import torch

from bench.records import FOLDER, Results

NAMES = (
    "update",
    "linear",
    "sketch",
    "data_parallel",
    "recurrence",
    "conv",
    "stability",
    "drift",
    "soak",
    "factorization",
    "field",
    "convert",
    "gain",
    "rotations",
    "certified",
    "averages",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Run benchmarks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; default: all")
    parser.add_argument("--list", action="store_true", help="say what there is, run nothing")
    parser.add_argument("--quick", action="store_true", help="fewer cases and repetitions")
    parser.add_argument("--steps", type=int, help="of the soak; default: 15,625, of 64 matrices")
    parser.add_argument("--sgdg", type=Path, help="a file with the published SGDG, for rotations")
    parser.add_argument("--data", type=Path, help="a file of images, for certified and gain")
    parser.add_argument("--threads", type=int, help="CPU threads; default: PyTorch's choice")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder that gets the rows")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in NAMES:
            parser.error(f"no benchmark {name!r}; there are: {', '.join(NAMES)}")
    if arguments.list:
        for name in NAMES:
            summary = (_benchmark(name).__doc__ or "").splitlines()[0]
            print(f"{name:12} {summary}")
        return
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    for name in arguments.names or NAMES:
        options = {"soak": "steps", "rotations": "sgdg", "certified": "data", "gain": "data"}
        own = {options[name]: getattr(arguments, options[name])} if name in options else {}
        started = time.perf_counter()
        _benchmark(name).run(Results(arguments.results, quick=arguments.quick), arguments.quick, **own)
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)


def _benchmark(name: str) -> ModuleType:
    return importlib.import_module(f"bench.bench_{name}")


if __name__ == "__main__":
    main()
