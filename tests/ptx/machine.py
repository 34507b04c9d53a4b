"""Launches of Triton kernels as a GPU would make them: compiled for one, and executed here."""

import contextlib
import ctypes
import gc
import hashlib
import os
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projunn_kernels.tuning import binaries
from tests.ptx.operations import cases
from tests.ptx.program import NUMBERS, SPECIAL, Program
from tests.ptx.reading import read

FOLDER = Path(__file__).parent
_FLAGS = ["-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-fwrapv"]


class Wrong(Exception):
    """What a GPU would not have done."""


class _Instruction(ctypes.Structure):
    _names = ("op", "predicate", "negated", "first", "count", "aux", "aux2", "unused")
    _fields_ = [*((name, ctypes.c_int32) for name in _names), ("offset", ctypes.c_int64)]


class _Run(ctypes.Structure):
    _sizes = ("instructions", "rows", "constant_count", "ranges", "threads")
    _options = ("shared_bytes", "local_bytes", "together", "descending")
    _told = ("error", "at", "thread", "program", "races", "race_at")
    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in ("code", "operands", "memory", "constant_rows", "constants")
        ),
        ("most_steps", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in _sizes),
        ("grid", ctypes.c_int32 * 3),
        ("special", ctypes.c_int32 * len(SPECIAL)),
        *((name, ctypes.c_int32) for name in (*_options, *_told)),
        ("steps", ctypes.c_int64),
        ("address", ctypes.c_uint64),
        ("what", ctypes.c_char * 120),
        ("race", ctypes.c_char * 120),
    ]


@cache
def _library() -> Any:
    """The machine, compiled for this processor."""
    operations = cases(NUMBERS)
    sources = [*sorted(FOLDER.glob("*.[ch]"))]
    digest = hashlib.sha256("".join([operations, *_FLAGS, *(f.read_text() for f in sources)]).encode())
    folder = Path(tempfile.gettempdir()) / f"projunn-ptx-{os.getuid()}-{digest.hexdigest()[:16]}"
    library = folder / "machine.so"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to someone else")
    if not library.exists():
        (folder / "operations.inc").write_text(operations)
        made = folder / f"{os.getpid()}.so"
        command = [os.environ.get("CC", "gcc"), *_FLAGS, "-w", "-shared", "-fPIC", f"-I{folder}"]
        subprocess.run([*command, "-o", made, FOLDER / "machine.c", "-lm"], check=True)
        made.replace(library)
    return ctypes.CDLL(str(library))


@dataclass(frozen=True)
class Schedule:
    """In which order threads run: any that a GPU may choose must give the same.

    Attributes:
        together: how many threads run each instruction together: 32 a warp, 128 a group of warps; 0 all.
        descending: whether the last program, and of a program the last warp, runs first.
    """

    together: int = 0
    descending: bool = False


class Loaded:
    """A program in the machine's form."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._code = (_Instruction * len(program.code))()
        operands: list[int] = []
        for place, one in enumerate(program.code):
            head = (NUMBERS[one.op], one.predicate, one.negated, len(operands), len(one.operands))
            self._code[place] = _Instruction(*head, one.aux, one.aux2, 0, one.offset)
            operands += one.operands
        self._operands = np.array(operands or [0], np.int32)
        rows = [*program.constants.values(), *program.arguments.values()]
        self._rows = np.array([row | program.widths[row] << 24 for row in rows] or [0], np.int32)

    def run(
        self, grid: tuple[int, ...], arguments: list[int], memory: list[tuple[int, int]], order: Schedule
    ) -> _Run:
        """Execute a launch.

        Raises:
            Wrong: at what a GPU would not do.
        """
        program, run = self.program, _Run()
        values = [value for value, _ in program.constants]
        values += [arguments[number] & (2**64 - 1) for number in program.arguments]
        constants = np.array(values or [0], np.uint64)
        spans = np.array(memory or [(0, 0)], np.uint64)
        run.code, run.instructions = ctypes.addressof(self._code), len(self._code)
        run.operands, run.rows = self._operands.ctypes.data, len(program.widths)
        run.memory, run.ranges = spans.ctypes.data, len(memory)
        run.constant_rows, run.constants = self._rows.ctypes.data, constants.ctypes.data
        run.constant_count = len(values)
        run.most_steps = 10**10
        run.threads, run.grid = program.threads, (ctypes.c_int32 * 3)(*grid, *[1] * (3 - len(grid)))
        run.special = (ctypes.c_int32 * len(SPECIAL))(*program.special)
        run.shared_bytes, run.local_bytes = program.shared_bytes, program.local_bytes
        least = 128 if any(one.op == "GROUP_PRODUCT" for one in program.code) else 32
        run.together = min(program.threads, max(least, order.together or program.threads))
        run.descending = order.descending
        _library().execute(ctypes.byref(run))
        if run.error:
            one = program.code[run.at]
            where = f"program {run.program}, thread {run.thread}, address {run.address:#x}"
            raise Wrong(f"{run.what.decode()}: {where}, {one.place}: {one.text}")
        return run


@dataclass
class Machine:
    """Stands in for a GPU: ``with projunn_kernels.launching.intercepted(Machine("sm_90")): ...``.

    Attributes:
        architecture: what the kernels are compiled for.
        order: in which order threads run.
        launches: the names of the kernels launched, with the instructions executed.
        races: what was found of races, by kernel.
    """

    architecture: str
    order: Schedule = Schedule()

    def __post_init__(self) -> None:
        self.launches: list[tuple[str, int]] = []
        self.races: dict[str, str] = {}
        self._loaded: dict[binaries.Binary, Loaded] = {}

    def __call__(self, kernel: Any) -> "_Kernel":
        return _Kernel(self, kernel)

    def launch(self, kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
        """Compile a launch, unless that has been done, and execute it."""
        options = arguments.keys() - set(kernel.arg_names)
        constants = {name for name in arguments if name.isupper()} | options
        plain = tuple(arguments[name] for name in kernel.arg_names if name not in constants)
        fixed = {name: arguments[name] for name in constants}
        what = binaries.binary(kernel, plain, fixed, self.architecture, "")
        loaded = self._loaded.get(what) or self._loaded.setdefault(what, _compiled(what))
        passed = [arguments[name] for name, kind in what.signature if kind != "constexpr"]
        arrays = [
            (ctypes.addressof(array), ctypes.addressof(array) + len(array))
            for array in loaded.program.arrays
        ]
        run = loaded.run(grid, [*map(_bits, passed), 0, 0, 0], arrays + _memory_of(passed), self.order)
        self.launches.append((kernel.__name__, run.steps))
        if run.races:
            one = loaded.program.code[run.race_at]
            self.races[kernel.__name__] = f"{run.race.decode()}, {one.place}: {one.text}"


@dataclass(frozen=True)
class _Kernel:
    machine: Machine
    kernel: Any

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda **arguments: self.machine.launch(self.kernel, grid, arguments)


def _compiled(what: binaries.Binary) -> Loaded:
    import triton

    source, target = binaries.source_and_target(what)
    code = triton.compile(source, target=target, options=dict(what.options))
    return Loaded(read(code.asm["ptx"], code.metadata.shared))


def _bits(value: Any) -> int:
    """An argument as the kernel's parameter."""
    if isinstance(value, Tensor):
        return value.data_ptr()
    return int(np.float32(value).view(np.uint32)) if isinstance(value, float) else int(value)


def _memory_of(passed: list[Any]) -> list[tuple[int, int]]:
    """The memory of tensors; of all that are alive if one is a table, which may hold their addresses."""
    tensors = [value for value in passed if isinstance(value, Tensor)]
    if any(tensor.dtype == torch.int64 for tensor in tensors):
        tensors += [value for value in gc.get_objects() if issubclass(type(value), Tensor)]
    spans = set()
    for tensor in tensors:
        if tensor.device.type == "cpu" and tensor.layout == torch.strided:
            with contextlib.suppress(RuntimeError):  # of tensors that are made of others
                storage = tensor.untyped_storage()
                spans.add((storage.data_ptr(), storage.data_ptr() + storage.nbytes()))
    return sorted(spans)
