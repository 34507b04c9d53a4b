"""Fingerprints of kernels: whether a kernel is still the one that a time was measured for.

A fingerprint is a hash of the source of a kernel, of every device function that it calls, and of every
constant that they read.  Comments, docstrings and line breaks do not count, nor does the file or the
line where a function stands, nor the versions of Python and Triton.
"""

import hashlib
import inspect
import io
import textwrap
import tokenize
from collections import deque
from collections.abc import Iterator
from functools import cache
from typing import Any

from projunn_kernels.triton_kernels import kernels

_LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER}
_STRUCTURE = {tokenize.NEWLINE: "newline", tokenize.INDENT: "indent", tokenize.DEDENT: "dedent"}


@cache
def fingerprints() -> dict[str, str]:
    """The fingerprint of every kernel, by its name."""
    return {name: fingerprint(kernel) for name, kernel in kernels().items()}


def fingerprint(kernel: Any) -> str:
    """16 hexadecimal digits for a function made by ``triton.jit``, compiled or interpreted."""
    parts: list[str] = []
    _collect(kernel.fn, parts, set())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _collect(function: Any, parts: list[str], seen: set[Any]) -> None:
    """Add the source of a function, and of what it refers to, to ``parts``, each function once."""
    if function in seen:
        return
    seen.add(function)
    words = _words_of(function)
    parts.append(" ".join(words))
    for word in sorted(set(words)):
        value = function.__globals__.get(word)
        if inspect.isfunction(getattr(value, "fn", None)):
            _collect(value.fn, parts, seen)
            continue
        constant = getattr(value, "value", value)  # a ``tl.constexpr`` wraps its value
        if isinstance(constant, bool | int | float | str):
            parts.append(f"{word} {constant!r}")


@cache
def _words_of(function: Any) -> tuple[str, ...]:
    return tuple(_words(textwrap.dedent(inspect.getsource(function))))


def _words(source: str) -> Iterator[str]:
    """The tokens that mean something, without docstrings and without commas before a bracket closes."""
    lines = tokenize.generate_tokens(io.StringIO(source).readline)
    tokens = deque(token for token in lines if token.type not in _LAYOUT)
    before = tokenize.NEWLINE
    while tokens:
        token = tokens.popleft()
        after = tokens[0] if tokens else token
        starts, ends = before in _STRUCTURE, after.type == tokenize.NEWLINE
        before = token.type
        if token.type == tokenize.STRING and starts and ends:
            tokens.popleft()
            before = tokenize.NEWLINE
        elif token.string != "," or after.string not in (")", "]", "}"):
            yield _STRUCTURE.get(token.type, token.string)
