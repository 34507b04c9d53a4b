"""What each instruction of PTX asks of the machine."""

import re
from collections.abc import Callable

from tests.ptx.program import OPERATIONS, WIDTHS, Instruction, Program, Unknown, vector

# Without effect here: the machine does at once what these order, announce or end.
IGNORED = (
    *("fence.", "membar.", "griddepcontrol.", "prefetch.", "discard.", "bar.warp.", "createpolicy."),
    *("wgmma.fence", "wgmma.commit_group", "wgmma.wait_group"),
)
SPACES = ["global", "shared", "local"]
COMBINING = ["add", "min", "max", "and", "or", "xor", "exch", "cas"]
PRECISIONS = ["tf32", "bf16", "f16", "f64"]


def decode(program: Program, one: Instruction, name: str, args: list[str]) -> None:
    """Appends an instruction to a program.

    Raises:
        Unknown: an instruction that the machine does not have.
    """
    parts = name.split(".")
    if name in OPERATIONS:
        _arithmetic(program, one, name, args)
    elif parts[0] == "setp" and name.endswith("x2"):
        _compare_two(program, one, name[:-2], args)
        return
    elif name.startswith(IGNORED):
        one.op = "NOTHING"
    else:
        decoder = next((d for start, d in _DECODERS.items() if name.startswith(start)), None)
        if decoder is None:
            raise Unknown(one.text)
        decoder(program, one, parts, args)
    program.code.append(one)


def _arithmetic(program: Program, one: Instruction, name: str, args: list[str]) -> None:
    result, kinds, _ = OPERATIONS[name]
    one.op = name
    rows = [program.operand(arg, WIDTHS[kind]) for arg, kind in zip(args, (result, *kinds), strict=True)]
    for place, (row, kind) in enumerate(zip(rows, (result, *kinds), strict=True)):
        if program.widths[row] != WIDTHS[kind]:
            if place == 0 or program.widths[row] < WIDTHS[kind]:
                raise Unknown(f"{one.text}: a register of {program.widths[row]} bytes")
            rows[place] = _low(program, row, WIDTHS[kind], one)
    one.operands = rows


def _low(program: Program, row: int, width: int, like: Instruction) -> int:
    """A row with the low bytes of another."""
    low, bits = program.row(width), 8 * program.widths[row]
    program.add(f"cvt.u{8 * width}.u{bits}", [low, row], like)
    return low


def _compare_two(program: Program, one: Instruction, name: str, args: list[str]) -> None:
    """``setp`` of two numbers in 32 bits: first of the low ones, then of the high ones."""
    halves: list[list[int]] = [[], []]
    for arg in args[1:]:
        both, high = program.operand(arg, 4), program.row(4)
        program.add("shr.u32", [high, both, program.constant(16, 4)], one)
        halves[0].append(_low(program, both, 2, one))
        halves[1].append(_low(program, high, 2, one))
    for result, half in zip(args[0].split("|"), halves, strict=True):
        program.add(name, [program.operand(result, 1), *half], one)


def _flow(program: Program, one: Instruction, parts: list[str], args: list[str]) -> None:
    one.op = {"bra": "BRANCH", "ret": "RETURN", "exit": "RETURN"}.get(parts[0], "BARRIER")
    if one.op == "BRANCH":
        one.target = args[0]
    elif one.op == "BARRIER" and args != ["0"]:
        raise Unknown(one.text)


def _move(program: Program, one: Instruction, parts: list[str], args: list[str]) -> None:
    width = WIDTHS[parts[-1]]
    to, start = map(vector, args)
    count = max(len(to), len(start))
    one.op, one.aux = "MOVE" if count == 1 else "UNPACK" if len(to) > 1 else "PACK", width // count
    widths = [width // count if len(names) > 1 else width for names in (to, start)]
    one.operands = [program.operand(name, widths[0]) for name in to]
    one.operands += [program.operand(name, widths[1]) for name in start]
    for row, wide in zip(one.operands, [widths[0]] * len(to) + [widths[1]] * len(start), strict=True):
        if row >= 0 and program.widths[row] != wide:
            raise Unknown(one.text)


def _argument(program: Program, one: Instruction, parts: list[str], args: list[str]) -> None:
    row, to = program.argument(args[1].strip("[] ")), program.operand(args[0], WIDTHS[parts[-1]])
    wide, narrow = program.widths[to], program.widths[row]
    sign = "s" if parts[-1][0] == "s" else "u"
    one.op, one.aux = (
        ("MOVE", wide) if wide == narrow else (f"cvt.{sign}{8 * wide}.{sign}{8 * narrow}", 0)
    )
    one.operands = [to, row]


def _space(one: Instruction, parts: list[str]) -> int:
    named = [part.split("::")[0] for part in parts]
    found = [SPACES.index(part) for part in named if part in SPACES]
    if not found:
        raise Unknown(one.text)
    return found[0]


def _memory(program: Program, one: Instruction, parts: list[str], args: list[str]) -> None:
    store = parts[0] == "st"
    where, names = (args[0], vector(args[1])) if store else (args[1], vector(args[0]))
    size = int(re.sub(r"\D", "", parts[-1])) // 8
    rows = [program.operand(name, max(2, size)) for name in names]
    wide = max(program.widths[row] for row in rows if row >= 0)
    rows = [program.row(wide) if row < 0 else row for row in rows]
    if any(program.widths[row] != wide for row in rows):
        raise Unknown(one.text)
    base, one.offset = program.address(where)
    one.op, one.operands = "STORE" if store else "LOAD", [*rows, base]
    one.aux = _space(one, parts) | size << 4 | (parts[-1][0] == "s") << 12 | wide << 16
    one.aux |= program.widths[base] << 24


def _atomic(program: Program, one: Instruction, parts: list[str], args: list[str]) -> None:
    kind, width = parts[-1], WIDTHS[parts[-1]]
    if {"v2", "v4"} & set(parts):
        raise Unknown(one.text)
    result, where, *values = args if parts[0] == "atom" else ["_", *args]
    base, one.offset = program.address(where)
    rows = [program.operand(vector(value)[0], width) for value in values]
    one.op = "ATOMIC"
    one.operands = [program.operand(vector(result)[0], width), base, *rows, *[-1] * (2 - len(rows))]
    what = next(COMBINING.index(part) for part in parts[1:] if part in COMBINING)
    one.aux = _space(one, parts) | width << 4 | {"s": 1, "f": 2}.get(kind[0], 0) << 12 | what << 16
    one.aux |= program.widths[base] << 24


def _shuffle(program: Program, one: Instruction, parts: list[str], args: list[str]) -> None:
    one.op, one.aux = "SHUFFLE", ["bfly", "idx", "up", "down"].index(parts[2])
    result, *inside = args[0].split("|")
    one.operands = [program.operand(arg, 4) for arg in (result, *args[1:])]
    one.operands.append(program.operand(inside[0], 1) if inside else -1)


def _reduce(program: Program, one: Instruction, parts: list[str], args: list[str]) -> None:
    one.op, one.aux, one.aux2 = "REDUCE", COMBINING.index(parts[2]), int(parts[3] == "s32")
    one.operands = [program.operand(arg, 4) for arg in args]


def _vote(program: Program, one: Instruction, parts: list[str], args: list[str]) -> None:
    one.op, one.aux = "VOTE", ["any", "all", "ballot"].index(parts[2])
    one.aux2 = int(args[1].startswith("!"))
    widths = [4 if parts[2] == "ballot" else 1, 1, 4]
    names = [args[0], args[1].lstrip("!"), args[2]]
    one.operands = [program.operand(*both) for both in zip(names, widths, strict=True)]


def _product(program: Program, one: Instruction, parts: list[str], args: list[str]) -> None:
    rows, depth = map(int, re.fullmatch(r"m(\d+)n8k(\d+)", parts[3]).groups())  # type: ignore[union-attr]
    if parts[4:6] != ["row", "col"] or {parts[6], parts[9]} - {"f32", "f64"} or parts[7] != parts[8]:
        raise Unknown(one.text)
    one.op, one.aux, one.aux2 = "PRODUCT", PRECISIONS.index(parts[7]), rows | depth << 8
    wide = 8 if parts[7] == "f64" else 4
    one.operands = [program.operand(name, wide) for arg in args for name in vector(arg)]


def _product_of_group(program: Program, one: Instruction, parts: list[str], args: list[str]) -> None:
    columns = int(re.fullmatch(r"m64n(\d+)k\d+", parts[4])[1])  # type: ignore[index]
    signs, turned = args[4:6], [0, 0, *map(int, args[6:])][-2:]
    if (
        signs != ["1", "1"]
        or parts[5] != "f32"
        or parts[6] != parts[7]
        or (len(args) == 7 and args[1][0] != "{")
    ):
        raise Unknown(one.text)
    registers = args[1].startswith("{")
    one.op = "GROUP_PRODUCT"
    one.aux = columns | PRECISIONS.index(parts[6]) << 12 | registers << 16
    one.operands = [program.operand(name, 4) for name in vector(args[0])]
    one.operands += [program.operand(name, 4 if registers else 8) for name in vector(args[1])]
    literal = args[3].isdigit()
    one.operands += [program.operand(args[2], 8), -1 if literal else program.operand(args[3], 1)]
    one.aux2 = turned[0] | turned[1] << 1 | (int(args[3]) if literal else 0) << 2


def _matrices(program: Program, one: Instruction, parts: list[str], args: list[str]) -> None:
    load = parts[0] == "ldmatrix"
    where, names = (args[1], vector(args[0])) if load else (args[0], vector(args[1]))
    base, one.offset = program.address(where)
    one.op, one.operands = (
        "LOAD_MATRIX" if load else "STORE_MATRIX",
        [program.operand(x, 4) for x in names],
    )
    one.operands.append(base)
    one.aux, one.aux2 = len(names) | ("trans" in parts) << 4, program.widths[base]
    if parts[-1] != "b16" or "m8n8" not in parts:
        raise Unknown(one.text)


def _copy(program: Program, one: Instruction, parts: list[str], args: list[str]) -> None:
    to, one.offset = program.address(args[0])
    start, one.aux2 = program.address(args[1])
    if program.widths[to] == 8:
        to = _low(program, to, 4, one)
    one.op, one.aux = "COPY", int(args[2], 0)
    one.operands = [to, start, program.operand(args[3], 4) if len(args) > 3 else -1]


def _groups(program: Program, one: Instruction, parts: list[str], args: list[str]) -> None:
    one.op, one.aux = (
        ("COMMIT", 0) if parts[2] == "commit_group" else ("WAIT", int(args[0]) if args else 0)
    )


def _carry(program: Program, one: Instruction, parts: list[str], args: list[str]) -> None:
    one.op, one.aux = "CARRY", ("hi" in parts) << 2 | parts[0].endswith("c") << 1 | ("cc" in parts)
    one.operands = [program.operand(arg, 4) for arg in args]
    if parts[-1] not in ("u32", "s32"):
        raise Unknown(one.text)


_DECODERS: dict[str, Callable[[Program, Instruction, list[str], list[str]], None]] = {
    **dict.fromkeys(("bra", "bar.sync", "barrier.sync", "ret", "exit"), _flow),
    **dict.fromkeys(("mov.", "cvta."), _move),
    "ld.param": _argument,
    **dict.fromkeys(("ld.", "st."), _memory),
    **dict.fromkeys(("atom.", "red."), _atomic),
    "shfl.sync": _shuffle,
    "redux.sync": _reduce,
    "vote.sync": _vote,
    "mma.sync": _product,
    "wgmma.mma_async": _product_of_group,
    **dict.fromkeys(("ldmatrix.", "stmatrix."), _matrices),
    **dict.fromkeys(("cp.async.ca.", "cp.async.cg."), _copy),
    **dict.fromkeys(("cp.async.commit_group", "cp.async.wait"), _groups),
    **dict.fromkeys(("mad.lo.cc", "madc.", "add.cc", "addc."), _carry),
}
