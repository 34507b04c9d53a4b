"""One compilation ahead of time: what a launch would compile, and what is read off the binary.

Registers and spilled bytes are from ptxas' own report, or the metadata of AMD code; shared memory from
Triton; and how many of the bytes of the global loads and stores in the code go by 128-bit instructions.
"""

import contextlib
import hashlib
import io
import os
import re
import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from projunn_kernels.configs.fingerprints import fingerprints
from projunn_kernels.configs.problem import Device
from projunn_kernels.triton_kernels import kernels
from projunn_kernels.tuning.passed import decoded, encoded

# A GPU of each: its multiprocessors, and the bytes of shared memory that a program may have.
ARCHITECTURES = {
    "sm_80": Device("A100", "8.0", 108, 166_912),
    "sm_86": Device("RTX 3090", "8.6", 82, 101_376),
    "sm_89": Device("RTX 4090", "8.9", 128, 101_376),
    "sm_90": Device("H100", "9.0", 132, 232_448),
    "sm_100": Device("B200", "10.0", 148, 232_448),
    "sm_120": Device("RTX 5090", "12.0", 170, 101_376),
    "gfx942": Device("MI300X", "gfx942", 304, 65_536),
}


@dataclass(frozen=True)
class Binary:
    """One compilation: a kernel of a launcher, its argument types, constants and options."""

    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]
    options: tuple[tuple[str, int], ...]
    architecture: str
    why: str = field(compare=False, default="")


def binary(kernel: Any, args: tuple, constants: dict, architecture: str, why: str) -> Binary:
    """What Triton would compile for a launch: it specialises on None, on 1 and on multiples of 16."""
    signature, fixed, aligned = {}, {}, []
    options = {name: constants[name] for name in _OPTIONS & constants.keys()}
    if architecture.startswith("gfx"):
        options.pop("maxnreg", None)
        if "PRECISION" in constants:  # the one there is
            constants = constants | {"PRECISION": "ieee"}
    values = dict(zip(kernel.arg_names, args, strict=False)) | constants
    for name in kernel.arg_names:
        value, known = values[name], name in constants
        if known or value is None or (isinstance(value, int) and value == 1):
            signature[name], fixed[name] = "constexpr", encoded(value)
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
        tuple(sorted(options.items())),
        architecture,
        why,
    )


def with_sizes_of_one(what: Binary) -> Binary:
    """The same launch of the smallest problem: Triton makes a constant of a size of 1."""
    sizes = {name for name, kind in what.signature if kind == "i32"}
    return replace(
        what,
        signature=tuple((name, "constexpr" if name in sizes else kind) for name, kind in what.signature),
        constants=(*what.constants, *((name, encoded(1)) for name in sorted(sizes))),
        aligned=tuple(name for name in what.aligned if name not in sizes),
    )


_OPTIONS = {"num_warps", "num_stages", "maxnreg", "launch_pdl"}
_TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.complex64: "fp32",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.bool: "i1",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}


def key(what: Binary) -> str:
    """What the binary depends on: the launch, the source of the kernel and all it calls, Triton."""
    import triton

    parts = (triton.__version__, fingerprints()[what.kernel], replace(what, why=""))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def source_and_target(what: Binary) -> tuple[Any, Any]:
    """What Triton compiles: a kernel with its argument types and constants; and for which GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = kernels()[what.kernel]
    amd = what.architecture.startswith("gfx")
    number = what.architecture.removeprefix("sm_")
    target = GPUTarget("hip", number, 64) if amd else GPUTarget("cuda", int(number), 32)
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        signature=dict(what.signature),
        constexprs={name: decoded(value) for name, value in what.constants},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in what.aligned},
    )
    return source, target


def compiled(what: Binary) -> dict[str, Any]:
    """Compile, and read the binary."""
    os.environ["TRITON_ALWAYS_COMPILE"] = "1"  # a cached binary comes without ptxas' report
    os.environ["TRITON_DUMP_PTXAS_LOG"] = "1"
    import triton

    source, target = source_and_target(what)
    amd = what.architecture.startswith("gfx")
    started, log = time.perf_counter(), io.StringIO()
    with contextlib.redirect_stdout(log):
        code = triton.compile(source, target=target, options=dict(what.options))
    row = {
        "kernel": what.kernel,
        "architecture": what.architecture,
        "problem": what.why,
        "warps": dict(what.options)["num_warps"],
        "shared": code.metadata.shared,
        "seconds": round(time.perf_counter() - started, 1),
    }
    read = _amd(code.asm["amdgcn"]) if amd else _nvidia(log.getvalue(), code.asm["ptx"])
    return row | read | {"fails": _failure(read["spilled"], row["shared"], what.architecture)}


def _failure(spilled: int, shared: int, architecture: str) -> str:
    if spilled:
        return f"spills {spilled} bytes"
    limit = ARCHITECTURES[architecture].shared_memory
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
    """The share of 128-bit instructions in the bytes of all loads and stores."""
    return round(sum(w for w in widths if w >= 128) / max(1, sum(widths)), 2)
