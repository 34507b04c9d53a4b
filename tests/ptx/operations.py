"""The arithmetic instructions of PTX: types of result and operands, and an expression in C of each.

The operands are called a, b, c and e.  Conversions to another number of bits and comparisons are in C as
they are in PTX; flushing of subnormal numbers (``.ftz``) is left out.
"""

from itertools import product

INTEGERS = [f"{sign}{bits}" for sign in "us" for bits in (16, 32, 64)]
BYTES = ["u8", "s8"]
BITS = ["b16", "b32", "b64"]
FLOATS = ["f32", "f64"]
HALVES = ["f16", "bf16"]
TYPES = {
    f"{kind}{bits}": f"{'' if kind == 's' else 'u'}int{bits}_t"
    for kind in "bus"
    for bits in (8, 16, 32, 64)
}
TYPES |= {"pred": "uint8_t", "f16": "uint16_t", "bf16": "uint16_t", "f32": "float", "f64": "double"}
IN_REGISTERS = {"u8": "uint16_t", "s8": "int16_t"}  # a register has 16 bits at least

Operation = tuple[str, tuple[str, ...], str]


def operations() -> dict[str, Operation]:
    """By the name of an instruction: its result's type, its operands' types, its expression."""
    found = integers() | logic() | comparisons() | floats() | halves() | conversions()
    for t in [*INTEGERS, *BITS, *FLOATS, *HALVES]:
        found[f"selp.{t}"] = (t, (t, t, "pred"), "c ? a : b")
    return found


def cases(numbers: dict[str, int]) -> str:
    """The cases of a ``switch`` over the numbers of the instructions."""
    lines = []
    for name, (result, operands, expression) in operations().items():
        kept = [IN_REGISTERS.get(t, TYPES[t]) for t in (result, *operands)]
        rows = "".join(f" const {t} *A{i} = ROW({t}, {i});" for i, t in enumerate(kept) if i)
        values = "".join(
            f" {TYPES[t]} {x} = ({TYPES[t]})A{i + 1}[t];"
            for i, (x, t) in enumerate(zip("abce", operands, strict=False))
        )
        lines.append(
            f"case {numbers[name]}: {{ // {name}\n    {kept[0]} *to = ROW({kept[0]}, 0);{rows}\n"
            f"    EACH({{{values} to[t] = ({expression}); }});\n    return 0;\n}}"
        )
    return "\n".join(lines) + "\n"


def integers() -> dict[str, Operation]:
    found: dict[str, Operation] = {}
    for t in INTEGERS:
        bits, raw, signed = int(t[1:]), f"u{t[1:]}", t[0] == "s"
        for name, sign in (("add", "+"), ("sub", "-"), ("mul.lo", "*")):
            found[f"{name}.{t}"] = (t, (raw, raw), f"a {sign} b")
        for name, sign in (("div", "/"), ("rem", "%")):
            found[f"{name}.{t}"] = (t, (t, t), f"b ? a {sign} b : -1")
        found[f"min.{t}"] = (t, (t, t), "a < b ? a : b")
        found[f"max.{t}"] = (t, (t, t), "a > b ? a : b")
        found[f"mad.lo.{t}"] = (t, (raw, raw, raw), "a * b + c")
        found[f"shr.{t}"] = (
            t,
            (t, "u32"),
            f"b < {bits} ? a >> b : " + (f"a >> {bits - 1}" if signed else "0"),
        )
        if signed:
            found[f"neg.{t}"] = (t, (raw,), "-a")
            found[f"abs.{t}"] = (t, (t,), "a < 0 ? -a : a")
        if bits < 64:
            wide = f"{t[0]}{2 * bits}"
            found[f"mul.wide.{t}"] = (wide, (t, t), f"({TYPES[wide]})a * b")
            found[f"mad.wide.{t}"] = (wide, (t, t, wide), f"({TYPES[wide]})a * b + c")
        large = "__int128" if signed else "unsigned __int128"
        found[f"mul.hi.{t}"] = (t, (t, t), f"({large})a * b >> {bits}")
        found[f"mad.hi.{t}"] = (t, (t, t, t), f"(({large})a * b >> {bits}) + c")
    return found


def logic() -> dict[str, Operation]:
    found: dict[str, Operation] = {}
    for t in [*BITS, "pred"]:
        for name, sign in (("and", "&"), ("or", "|"), ("xor", "^")):
            found[f"{name}.{t}"] = (t, (t, t), f"a {sign} b")
        found[f"not.{t}"] = (t, (t,), "!a" if t == "pred" else "~a")
    for t in BITS:
        found[f"shl.{t}"] = (t, (t, "u32"), f"b < {t[1:]} ? a << b : 0")
    for t, long in (("b32", ""), ("b64", "l")):
        found[f"popc.{t}"] = ("u32", (t,), f"__builtin_popcount{long}(a)")
        found[f"clz.{t}"] = ("u32", (t,), f"a ? __builtin_clz{long}(a) : {t[1:]}")
    for t in ("u32", "s32"):
        found[f"bfe.{t}"] = (t, (t, "u32", "u32"), f"field_{t}(a, b, c)")
    word, both = "b32", "((uint64_t)b << 32 | a)"
    found["brev.b32"] = (word, (word,), "reversed(a)")
    found["bfi.b32"] = (word, (word, word, "u32", "u32"), "inserted(a, b, c, e)")
    found["prmt.b32"] = (word, (word,) * 3, "permuted(a, b, c)")
    found["lop3.b32"] = (word, (word,) * 4, "by_table(a, b, c, e)")
    found["shf.l.wrap.b32"] = (word, (word, word, "u32"), f"{both} << (c & 31) >> 32")
    found["shf.r.wrap.b32"] = (word, (word, word, "u32"), f"{both} >> (c & 31)")
    found["shf.l.clamp.b32"] = (word, (word, word, "u32"), f"c < 32 ? {both} << c >> 32 : a")
    found["shf.r.clamp.b32"] = (word, (word, word, "u32"), f"c < 32 ? {both} >> c : b")
    return found


def comparisons() -> dict[str, Operation]:
    found: dict[str, Operation] = {}
    signs = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
    signs |= {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
    for t, (name, sign) in product([*INTEGERS, *BITS], signs.items()):
        found[f"setp.{name}.{t}"] = ("pred", (t, t), f"a {sign} b")
    # Of floating-point numbers: false, or with a "u" at the end true, where one of the two is no number.
    ordered = {"eq": "{a} == {b}", "ne": "{a} < {b} || {a} > {b}", "lt": "{a} < {b}"}
    ordered |= {"le": "{a} <= {b}", "gt": "{a} > {b}", "ge": "{a} >= {b}"}
    ordered |= {"equ": "!({a} < {b} || {a} > {b})", "neu": "!({a} == {b})", "ltu": "!({a} >= {b})"}
    ordered |= {"leu": "!({a} > {b})", "gtu": "!({a} <= {b})", "geu": "!({a} < {b})"}
    ordered |= {"num": "{a} == {a} && {b} == {b}", "nan": "{a} != {a} || {b} != {b}"}
    for t, ftz, (name, said) in product([*FLOATS, *HALVES], ("", ".ftz"), ordered.items()):
        values = {x: f"from_{t}({x})" if t in HALVES else x for x in "ab"}
        found[f"setp.{name}{ftz}.{t}"] = ("pred", (t, t), said.format(**values))
    return found


def floats() -> dict[str, Operation]:
    found: dict[str, Operation] = {}
    functions = {"ex2": "exp2", "lg2": "log2", "sin": "sin", "cos": "cos", "tanh": "tanh"}
    for t, ftz in product(FLOATS, ("", ".ftz")):
        f = "f" if t == "f32" else ""
        for name, sign in (("add", "+"), ("sub", "-"), ("mul", "*")):
            found[f"{name}{ftz}.{t}"] = found[f"{name}.rn{ftz}.{t}"] = (t, (t, t), f"a {sign} b")
        found[f"fma.rn{ftz}.{t}"] = (t, (t, t, t), f"fma{f}(a, b, c)")
        found[f"neg{ftz}.{t}"] = (t, (t,), "-a")
        found[f"abs{ftz}.{t}"] = (t, (t,), f"fabs{f}(a)")
        found[f"copysign.{t}"] = (t, (t, t), f"copysign{f}(b, a)")
        for name in ("min", "max"):
            found[f"{name}{ftz}.{t}"] = (t, (t, t), f"f{name}{f}(a, b)")
            found[f"{name}{ftz}.NaN.{t}"] = (t, (t, t), f"a != a ? a : b != b ? b : f{name}{f}(a, b)")
        for how in ("rn", "approx", "full"):
            found[f"div.{how}{ftz}.{t}"] = (t, (t, t), "a / b")
            found[f"rcp.{how}{ftz}.{t}"] = (t, (t,), "1 / a")
            found[f"sqrt.{how}{ftz}.{t}"] = (t, (t,), f"sqrt{f}(a)")
            found[f"rsqrt.{how}{ftz}.{t}"] = (t, (t,), f"1 / sqrt{f}(a)")
        for name, function in functions.items():
            found[f"{name}.approx{ftz}.{t}"] = (t, (t,), f"{function}{f}(a)")
    for name, count, each in (
        ("add", 2, "{a} + {b}"),
        ("sub", 2, "{a} - {b}"),
        ("mul", 2, "{a} * {b}"),
        ("fma", 3, "fmaf({a}, {b}, {c})"),
    ):
        low, high = (each.format(**{x: f"part({x}, {i})" for x in "abc"}) for i in (0, 1))
        for dots, ftz in product(("", ".rn"), ("", ".ftz")):
            found[f"{name}{dots}{ftz}.f32x2"] = ("b64", ("b64",) * count, f"pair({low}, {high})")
    return found


def halves() -> dict[str, Operation]:
    """Arithmetic of half precision, of one number or of two in 32 bits."""
    found: dict[str, Operation] = {}
    for t in HALVES:
        a, b, c = (f"from_{t}({x})" for x in "abc")
        signs = {"add": "+", "sub": "-", "mul": "*"}
        one = {f"{name}.": (2, f"{a} {sign} {b}") for name, sign in signs.items()}
        one |= {f"{name}.rn.": (2, f"{a} {sign} {b}") for name, sign in signs.items()}
        one |= {"fma.rn.": (3, f"fmaf({a}, {b}, {c})")}
        for name, (count, expression) in one.items():
            high = expression
            for x in "abc":
                high = high.replace(f"({x})", f"({x} >> 16)")
            found[name + t] = (t, (t,) * count, f"to_{t}({expression})")
            pair = f"(uint32_t)to_{t}({high}) << 16 | to_{t}({expression})"
            found[f"{name}{t}x2"] = ("b32", ("b32",) * count, pair)
        for name, (function, t2, sign, rest) in {
            "neg": ("^", "b32", "0x80008000u", "0x8000"),
            "abs": ("&", "b32", "0x7FFF7FFFu", "0x7FFF"),
        }.items():
            found[f"{name}.{t}x2"] = (t2, (t2,), f"a {function} {sign}")
            found[f"{name}.{t}"] = (t, (t,), f"a {function} {rest}")
        for name, sign in signs.items():  # of a half and a float
            found[f"{name}.rn.f32.{t}"] = ("f32", (t, "f32"), f"{a} {sign} b")
        found[f"fma.rn.f32.{t}"] = ("f32", (t, t, "f32"), f"fmaf({a}, {b}, c)")
    return found


def conversions() -> dict[str, Operation]:
    found: dict[str, Operation] = {}
    roundings = {"rzi": "trunc", "rni": "nearbyint", "rmi": "floor", "rpi": "ceil"}
    every = [*BYTES, *INTEGERS]
    for to, start in product(every, every):
        found[f"cvt.{to}.{start}"] = (to, (start,), f"({TYPES[to]})a")
    for f, t in product(FLOATS, every):
        found[f"cvt.rn.{f}.{t}"] = (f, (t,), f"({TYPES[f]})a")
    for f, ftz, (how, function) in product(FLOATS, ("", ".ftz"), roundings.items()):
        found[f"cvt.{how}{ftz}.{f}.{f}"] = (f, (f,), f"({TYPES[f]}){function}((double)a)")
        for t in every:
            found[f"cvt.{how}{ftz}.{t}.{f}"] = (t, (f,), f"to_{t}({function}((double)a))")
    found["cvt.rna.tf32.f32"] = ("b32", ("b32",), "to_tf32(a)")
    for ftz in ("", ".ftz"):
        found[f"cvt.rn{ftz}.f32.f64"] = ("f32", ("f64",), "(float)a")
        found[f"cvt{ftz}.f64.f32"] = ("f64", ("f32",), "(double)a")
    for t in HALVES:
        for f in FLOATS:
            found[f"cvt.{f}.{t}"] = (f, (t,), f"({TYPES[f]})from_{t}(a)")
            found[f"cvt.rn.{t}.{f}"] = (t, (f,), f"to_{t}((float)a)")
        found[f"cvt.rn.{t}x2.f32"] = ("b32", ("f32", "f32"), f"(uint32_t)to_{t}(a) << 16 | to_{t}(b)")
    return found
