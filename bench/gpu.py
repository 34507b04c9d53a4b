"""``make gpu``: checks, autotune, benchmarks on a machine with a GPU and nothing but torch and triton.

Runs in place: no network, no installation, no virtual environment.  One folder gets all that is to be
committed: ``<gpu>.json`` (the tuned table, for ``kernels/configs/``), ``checks.jsonl``, ``gpu.jsonl``
(result rows), ``log.txt``, and with ``--sanitizer`` its log.

    checks      each operation against float64 PyTorch on the CPU, by float32 PyTorch's error
    autotune    the standard problems, rank 1 first, until its time is up
    bench       the step of a large weight and of banks, against a copy of the same run, PyTorch and SGD;
                linear layers against unconstrained ones, RNNs and convolutions against cuDNN
                (`bench.gpu_linear`, `bench.gpu_recurrence`, `bench.gpu_conv`)

``--dry`` runs every stage at tiny sizes on the CPU, in the interpreter: whether the script works.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

import projunn
from bench import gpu_conv, gpu_linear, gpu_recurrence
from bench.gpu_checks import cases, haar, run_checks
from bench.gpu_machine import Machine
from bench.records import Results
from projunn_kernels.backends import interpreting

CHECK_SECONDS, TUNE_SECONDS, BENCH_SECONDS = 120.0, 150.0, 200.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-results")))
    parser.add_argument("--sanitizer", action="store_true", help="a small run under compute-sanitizer")
    parser.add_argument("--only", choices=("checks", "small-checks", "autotune", "bench"))
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU: times mean nothing")
    arguments = parser.parse_args()
    if not arguments.dry and not torch.cuda.is_available():
        print("make gpu: PyTorch sees no GPU", file=sys.stderr)
        return 2
    if arguments.dry and not interpreting():  # to be said before triton is imported
        command = [sys.executable, "-m", "bench.gpu", *sys.argv[1:]]
        environment = os.environ | {"TRITON_INTERPRET": "1"}
        return subprocess.run(command, env=environment, check=False).returncode
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    os.environ["PROJUNN_CACHE"] = str(out.resolve())  # the table belongs to what is recorded
    on = Machine(dry=arguments.dry)
    stages: dict[str, Callable[[Machine, Path], bool]] = {
        "checks": checks,
        "autotune": tune,
        "bench": bench,
    }
    if arguments.only == "small-checks":
        return 0 if run_checks(on, list(cases(on, small=True)), None, 60) else 1
    passed = True
    log = (out / "log.txt").open("a")
    for name, stage in stages.items():
        if arguments.only not in (None, name):
            continue
        started, text = time.monotonic(), io.StringIO()
        print(f"== {name}", flush=True)
        try:
            with redirect_stdout(_Tee(sys.stdout, text)):
                good = stage(on, out)
        except Exception:  # the stages after it still run
            good = False
            text.write(traceback.format_exc())
            traceback.print_exc()
        passed &= good
        line = f"== {name}: {'ok' if good else 'FAILED'} in {time.monotonic() - started:.0f} s"
        print(line, flush=True)
        log.write(f"{text.getvalue()}{line}\n")
        log.flush()
    if arguments.sanitizer:
        passed &= _sanitize(out)
    return 0 if passed else 1


class _Tee(io.TextIOBase):
    def __init__(self, *streams: Any) -> None:
        self._streams = streams

    def write(self, text: str) -> int:
        for stream in self._streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in self._streams:
            stream.flush()


def _sanitize(out: Path) -> bool:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        print("compute-sanitizer is not on the PATH: left out")
        return True
    command = [
        tool,
        "--error-exitcode",
        "9",
        sys.executable,
        "-m",
        "bench.gpu",
        "--only",
        "small-checks",
    ]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    except subprocess.TimeoutExpired:
        print("compute-sanitizer: out of time")
        return False
    (out / "sanitizer.txt").write_text((result.stdout + result.stderr)[-200_000:])
    print(f"compute-sanitizer: exit status {result.returncode}")
    return result.returncode == 0


def checks(on: Machine, out: Path) -> bool:
    return run_checks(on, list(cases(on, small=False)), out / "checks.jsonl", _limit(on, CHECK_SECONDS))


def _limit(on: Machine, seconds: float) -> float:
    return float("inf") if on.dry else seconds


def tune(on: Machine, out: Path) -> bool:
    if on.dry:
        return _tune_dry(on)
    from projunn.cli import main as projunn_command

    return projunn_command(["autotune", "--seconds", str(TUNE_SECONDS)]) == 0


def _tune_dry(on: Machine) -> bool:
    from projunn.tuning_display import show
    from projunn_kernels.configs.closed_form import tuned
    from projunn_kernels.configs.problem import Device, Problem
    from projunn_kernels.tuning.autotune import autotune

    problems = [Problem(operation, False, 1, 16, 16, 2) for operation in tuned()]
    found = list(autotune(problems, on.device, Device("dry run"), on.cold_time))
    return show(iter(found), len(problems)) and not any(result.failed for result in found)


def bench(on: Machine, out: Path) -> bool:
    from projunn_kernels.configs import choice as tuning

    tuning.forget()
    results, begun = Results(out, quick=on.dry), time.monotonic()
    for hidden in (6,) if on.dry else (190, 512):
        for nonlinearity, precision in (("relu", "highest"), ("relu", "high"), ("modrelu", "high")):
            torch.set_float32_matmul_precision(precision)
            title = f"training step of an RNN, {hidden} units, {nonlinearity}, {precision}"
            results.report("gpu", title, gpu_recurrence.rows(on, hidden, nonlinearity, seconds=2.0))
    torch.set_float32_matmul_precision("highest")
    sizes = [(16, 8)] if on.dry else [(n, r) for r in gpu_linear.ROWS for n in gpu_linear.SIZES]
    for n, count in sizes:
        found = []
        for precision in ("highest", "high"):
            found += gpu_linear.rows(on, n, count, precision, seconds=0.3)
        results.report("gpu_linear", f"training step of a linear layer, n = {n}, {count} rows", found)
        on.release()
    for layer in [(3, 4, 4)] if on.dry else gpu_conv.LAYERS:
        title = f"forward and backward, {layer[0]} to {layer[1]} channels at {layer[2]} x {layer[2]}"
        results.report("gpu_conv", title, gpu_conv.rows(on, *layer))
        on.release()
    shapes = [(n, n) for n in (1024, 2048, 4096, 8192, 16384)] + [(544, 64, 64), (144, 128, 128)]
    if on.dry:
        shapes = [(130, 130), (3, 5, 5)]
    for shape in shapes:
        for dtype in (torch.float32, torch.complex64):
            if time.monotonic() - begun > _limit(on, BENCH_SECONDS):
                print("out of time")
                return True
            complex_large = dtype.is_complex and shape[-1] == 16384
            if complex_large:  # peers and copies of 2 GiB matrices: left out, and said
                print(f"{shape} {dtype}: left out")
                continue
            results.report("gpu", f"step {shape} {dtype}, k=1", _rows(on, shape, dtype))
            on.release()
    return True


def _rows(on: Machine, shape: tuple[int, ...], dtype: torch.dtype) -> list[dict[str, Any]]:
    weight = projunn.UnitaryParameter(haar(on, *shape, dtype=dtype))
    gradient = torch.randn_like(weight.detach()) / shape[-1] ** 0.5
    weight.grad = gradient
    numbers = weight.numel() * 4
    source, target = weight.detach().clone(), torch.empty_like(weight.detach())
    plain = weight.detach().clone().requires_grad_()
    plain.grad = gradient
    ours = projunn.optim.SGD([weight], lr=1e-2)
    theirs = torch.optim.SGD([plain], lr=1e-4, foreach=True)

    def on_torch() -> None:
        with projunn.backend("torch"):
            ours.step()

    # read D (twice where it does not stay on chip), read and write W
    passes = 3 if len(shape) == 3 else 5
    cases: dict[str, tuple[Callable[[], object], float]] = {
        "copy": (lambda: target.copy_(source), 2),
        "projunn": (ours.step, passes),
        "projunn on torch": (on_torch, passes),
        "unconstrained SGD": (theirs.step, 3),
    }
    if not dtype.is_complex:
        try:
            from bench.peers import pogo

            cases["POGO"] = (pogo(source, gradient), passes)
        except ImportError:
            print("POGO is not installed: left out")
    rows, times = [], {}
    for name, (call, moved) in cases.items():
        try:
            times[name] = on.cold_time(call)
        except Exception as error:
            on.leave_out(f"{name} {shape} {dtype}", error)
            continue
        row = {"shape": str(shape), "dtype": str(dtype), "what": name, "ms": round(times[name], 5)}
        row["gb_per_s"] = round(moved * numbers / times[name] / 1e6, 1)
        rows.append(row)
    if "copy" in times:
        speed = 2 * numbers / times["copy"] / 1e6
        for row in rows:
            row["of_copy_bandwidth"] = round(row["gb_per_s"] / speed, 3)
            row["ratio_to_projunn"] = round(row["ms"] / times.get("projunn", float("nan")), 3)
    return rows


if __name__ == "__main__":
    sys.exit(main())
