"""``make gpu``: checks, autotune, benchmarks on a machine with a GPU and nothing but torch and triton.

Runs in place: no network, no installation, no virtual environment.  One folder gets all that is to be
committed: ``<gpu>.json`` (the tuned table, for ``kernels/configs/``), ``checks.jsonl``, ``gpu.jsonl``
(result rows), ``log.txt``, and with ``--sanitizer`` its log.

    checks      each operation against float64 PyTorch on the CPU, by float32 PyTorch's error
    autotune    the standard problems, rank 1 first, until its time is up
    bench       the step of a large weight and of banks, against a copy of the same run, PyTorch and SGD;
                convolutions against cuDNN (`bench.gpu_conv`)
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import projunn
from bench import gpu_conv, gpu_recurrence
from bench.records import Results

CHECK_SECONDS, TUNE_SECONDS, BENCH_SECONDS = 120.0, 150.0, 120.0
# Error against float64, as a multiple of that of PyTorch in float32, and a floor for lucky zeros.
FACTOR, FLOOR = 8.0, 2e-6


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-results")))
    parser.add_argument("--sanitizer", action="store_true", help="a small run under compute-sanitizer")
    parser.add_argument("--only", choices=("checks", "small-checks", "autotune", "bench"))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("make gpu: PyTorch sees no GPU", file=sys.stderr)
        return 2
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    os.environ["PROJUNN_CACHE"] = str(out.resolve())  # the table belongs to what is recorded
    stages: dict[str, Callable[[Path], bool]] = {"checks": checks, "autotune": tune, "bench": bench}
    if arguments.only == "small-checks":
        return 0 if _run_checks(list(_cases(small=True)), None, 60) else 1
    passed = True
    log = (out / "log.txt").open("a")
    for name, stage in stages.items():
        if arguments.only not in (None, name):
            continue
        started, text = time.monotonic(), io.StringIO()
        print(f"== {name}", flush=True)
        try:
            with redirect_stdout(_Tee(sys.stdout, text)):
                good = stage(out)
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


# -- checks -----------------------------------------------------------------------------------------


def checks(out: Path) -> bool:
    return _run_checks(list(_cases(small=False)), out / "checks.jsonl", CHECK_SECONDS)


def _run_checks(cases: list[tuple[str, Callable[[], float]]], file: Path | None, seconds: float) -> bool:
    """Each case returns its error in units of what is allowed: it passes up to 1."""
    begun, bad, done = time.monotonic(), 0, 0
    rows = []
    for name, case in cases:
        if time.monotonic() - begun > seconds:
            break
        torch.manual_seed(done)
        try:
            share = case()
            torch.cuda.synchronize()
            problem = "" if share <= 1 else f"error is {share:.3g} times what is allowed"
        except Exception as error:
            share, problem = float("nan"), f"{type(error).__name__}: {error}"
            traceback.print_exc(file=sys.stdout)
        done += 1
        bad += bool(problem)
        if problem:
            print(f"FAILED {name}: {problem}", flush=True)
        rows.append({"check": name, "share": share if share == share else None, "problem": problem})
    print(f"{done} of {len(cases)} checks run, {bad} failed")
    if file is not None:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return bad == 0


def _double(tensor: Tensor) -> Tensor:
    return tensor.cpu().to(torch.complex128 if tensor.is_complex() else torch.float64)


def _share(own: Tensor, plain: Tensor, exact: Tensor) -> float:
    """Error of ours, in units of FACTOR times the error of PyTorch in float32 plus the floor."""

    def error(values: Tensor) -> float:
        return (_double(values) - exact).abs().max().item()

    return error(own) / (FACTOR * error(plain) + FLOOR * max(1.0, exact.abs().max().item()))


def _haar(*shape: int, dtype: torch.dtype) -> Tensor:
    return projunn.init.haar_(torch.empty(shape, dtype=dtype)).cuda()


def _cases(small: bool) -> Iterator[tuple[str, Callable[[], float]]]:
    # what is captured and compiled first: the time limit cuts the many combinations after it
    for rule in ("SGD", "RMSprop", "AdamW"):
        for dtype in (torch.float32, torch.complex64):
            for shape in [(2, 16, 16)] if small else [(4, 64, 64), (2, 130, 130), (1, 1024, 1024)]:
                yield f"step {rule} {dtype} {shape}", _step_case(rule, shape, dtype, "plain")
                if small:
                    continue
                yield f"bad {rule} {dtype} {shape}", _step_case(rule, shape, dtype, "bad")
                yield f"graph {rule} {dtype} {shape}", _step_case(rule, shape, dtype, "graph")
                yield f"compile {rule} {dtype} {shape}", _step_case(rule, shape, dtype, "compile")
    shapes = [(2, 16, 16), (2, 33, 20)]
    if not small:
        shapes += [(3, 1, 1), (3, 5, 5), (3, 20, 33), (3, 64, 64), (3, 128, 128)]
        shapes += [(3, 130, 130), (1, 544, 544), (1, 1000, 1000), (1, 4096, 4096)]
    for k in (1, 2) if small else (1, 2, 3, 8):
        for dtype in (torch.float32, torch.complex64):
            for shape in shapes:
                if k > min(shape[1:]):
                    continue
                listed = (False, True) if shape[0] > 1 and shape[1] <= 130 else (False,)
                for retraction in ("exp", "polar", "cayley"):
                    for active in listed:
                        name = f"retract {retraction} k{k} {dtype} {shape} active={active}"
                        yield name, _retract_case(shape, k, dtype, retraction, active)
                yield f"factor k{k} {dtype} {shape}", _factor_case(shape, k, dtype)
                yield f"rank_update k{k} {dtype} {shape}", _rank_update_case(shape, k, dtype)
    yield from gpu_conv.check_cases(_share, small)


def _factors(shape: tuple[int, ...], k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    *batch, m, n = shape
    left = torch.randn(*batch, m, k, dtype=dtype, device="cuda") * (0.3 / (m * k) ** 0.5)
    right = torch.randn(*batch, n, k, dtype=dtype, device="cuda") / (n * k) ** 0.5 * 3
    return _haar(*shape, dtype=dtype), left, right


def _retract_case(
    shape: tuple[int, ...], k: int, dtype: torch.dtype, retraction: str, listed: bool
) -> Callable[[], float]:
    def case() -> float:
        from projunn.kernels import retract_

        weight, left, right = _factors(shape, k, dtype)
        exact = projunn.retract(_double(weight), _double(left), _double(right), retraction)
        with projunn.backend("torch"):
            plain = projunn.retract(weight, left, right, retraction)
        own, kept = weight.clone(), None
        if listed:
            kept = torch.arange(shape[0] - 1, 0, -1, device="cuda")  # all but the first, backwards
            left, right = left[kept], right[kept]
            exact[0], plain[0] = _double(weight[0]), weight[0]
        taken = retract_(own, left, right, retraction, kept)
        if not bool(taken.all()):
            return float("inf")
        if listed and not torch.equal(own[0], weight[0]):
            return float("inf")
        share = _share(own, plain, exact)
        if shape[-1] > 1024:  # a product in float64 on the CPU would take the time of all the rest
            return share
        return max(share, _share(own @ own.mH, plain @ plain.mH, exact @ exact.mH))

    return case


def _factor_case(shape: tuple[int, ...], k: int, dtype: torch.dtype) -> Callable[[], float]:
    def case() -> float:
        from projunn.kernels import factor

        weight, left, _ = _factors(shape, k, dtype)
        x, y = projunn.factorize(_double(weight), k, "subspace", basis=_double(left))
        with projunn.backend("torch"):
            xp, yp = projunn.factorize(weight, k, "subspace", basis=left)
        own = factor(weight, left)
        return _share(own[0] @ own[1].mH, xp @ yp.mH, x @ y.mH)

    return case


def _rank_update_case(shape: tuple[int, ...], k: int, dtype: torch.dtype) -> Callable[[], float]:
    def case() -> float:
        from projunn.kernels import rank_update_

        weight, left, right = _factors(shape, k, dtype)
        own = weight.clone()
        rank_update_(own, left, right)
        exact = _double(weight) + _double(left) @ _double(right).mH
        return _share(own, weight + left @ right.mH, exact)

    return case


def _step_case(rule: str, shape: tuple[int, ...], dtype: torch.dtype, way: str) -> Callable[[], float]:
    """A few optimizer steps: unitary afterwards, moved (or, after bad gradients, not at all)."""

    def case() -> float:
        weight = projunn.UnitaryParameter(_haar(*shape, dtype=dtype))
        before = weight.detach().clone()
        optimizer = getattr(projunn.optim, rule)([weight], lr=0.1)
        weight.grad = torch.randn_like(weight)
        if way == "bad":
            weight.grad.view(-1)[3] = float("nan")
            optimizer.step()
            first = before[0] if before.ndim > 3 or (before.ndim == 3 and len(shape) == 3) else before
            return 0.0 if torch.equal(weight.detach()[0] if len(shape) == 3 else weight, first) else 9.0
        if way == "compile":
            step = torch.compile(lambda: optimizer.step())  # the step itself runs eagerly
            for _ in range(3):
                step()
        else:
            for _ in range(3):
                optimizer.step()
        if way == "graph":
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                optimizer.step()
            before = weight.detach().clone()
            for _ in range(3):
                graph.replay()
        if torch.equal(weight.detach(), before):
            return float("inf")
        return float(projunn.unitarity_defect(projunn.matrix_view(weight)).max()) / 5e-6

    return case


# -- autotune and benchmarks ------------------------------------------------------------------------


def tune(out: Path) -> bool:
    from projunn.cli import main as projunn_command

    return projunn_command(["autotune", "--seconds", str(TUNE_SECONDS)]) == 0


def bench(out: Path) -> bool:
    from projunn.kernels import tuning

    tuning.forget()
    results, begun = Results(out), time.monotonic()
    for hidden in (190, 512):
        for nonlinearity, precision in (("relu", "highest"), ("relu", "high"), ("modrelu", "high")):
            torch.set_float32_matmul_precision(precision)
            title = f"training step of an RNN, {hidden} units, {nonlinearity}, {precision}"
            results.report("gpu", title, gpu_recurrence.rows(hidden, nonlinearity, seconds=2.0))
    torch.set_float32_matmul_precision("highest")
    for layer in gpu_conv.LAYERS:
        title = f"forward and backward, {layer[0]} to {layer[1]} channels at {layer[2]} x {layer[2]}"
        results.report("gpu_conv", title, gpu_conv.rows(*layer))
        torch.cuda.empty_cache()
    shapes = [(n, n) for n in (1024, 2048, 4096, 8192, 16384)] + [(544, 64, 64), (144, 128, 128)]
    for shape in shapes:
        for dtype in (torch.float32, torch.complex64):
            if time.monotonic() - begun > BENCH_SECONDS:
                print("out of time")
                return True
            complex_large = dtype.is_complex and shape[-1] == 16384
            if complex_large:  # peers and copies of 2 GiB matrices: left out, and said
                print(f"{shape} {dtype}: left out")
                continue
            results.report("gpu", f"step {shape} {dtype}, k=1", _rows(shape, dtype))
            torch.cuda.empty_cache()
    return True


def _rows(shape: tuple[int, ...], dtype: torch.dtype) -> list[dict[str, Any]]:
    from projunn.kernels.jit.autotune import cold_time

    weight = projunn.UnitaryParameter(_haar(*shape, dtype=dtype))
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
            times[name] = cold_time(call)
        except Exception as error:
            print(f"{name} {shape} {dtype}: {type(error).__name__}: {error}")
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
