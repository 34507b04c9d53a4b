"""PTX text as a program of the machine: numbered instructions on rows of registers.

A row holds the values that all threads have in one register.  Constants and the kernel's arguments are
rows too.
"""

import ctypes
import re
import struct
from collections.abc import Iterator
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
    """A kernel.

    Args:
        text: its PTX.
        shared: bytes of shared memory that a launch gives it.
    """

    def __init__(self, text: str, shared: int) -> None:
        self.code: list[Instruction] = []
        self.widths: list[int] = []  # bytes of a value, by row
        self.constants: dict[tuple[int, int], int] = {}  # rows by value and width
        self.arguments: dict[int, int] = {}  # rows by the number of the kernel's argument
        self.shared_bytes, self.local_bytes = shared, 0
        self.arrays: list[ctypes.Array[ctypes.c_char]] = []  # constant memory
        self._scopes: list[dict[str, int]] = [{}]
        self._families: list[dict[str, int]] = [{}]  # widths of "%r<100>" by "%r"
        self._symbols: dict[str, int] = {}
        self._labels: dict[str, int] = {}
        self._parameters: dict[str, tuple[int, int]] = {}
        self._place = ""
        self.threads = self._head(_lines(text))
        for one in self.code:
            if one.target:
                one.aux = self._labels[one.target]

    @property
    def special(self) -> list[int]:
        """The rows of the special registers, -1 for those that the kernel does not read."""
        return [self._scopes[0].get(name, -1) for name in SPECIAL]

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
        if text in self._symbols:
            return self.constant(self._symbols[text], width)
        return self.register(text)

    def register(self, name: str) -> int:
        """The row of a register."""
        family = re.fullmatch(r"(%[a-zA-Z_$]+)\d+", name)
        for scope, families in zip(reversed(self._scopes), reversed(self._families), strict=True):
            if name in scope:
                return scope[name]
            if family and family[1] in families:
                scope[name] = self.row(families[family[1]])
                return scope[name]
        if name not in SPECIAL:
            raise Unknown(f"register {name}")
        self._scopes[0][name] = self.row(4)
        return self._scopes[0][name]

    def argument(self, name: str) -> int:
        """The row of an argument of the kernel."""
        number, width = self._parameters[name]
        if number not in self.arguments:
            self.arguments[number] = self.row(width)
        return self.arguments[number]

    def address(self, text: str) -> tuple[int, int]:
        """The row of ``[base + offset]`` and the offset."""
        base, *rest = re.split(r"\s*\+\s*", text.strip()[1:-1].strip())
        offset = int(rest[0], 0) if rest else 0
        if base in self._symbols:
            return self.constant(self._symbols[base], 8), offset
        return self.operand(base, 8), offset

    def add(self, op: str, operands: list[int], like: Instruction) -> None:
        """One more instruction, in the place of a part of another."""
        self.code.append(Instruction(like.text, like.place, op, like.predicate, like.negated, operands))

    def _head(self, text: str) -> int:
        """Read a module up to the kernel's body, and the body; the number of threads."""
        before, kernel = re.split(r"\.visible\s+\.entry", text)
        array = r"\.global\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[(\d+)\]\s*=\s*\{([^}]*)\}"
        for name, size, values in re.findall(array, before):
            data = bytes(map(int, values.split(","))).ljust(int(size), b"\0")
            self.arrays.append(ctypes.create_string_buffer(data, len(data)))
            self._symbols[name] = ctypes.addressof(self.arrays[-1])
        for name in re.findall(r"\.shared\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[\]", before):
            self._symbols[name] = 0
        declared, rest = kernel.split("(", 1)[1].split(")", 1)
        for number, (kind, name) in enumerate(
            re.findall(r"\.param\s+\.(\w+)\s[^,]*?(\w+)\s*(?:,|$)", declared)
        ):
            self._parameters[name] = number, WIDTHS[kind]
        head, body = rest.split("{", 1)
        self._body(body)
        threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", head)
        if threads is None:
            raise Unknown("the number of threads")
        return int(threads[1])

    def _body(self, text: str) -> None:
        for kind, part in _statements(text):
            if kind == "{":
                self._scopes.append({})
                self._families.append({})
            elif kind == "}" and len(self._scopes) == 1:
                break
            elif kind == "}":
                self._scopes.pop()
                self._families.pop()
            elif kind == ":":
                self._labels[part] = len(self.code)
            elif part.startswith(".loc//"):
                self._place = part.split("//")[-1].strip()
            elif part.startswith("."):
                self._declare(part)
            else:
                self._instruction(part)
        self.code.append(Instruction("", self._place, "RETURN"))

    def _declare(self, text: str) -> None:
        """``.reg`` and ``.local``."""
        memory = re.fullmatch(r"\.local\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[(\d+)\]", text)
        if memory:
            self._symbols[memory[1]] = self.local_bytes
            self.local_bytes += -(-int(memory[2]) // 16) * 16
            return
        register = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", text, re.S)
        if register is None:
            raise Unknown(text)
        width = WIDTHS[register[1]]
        for name in register[2].split(","):
            family = re.fullmatch(r"\s*(.+)<\d+>\s*", name)
            if family:
                self._families[-1][family[1]] = width
            else:
                self._scopes[-1][name.strip()] = self.row(width)

    def _instruction(self, text: str) -> None:
        from tests.ptx.decoding import decode

        one = Instruction(text, self._place)
        guarded = re.fullmatch(r"@(!?)([%\w]+)\s+(.*)", text, re.S)
        if guarded:
            one.predicate, one.negated = self.register(guarded[2]), bool(guarded[1])
            text = guarded[3]
        name, *rest = text.split(None, 1)
        decode(self, one, name, split(rest[0]) if rest else [])


def _lines(text: str) -> str:
    """PTX without comments and debugging sections; places in the source stay, beside ``.loc``."""
    text = re.split(r"\n\s*\.section", re.sub(r"/\*.*?\*/", "", text, flags=re.S))[0]
    kept = []
    for line in map(str.strip, text.splitlines()):
        if re.match(r"\.loc\s", line):
            kept.append(f".loc//{line.split('//')[-1].split(' @')[0].strip()};")
        elif not re.match(r"//|\.(file|version|target|address_size|pragma)\s", line):
            kept.append(line.split("//")[0])
    return "\n".join(kept)


def _statements(text: str) -> Iterator[tuple[str, str]]:
    """The statements of a body: instructions and directives, labels, and braces of scopes."""
    label, at = re.compile(r"([$\w]+):(?!:)"), 0
    while at < len(text):
        found = label.match(text, at)
        if text[at].isspace():
            at += 1
        elif text[at] in "{}":
            yield text[at], ""
            at += 1
        elif found:
            yield ":", found[1]
            at = found.end()
        else:
            end = text.index(";", at)
            if text[at:end].strip():
                yield ";", text[at:end].strip()
            at = end + 1


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


def split(text: str) -> list[str]:
    """Operands, apart at the commas outside of braces and brackets."""
    return [part.strip() for part in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,])+", text)]


def vector(text: str) -> list[str]:
    """The parts of ``{a, b}``, or the text alone."""
    text = text.strip()
    return [part.strip() for part in text[1:-1].split(",")] if text.startswith("{") else [text]
