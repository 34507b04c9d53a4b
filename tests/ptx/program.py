"""A program of the machine: instructions on rows of registers.

A row holds the values that all threads have in one register.  Constants and the kernel's arguments are
rows too.
"""

import ctypes
import re
import struct
from dataclasses import dataclass, field

from tests.ptx.operations import operations

KINDS = [  # as in machine.c
    *("BRANCH", "BARRIER", "RETURN", "MOVE", "LOAD", "STORE", "SHUFFLE", "REDUCE", "VOTE", "ATOMIC"),
    *("PRODUCT", "GROUP_PRODUCT", "LOAD_MATRIX", "STORE_MATRIX", "COPY", "COMMIT", "WAIT"),
    *("PACK", "UNPACK", "NOTHING", "CARRY"),
]
OPERATIONS = operations()
NUMBERS = {name: number for number, name in enumerate(KINDS, 1)}
NUMBERS |= {name: number for number, name in enumerate(OPERATIONS, len(KINDS) + 1)}
_COUNTS = [f"%{of}.{axis}" for of in ("ctaid", "nctaid") for axis in "xyz"]
SPECIAL = ["%tid.x", *_COUNTS, "%ntid.x", "%laneid", "%warpid"]
WIDTHS = {"pred": 1, "f16": 2, "bf16": 2, "f32": 4, "f64": 8}
WIDTHS |= {f"{kind}{bits}": max(2, bits // 8) for kind in "bus" for bits in (8, 16, 32, 64)}


class Unknown(Exception):
    """What the machine does not know."""


@dataclass
class Instruction:
    """One instruction; what ``aux`` and ``aux2`` say is written beside its function in C."""

    text: str
    place: str
    op: str = ""
    predicate: int = -1
    negated: bool = False
    operands: list[int] = field(default_factory=list)
    aux: int = 0
    aux2: int = 0
    offset: int = 0
    target: str = ""


class Program:
    """A kernel, into which `tests.ptx.reading` reads its PTX.

    Args:
        shared: bytes of shared memory that a launch gives it.
    """

    def __init__(self, shared: int) -> None:
        self.code: list[Instruction] = []
        self.widths: list[int] = []  # bytes of a value, by row
        self.constants: dict[tuple[int, int], int] = {}  # rows by value and width
        self.arguments: dict[int, int] = {}  # rows by the number of the kernel's argument
        self.shared_bytes, self.local_bytes = shared, 0
        self.arrays: list[ctypes.Array[ctypes.c_char]] = []  # constant memory
        self.scopes: list[dict[str, int]] = [{}]
        self.families: list[dict[str, int]] = [{}]  # widths of "%r<100>" by "%r"
        self.symbols: dict[str, int] = {}
        self.labels: dict[str, int] = {}
        self.parameters: dict[str, tuple[int, int]] = {}
        self.threads = 0
        self.place = ""  # in the source, of the instructions that are being read

    @property
    def special(self) -> list[int]:
        """The rows of the special registers, -1 for those that the kernel does not read."""
        return [self.scopes[0].get(name, -1) for name in SPECIAL]

    def row(self, width: int) -> int:
        """A new row."""
        self.widths.append(width)
        return len(self.widths) - 1

    def constant(self, value: int, width: int) -> int:
        """The row of a constant."""
        key = (value & (2 ** (8 * width) - 1), width)
        if key not in self.constants:
            self.constants[key] = self.row(width)
        return self.constants[key]

    def operand(self, text: str, width: int) -> int:
        """The row of an operand; -1 for ``_``."""
        text = text.strip()
        if text == "_":
            return -1
        if re.match(r"-?\d", text):
            return self.constant(_number(text, width), width)
        if text in self.symbols:
            return self.constant(self.symbols[text], width)
        return self.register(text)

    def register(self, name: str) -> int:
        """The row of a register."""
        family = re.fullmatch(r"(%[a-zA-Z_$]+)\d+", name)
        for scope, families in zip(reversed(self.scopes), reversed(self.families), strict=True):
            if name in scope:
                return scope[name]
            if family and family[1] in families:
                scope[name] = self.row(families[family[1]])
                return scope[name]
        if name not in SPECIAL:
            raise Unknown(f"register {name}")
        self.scopes[0][name] = self.row(4)
        return self.scopes[0][name]

    def argument(self, name: str) -> int:
        """The row of an argument of the kernel."""
        number, width = self.parameters[name]
        if number not in self.arguments:
            self.arguments[number] = self.row(width)
        return self.arguments[number]

    def address(self, text: str) -> tuple[int, int]:
        """The row of ``[base + offset]`` and the offset."""
        base, *rest = re.split(r"\s*\+\s*", text.strip()[1:-1].strip())
        offset = int(rest[0], 0) if rest else 0
        if base in self.symbols:
            return self.constant(self.symbols[base], 8), offset
        return self.operand(base, 8), offset

    def add(self, op: str, operands: list[int], like: Instruction) -> None:
        """One more instruction, in the place of a part of another."""
        self.code.append(Instruction(like.text, like.place, op, like.predicate, like.negated, operands))


def _number(text: str, width: int) -> int:
    """The bits of an immediate operand."""
    if text[:2] in ("0f", "0F"):
        bits = int(text[2:], 16)
        if width == 4:
            return bits
        (value,) = struct.unpack("<f", struct.pack("<I", bits))
        return int(struct.unpack("<Q", struct.pack("<d", value))[0])
    if text[:2] in ("0d", "0D"):
        return int(text[2:], 16)
    return int(text.rstrip("U"), 0)


def vector(text: str) -> list[str]:
    """The parts of ``{a, b}``, or the text alone."""
    text = text.strip()
    return [part.strip() for part in text[1:-1].split(",")] if text.startswith("{") else [text]
