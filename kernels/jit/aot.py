"""``python -m projunn.kernels.jit.aot``: the kernels as machine code, without a GPU.

Every kernel is compiled for NVIDIA and AMD architectures by the compiler that a launch would use, with
the argument types, constants and divisibilities of that launch: a recorder takes the kernels' place in
`projunn.kernels.jit.launch`, the launchers run on tensors that hold no memory, and what they would have
launched is compiled.  Launches that agree in all of this are one binary.

Read off each binary: registers and spilled bytes (ptxas' own report; the metadata of AMD code), shared
memory, and how many of the bytes of its global loads and stores go by 128-bit instructions.  A spill,
or shared memory beyond what the architecture has, is a failure.  (A stack frame is not: sin and cos in
float64 keep a table of 40 to 48 bytes there, for the reduction of large arguments.)
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from projunn.kernels import tuning
from projunn.kernels.tuning import Config, Device, Problem

# Bytes of shared memory a program may have.
ARCHITECTURES = {
    "sm_80": 166_912,
    "sm_86": 101_376,
    "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "sm_120": 101_376,
    "gfx942": 65_536,
}
STREAMING = (
    "adjoint_product_kernel",
    "product_kernel",
    "turn_rows_kernel",
    "rank_update_kernel",
    "plane_step_kernel",
)


@dataclass(frozen=True)
class Binary:
    """One compilation: a kernel of `launch`, its argument types, constants and options."""

    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]
    warps: int
    architecture: str
    why: str = field(compare=False, default="")


class _Recorder:
    """Stands where a kernel was, and notes what is launched."""

    def __init__(self, kernel: Any, launches: list[tuple[Any, tuple, dict]]) -> None:
        self._kernel, self._launches = kernel, launches

    def __getitem__(self, grid: object) -> Any:
        return lambda *args, **constants: self._launches.append((self._kernel, args, constants))


@contextlib.contextmanager
def recorded() -> Iterator[list[tuple[Any, tuple, dict]]]:
    """The launches that happen inside, noted instead of made."""
    from triton.runtime.jit import JITFunction

    from projunn.kernels.jit import launch, launch_spectral

    kernels = [
        (module, name, value)
        for module in (launch, launch_spectral)
        for name, value in vars(module).items()
        if isinstance(value, JITFunction)
    ]
    if not kernels:
        raise RuntimeError("aot: TRITON_INTERPRET is set, which leaves nothing to compile")
    launches: list[tuple[Any, tuple, dict]] = []
    for module, name, kernel in kernels:
        setattr(module, name, _Recorder(kernel, launches))
    try:
        yield launches
    finally:
        for module, name, kernel in kernels:
            setattr(module, name, kernel)


def launches_of(
    problem: Problem,
    config: Config,
    *,
    retraction: str = "exp",
    active: bool = False,
    gradient: torch.dtype = torch.float32,
) -> list[tuple[Any, tuple, dict]]:
    """The launches of an operation: kernel, arguments, constants."""
    from projunn.kernels.jit import launch as L

    if problem.operation in tuning.SPECTRAL_OPERATIONS:
        return _spectral_launches(problem, config)
    p = problem
    dtype = torch.complex64 if p.pairs else torch.float32

    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty((1,) * len(shape), dtype=dtype).expand(*shape)  # no memory

    w = empty(p.blocks, p.m, p.n)
    x, y = empty(p.blocks, p.m, p.k), empty(p.blocks, p.n, p.k)
    listed = torch.zeros(p.blocks, dtype=torch.int64) if active else None
    with recorded() as launches, tuning.using({p.operation: config}):
        if p.operation == "fused_step":
            d = empty(p.blocks, p.m, p.n, dtype=dtype if p.pairs else gradient)
            L.fused_step([w], [d], [x], [x], [x], 0.1, None, retraction, listed, True, config)
        elif p.operation == "adjoint_product":
            L.adjoint_partials(w, empty(p.blocks, p.k, p.m), listed, config)
        elif p.operation == "product":
            L.product_columns(w, empty(p.blocks, p.k, p.n), listed, config)
        elif p.operation == "rank_update":
            L.rank_update(w, x, y, listed, config)
        elif p.operation == "turn_rows":
            q = empty(p.blocks, 2 * p.columns, p.n)
            L.turn_rows(w, q, q, torch.zeros(1, dtype=torch.int8), listed, config)
        elif p.operation == "basis":
            L.factor(w, x)
            L.turn(w, x, y, retraction, -1.0)
            if p.k == 1:
                L.warm_basis(x, empty(p.blocks, p.m, 1), x, torch.zeros(1, dtype=torch.int8))
        elif p.operation == "polish":
            L.polish(w, torch.zeros(()), 192)
        if p.operation == "basis":  # without the passes over W, which have operations of their own
            columns = ("orthonormal", "plane_basis", "basis", "warm_basis")
            return [one for one in launches if one[0].__name__.removesuffix("_kernel") in columns]
        return launches


def _spectral_launches(p: Problem, config: Config) -> list[tuple[Any, tuple, dict]]:
    """The product and its adjoint, or the gradient, of images of ``blocks`` frequencies."""
    from projunn.kernels.jit import launch_spectral as L

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty((1,) * len(shape)).expand(*shape)

    size, real = [p.blocks if p.pairs else 2 * p.blocks - 1], not p.pairs
    x, y = empty(p.k, p.n, p.blocks, 2), empty(p.k, p.m, p.blocks, 2)
    own = empty(1, p.m, p.n) if real else None
    with recorded() as launches:
        if p.operation == "spectral_gradient":
            L.spectral_gradient(y, x, size, real, 1.0, config)
        else:
            w = empty(p.blocks, p.m, p.n, 2)
            L.spectral_product(x, w, own, size, False, config)
            L.spectral_product(y, w, own, size, True, config)
    return launches


def binary(kernel: Any, args: tuple, constants: dict, architecture: str, why: str) -> Binary:
    """What Triton would compile for a launch: it specialises on 1 and on multiples of 16."""
    from projunn.kernels.jit import launch_spectral

    signature, fixed, aligned = {}, {}, []
    if "PRECISION" in constants:
        constants = constants | {"PRECISION": launch_spectral.precision(architecture.startswith("gfx"))}
    warps = constants["num_warps"]
    values = dict(zip(kernel.arg_names, args, strict=False)) | constants
    for name in kernel.arg_names:
        value, known = values[name], name in constants
        if known or (isinstance(value, int) and value == 1):
            signature[name], fixed[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + _TYPES[value.dtype]
            aligned.append(name)
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
            if value % 16 == 0:
                aligned.append(name)
    return Binary(
        kernel.__name__,
        tuple(signature.items()),
        tuple(fixed.items()),
        tuple(aligned),
        warps,
        architecture,
        why,
    )


_TYPES = {
    torch.float32: "fp32",
    torch.complex64: "fp32",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.bool: "i1",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}


def compiled(what: Binary) -> dict[str, Any]:
    """Compile, and read the binary."""
    os.environ["TRITON_ALWAYS_COMPILE"] = "1"  # a cached binary comes without ptxas' report
    os.environ["TRITON_DUMP_PTXAS_LOG"] = "1"
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from projunn.kernels.jit import launch, launch_spectral

    kernel = getattr(launch, what.kernel, None) or getattr(launch_spectral, what.kernel)
    amd = what.architecture.startswith("gfx")
    number = what.architecture.removeprefix("sm_")
    target = GPUTarget("hip", number, 64) if amd else GPUTarget("cuda", int(number), 32)
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        signature=dict(what.signature),
        constexprs=dict(what.constants),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in what.aligned},
    )
    started, log = time.perf_counter(), io.StringIO()
    with contextlib.redirect_stdout(log):
        code = triton.compile(source, target=target, options={"num_warps": what.warps})
    row = {
        "kernel": what.kernel,
        "architecture": what.architecture,
        "problem": what.why,
        "warps": what.warps,
        "shared": code.metadata.shared,
        "seconds": round(time.perf_counter() - started, 1),
    }
    read = _amd(code.asm["amdgcn"]) if amd else _nvidia(log.getvalue(), code.asm["ptx"])
    return row | read | {"fails": _failure(read["spilled"], row["shared"], what.architecture)}


def _failure(spilled: int, shared: int, architecture: str) -> str:
    if spilled:
        return f"spills {spilled} bytes"
    limit = ARCHITECTURES[architecture]
    return f"{shared} bytes of shared memory, there are {limit}" if shared > limit else ""


def _nvidia(report: str, ptx: str) -> dict[str, Any]:
    registers = re.search(r"Used (\d+) registers", report)
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    if registers is None or spilled is None:
        raise RuntimeError("aot: ptxas did not report registers and spills")
    widths = [
        int(count or 1) * int(bits)
        for count, bits in re.findall(r"\b(?:ld|st)\.global\S*?(?:\.v(\d))?\.[bfus](\d+)\b", ptx)
    ]
    return {
        "registers": int(registers[1]),
        "spilled": int(spilled[1]) + int(spilled[2]),
        "wide": _share(widths),
    }


def _amd(assembly: str) -> dict[str, Any]:
    def number(key: str) -> int:
        return max((int(v) for v in re.findall(rf"\.{key}:\s+(\d+)", assembly)), default=0)

    widths = [
        32 * int(count or 1)
        for count in re.findall(r"(?:global|buffer)_(?:load|store)_dword(?:x(\d))?\b", assembly)
    ]
    # VGPRs that go to AGPRs are counted as spilled only where they reach memory: private segment
    return {
        "registers": number("vgpr_count"),
        "spilled": 4 * number("vgpr_spill_count") if number("private_segment_fixed_size") else 0,
        "wide": _share(widths),
    }


def _share(widths: list[int]) -> float:
    """Of the bytes of all loads and stores in the code, those by 128-bit instructions."""
    return round(sum(w for w in widths if w >= 128) / max(1, sum(widths)), 2)


# -- what is compiled -------------------------------------------------------------------------------


def problems(full: bool) -> Iterator[tuple[Problem, dict[str, Any]]]:
    """Representative problems, and the variants of their launches."""
    ranks = (1, 2, 4, 8)
    for pairs in (False, True):
        for k in ranks:
            for n in (32, 64, 128) if full else (64, 128):
                problem = Problem("fused_step", pairs, k, n, n, 64)
                if n * k * problem.width > 1024:
                    continue  # such blocks are not fused
                for retraction in ("exp", "polar", "cayley") if full or n == 64 else ("exp",):
                    yield problem, {"retraction": retraction}
                if n == 64:
                    yield problem, {"active": True}
                if full and not pairs:
                    yield problem, {"gradient": torch.bfloat16}
            for n in (1024, 4096, 16384) if full else (1024, 16384):
                for operation in ("adjoint_product", "product", "rank_update", "turn_rows"):
                    problem = Problem(operation, pairs, k, n, n, 1)
                    yield problem, {}
                    if full or (n == 1024 and k == 1):
                        yield problem, {"active": True}
                problem = Problem("basis", pairs, k, n, n, 1)
                for retraction in ("exp", "polar", "cayley") if full or n == 1024 else ("exp",):
                    yield problem, {"retraction": retraction}
        yield Problem("polish", pairs, 1, 256, 256, 1), {}
        yield Problem("polish", pairs, 1, 64, 128, 1), {}
        yield Problem("fused_step", pairs, 1, 33, 33, 64), {}  # odd sizes: no alignment to speak of
        yield Problem("turn_rows", pairs, 1, 1000, 1000, 1), {}

    for pairs in (False, True):
        for channels, bins in ((64, 544), (256, 40)):
            for operation in tuning.SPECTRAL_OPERATIONS:
                yield Problem(operation, pairs, 256, channels, channels, bins), {}
                if channels == 64:  # odd sizes; the first layer's channels
                    yield Problem(operation, pairs, 25, 33, 3, 35), {}


def tiny_problems() -> Iterator[tuple[Problem, dict[str, Any]]]:
    """Each kernel once, small ranks: for the tests."""
    yield Problem("fused_step", True, 1, 64, 64, 64), {}
    yield Problem("fused_step", False, 2, 64, 64, 64), {"retraction": "cayley"}
    for operation in ("adjoint_product", "product", "rank_update", "turn_rows"):
        yield Problem(operation, True, 1, 1024, 1024, 1), {"active": True}
    yield Problem("polish", True, 1, 64, 128, 4), {}
    yield Problem("basis", True, 1, 1024, 1024, 1), {"retraction": "polar"}
    yield Problem("basis", False, 2, 1024, 1024, 1), {"retraction": "cayley"}
    for operation in tuning.SPECTRAL_OPERATIONS:
        yield Problem(operation, False, 32, 64, 64, 40), {}


def binaries(
    architectures: tuple[str, ...], full: bool, only: str = "", tiny: bool = False
) -> list[Binary]:
    """Without repetitions; ``full``: every candidate of the autotuner, not just the closed form."""
    found: dict[Binary, None] = {}
    device = Device()
    for problem, variant in tiny_problems() if tiny else problems(full):
        if only not in problem.operation:
            continue
        first = tuning.closed_form(problem, device)
        for config in tuning.candidates(problem, device) if full else [first]:
            for kernel, args, constants in launches_of(problem, config, **variant):
                why = " ".join([problem.bucket, *(str(v) for v in variant.values())])
                why += f" {config.rows}x{config.columns}"
                for architecture in architectures:
                    found[binary(kernel, args, constants, architecture, why)] = None
    return list(found)


def _compiled_or_why(what: Binary) -> dict[str, Any]:
    try:
        return compiled(what)
    except Exception as error:
        text = (str(error).splitlines() or [""])[-1]
        return {
            "kernel": what.kernel,
            "architecture": what.architecture,
            "problem": what.why,
            "fails": f"{type(error).__name__}: {text}",
        }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m projunn.kernels.jit.aot", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--full", action="store_true", help="every candidate of the autotuner: hours")
    parser.add_argument("--tiny", action="store_true", help="each kernel once: seconds")
    parser.add_argument("--arch", default=",".join(ARCHITECTURES), help="default: all seven")
    parser.add_argument("--op", default="", help="operations whose name holds this")
    parser.add_argument("--every", type=int, default=1, help="compile each N-th binary only")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", help="file that gets a JSON row for each binary")
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
    work = binaries(architectures, arguments.full, arguments.op, arguments.tiny)[:: arguments.every]
    print(f"triton {triton.__version__}: {len(work)} binaries", flush=True)
    rows = []
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(open(arguments.out, "w")) if arguments.out else None
        pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(arguments.processes))
        for row in pool.imap_unordered(_compiled_or_why, work):
            rows.append(row)
            if row["fails"]:
                print(
                    f"{row['architecture']} {row['kernel']} {row['problem']}: {row['fails']}", flush=True
                )
            if out is not None:
                out.write(json.dumps({"triton": triton.__version__} | row) + "\n")
                out.flush()
    print("\n" + table(rows))
    failures = sum(bool(row["fails"]) for row in rows)
    print(f"\n{len(rows)} binaries, {failures} failed")
    return 1 if failures else 0


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
