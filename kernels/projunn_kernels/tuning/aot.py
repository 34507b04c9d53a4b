"""``python -m projunn_kernels.tuning.aot``: the kernels as machine code, without a GPU.

Every kernel is compiled for NVIDIA and AMD architectures by the compiler that a launch would use, with
the argument types, constants, options and divisibilities of that launch.  `aot_problems` says what is
launched, `binaries` compiles it and reads the binary.  Launches that agree in all this are one binary.

A spill, shared memory beyond what the architecture has, or a loop that forgets (`carried`) is a failure.
Rows of an earlier run in ``--out`` are kept where neither kernel, launch nor Triton has changed since,
so that a run that was cut off can go on.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from projunn_kernels.configs.closed_form import candidates, closed_form
from projunn_kernels.configs.kernel import KERNELS
from projunn_kernels.configs.problem import Config, Problem
from projunn_kernels.tuning.aot_problems import Launch, launches_of, problems, tiny_problems, variants
from projunn_kernels.tuning.binaries import (
    ARCHITECTURES,
    Binary,
    binary,
    compiled,
    key,
    with_sizes_of_one,
)
from projunn_kernels.tuning.carried import flow, forgotten

STREAMING = (
    "adjoint_product_kernel",
    "product_kernel",
    "rotate_rows_kernel",
    "rank_update_kernel",
    "plane_step_kernel",
    "unit_product_kernel",
    "plane_rows_kernel",
)


def binaries(
    architectures: tuple[str, ...],
    launched: Iterable[tuple[Problem, dict[str, Any]]],
    only: str = "",
    every_candidate: bool = False,
) -> list[Binary]:
    """The binaries of problems and variants, one architecture after the other.

    Tiles are those of the closed form or, with ``every_candidate``, all that the autotuner tries.
    """
    found: dict[str, dict[Binary, None]] = {architecture: {} for architecture in architectures}
    for problem, variant in launched:
        if only not in problem.operation:
            continue
        made: dict[Config, list[Launch]] = {}
        for architecture in architectures:
            device = ARCHITECTURES[architecture]
            if not KERNELS[problem.operation].exists(problem, device):
                continue
            first = closed_form(problem, device)
            for config in candidates(problem, device) if every_candidate else [first]:
                if config not in made:
                    made[config] = launches_of(problem, config, **variant)
                said = [name if v is True else str(v) for name, v in variant.items() if v]
                why = " ".join([problem.bucket, *said, f"{config.rows}x{config.columns}"])
                for kernel, args, constants in made[config]:
                    found[architecture][binary(kernel, args, constants, architecture, why)] = None
    return [one for each in found.values() for one in each]


def _compiled_or_why(what: Binary) -> dict[str, Any]:
    try:
        row = compiled(what)
        row["fails"] = row["fails"] or "; ".join(forgotten(what))
    except Exception as error:
        text = (str(error).splitlines() or [""])[-1]
        row = {
            "kernel": what.kernel,
            "architecture": what.architecture,
            "problem": what.why,
            "fails": f"{type(error).__name__}: {text}",
        }
    return row | {"key": key(what)}


def _good_rows(file: Path) -> dict[str, dict[str, Any]]:
    """The rows of an earlier run that did not fail, by key."""
    if not file.exists():
        return {}
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {row["key"]: row for row in rows if not row["fails"]}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m projunn_kernels.tuning.aot", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--full", action="store_true", help="every candidate of the autotuner: hours")
    parser.add_argument("--tiny", action="store_true", help="each kernel once: seconds")
    parser.add_argument("--variants", action="store_true", help="every variant of every kernel")
    parser.add_argument("--carried", action="store_true", help="loops that forget, sizes of 1 that fail")
    parser.add_argument("--arch", default=",".join(ARCHITECTURES), help="default: all seven")
    parser.add_argument("--op", default="", help="operations whose name holds this")
    parser.add_argument("--every", type=int, default=1, help="compile each N-th binary only")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="file that gets a JSON row for each binary")
    parser.add_argument("--table", type=Path, help="file that gets the table at the end")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        print("aot: unset TRITON_INTERPRET: interpreted kernels cannot be compiled", file=sys.stderr)
        return 2
    import triton

    architectures = tuple(arguments.arch.split(","))
    unknown = set(architectures) - set(ARCHITECTURES)
    if unknown:
        parser.error(
            f"arch: got {', '.join(sorted(unknown))}, wanted some of {', '.join(ARCHITECTURES)}"
        )
    if not any(arguments.op in name for name in KERNELS):
        parser.error(f"op: got {arguments.op!r}, wanted a part of one of {', '.join(sorted(KERNELS))}")
    if arguments.carried:
        return _check_carried(binaries(architectures[:1], variants(), arguments.op))
    if arguments.tiny or arguments.variants:
        launched = tiny_problems() if arguments.tiny else variants()
    else:
        launched = problems(arguments.full)
    work = binaries(architectures, launched, arguments.op, arguments.full)[:: arguments.every]
    known = _good_rows(arguments.out) if arguments.out else {}
    kept = [known[key(one)] for one in work if key(one) in known]
    todo = [one for one in work if key(one) not in known]
    print(f"triton {triton.__version__}: {len(work)} binaries, {len(kept)} of them known", flush=True)
    rows = []
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(arguments.out.open("w")) if arguments.out else None
        new: Iterable[dict[str, Any]] = map(_compiled_or_why, todo)
        if arguments.processes > 1 and len(todo) > 1:
            pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(arguments.processes))
            new = pool.imap_unordered(_compiled_or_why, todo)
        begun = time.monotonic()
        for row in itertools.chain(kept, new):
            rows.append(row)
            if row["fails"]:
                print(f"{row['architecture']} {row['kernel']} {row['problem']}: {row['fails']}")
            if out is not None:
                out.write(json.dumps({"triton": triton.__version__} | row) + "\n")
                out.flush()
            if len(rows) > len(kept) and len(rows) % 50 == 0:
                print(f"{len(rows)} of {len(work)}, {time.monotonic() - begun:.0f} s", flush=True)
    failures = sum(bool(row["fails"]) for row in rows)
    total = f"{len(rows)} binaries, {failures} failed"
    print(f"\n{table(rows)}\n\n{total}")
    if arguments.table:
        arguments.table.write_text(f"triton {triton.__version__}\n\n{table(rows)}\n\n{total}\n")
    return 1 if failures else 0


def _check_carried(work: list[Binary]) -> int:
    """One launch for each flow of control, and one of sizes of 1; prints what the loops forget."""
    flows = {flow(one): one for one in work}
    smallest = {one.kernel: with_sizes_of_one(one) for one in work}
    lines = [line for one in (*flows.values(), *smallest.values()) for line in forgotten(one)]
    print("\n".join([*lines, f"{len(smallest)} kernels, {len(flows)} variants, {len(lines)} forgotten"]))
    return 1 if lines else 0


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: for each kernel and architecture the most registers, spills and shared memory."""
    lines = [
        "| kernel | architecture | binaries | registers | spilled bytes | shared bytes "
        "| 128-bit bytes |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["kernel"], row["architecture"]), []).append(row)
    order = list(ARCHITECTURES)
    for kernel, architecture in sorted(groups, key=lambda key: (key[0], order.index(key[1]))):
        group = groups[kernel, architecture]
        read = [row for row in group if "registers" in row]
        most = [max((row[key] for row in read), default=0) for key in ("registers", "spilled", "shared")]
        wide = "-"
        if kernel in STREAMING and read:
            shares = [row["wide"] for row in read]
            wide = f"{min(shares):.0%} to {max(shares):.0%}"
        cells = [kernel.removesuffix("_kernel"), architecture, len(group), *most, wide]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
