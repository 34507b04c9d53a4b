"""``python -m tests.ptx``: the checks that kernels pass on a GPU before their first use, on PTX here."""

import argparse
import importlib
import os
import pkgutil
import sys
import time
from itertools import product

import torch

import projunn_kernels
from projunn_kernels import launching, selfcheck
from projunn_kernels.configs.closed_form import candidates, closed_form
from projunn_kernels.configs.kernel import KERNELS
from projunn_kernels.tuning.binaries import ARCHITECTURES
from tests.ptx.machine import Machine, Schedule

SCHEDULES = {"together": Schedule(), "warps": Schedule(32), "descending": Schedule(32, descending=True)}

EXECUTED = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_120"]  # the products of sm_100 are others (tcgen05)


def checks(architecture: str, names: list[str] | None = None, every_tile: bool = False) -> list[tuple]:
    """Every check of the kernels, as the arguments of `projunn_kernels.selfcheck._check`.

    Args:
        architecture: for which they are compiled.
        names: those of the operations; all by default.
        every_tile: with each configuration that is tried by tuning, not only the default.
    """
    for module in pkgutil.walk_packages(projunn_kernels.__path__, "projunn_kernels."):
        if ".tuning" not in module.name:
            importlib.import_module(module.name)
    found: dict[str, tuple] = {}
    for name, kernel in sorted(KERNELS.items()):
        for problem in kernel.compiled if not names or name in names else ():
            device = ARCHITECTURES[architecture]
            configs = candidates(problem, device) if every_tile else [closed_form(problem, device)]
            for config, variant in product(configs, kernel.variants_of(problem)):
                small = selfcheck.smaller(kernel, problem, config)
                found.setdefault(f"{small} {config} {variant}", (kernel, small, config, variant))
    return list(found.values())


def check(check: tuple, architecture: str, order: Schedule) -> tuple[str, dict[str, str]]:
    """What is wrong with the results of a check, and its races."""
    machine = Machine(architecture, order)
    with launching.intercepted(machine):
        verdict, _ = selfcheck._check(*check, torch.device("cpu"))
    return verdict.problem or ("" if machine.launches else "nothing was launched"), machine.races


def main() -> int:
    """1 if a check failed or found a race."""
    parser = argparse.ArgumentParser(prog="python -m tests.ptx", description=__doc__)
    parser.add_argument("--arch", default="sm_90", choices=EXECUTED)
    parser.add_argument("--op", nargs="*", help="the operations whose kernels are checked (all)")
    parser.add_argument("--tiles", action="store_true", help="all that tuning tries, not the default")
    parser.add_argument("--every", type=int, default=1, help="of all variants, every so many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument(
        "--order", nargs="*", default=["together"], choices=SCHEDULES, help="of the threads"
    )
    args = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        parser.error("unset TRITON_INTERPRET: interpreted kernels cannot be compiled")
    chosen = checks(args.arch, args.op, args.tiles)[args.first :: args.every]
    if not chosen:
        parser.error(f"op: got {args.op}, wanted the names of kernels that have problems to compile")
    started, failed = time.perf_counter(), 0
    for place, one in enumerate(chosen):
        for order in args.order:
            problem, races = check(one, args.arch, SCHEDULES[order])
            for said in [problem] * bool(problem) + [f"{name}: {race}" for name, race in races.items()]:
                failed += 1
                print(f"{one[1]} {one[2]} {one[3]}, {order}: {said}", flush=True)
        if sys.stdout.isatty() or place % 50 == 49 or place + 1 == len(chosen):
            print(
                f"{place + 1} of {len(chosen)}, {failed} failed, {time.perf_counter() - started:.0f} s",
                flush=True,
            )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
