"""Reads PTX: the kernel of a module, its registers, memory and instructions."""

import ctypes
import re
from collections.abc import Iterator

from tests.ptx.decoding import decode
from tests.ptx.program import WIDTHS, Instruction, Program, Unknown


def read(text: str, shared: int) -> Program:
    """The program of a module with one kernel.

    Args:
        text: the module.
        shared: bytes of shared memory that a launch gives the kernel.

    Raises:
        Unknown: what the machine does not know.
    """
    program = Program(shared)
    program.threads = _head(program, _lines(text))
    for one in program.code:
        if one.target:
            one.aux = program.labels[one.target]
    return program


def _head(program: Program, text: str) -> int:
    """Read a module up to the kernel's body, and the body; the number of threads."""
    before, kernel = re.split(r"\.visible\s+\.entry", text)
    array = r"\.global\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[(\d+)\]\s*=\s*\{([^}]*)\}"
    for name, size, values in re.findall(array, before):
        data = bytes(map(int, values.split(","))).ljust(int(size), b"\0")
        program.arrays.append(ctypes.create_string_buffer(data, len(data)))
        program.symbols[name] = ctypes.addressof(program.arrays[-1])
    for name in re.findall(r"\.shared\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[\]", before):
        program.symbols[name] = 0
    declared, rest = kernel.split("(", 1)[1].split(")", 1)
    for number, (kind, name) in enumerate(
        re.findall(r"\.param\s+\.(\w+)\s[^,]*?(\w+)\s*(?:,|$)", declared)
    ):
        program.parameters[name] = number, WIDTHS[kind]
    head, body = rest.split("{", 1)
    _body(program, body)
    threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", head)
    if threads is None:
        raise Unknown("the number of threads")
    return int(threads[1])


def _body(program: Program, text: str) -> None:
    for kind, part in _statements(text):
        if kind == "{":
            program.scopes.append({})
            program.families.append({})
        elif kind == "}" and len(program.scopes) == 1:
            break
        elif kind == "}":
            program.scopes.pop()
            program.families.pop()
        elif kind == ":":
            program.labels[part] = len(program.code)
        elif part.startswith(".loc//"):
            program.place = part.split("//")[-1].strip()
        elif part.startswith("."):
            _declare(program, part)
        else:
            _instruction(program, part)
    program.code.append(Instruction("", program.place, "RETURN"))


def _declare(program: Program, text: str) -> None:
    """``.reg`` and ``.local``."""
    memory = re.fullmatch(r"\.local\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[(\d+)\]", text)
    if memory:
        program.symbols[memory[1]] = program.local_bytes
        program.local_bytes += -(-int(memory[2]) // 16) * 16
        return
    register = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", text, re.S)
    if register is None:
        raise Unknown(text)
    width = WIDTHS[register[1]]
    for name in register[2].split(","):
        family = re.fullmatch(r"\s*(.+)<\d+>\s*", name)
        if family:
            program.families[-1][family[1]] = width
        else:
            program.scopes[-1][name.strip()] = program.row(width)


def _instruction(program: Program, text: str) -> None:
    one = Instruction(text, program.place)
    guarded = re.fullmatch(r"@(!?)([%\w]+)\s+(.*)", text, re.S)
    if guarded:
        one.predicate, one.negated = program.register(guarded[2]), bool(guarded[1])
        text = guarded[3]
    name, *rest = text.split(None, 1)
    decode(program, one, name, _split(rest[0]) if rest else [])


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


def _split(text: str) -> list[str]:
    """Operands, apart at the commas outside of braces and brackets."""
    return [part.strip() for part in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,])+", text)]
