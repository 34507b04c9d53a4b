"""The precision of float32 products: what PyTorch's settings ask for, and products that ignore them.

``torch.set_float32_matmul_precision("high")`` and ``torch.backends.cuda.matmul.fp32_precision = "tf32"``
let a GPU multiply float32 in TF32, whose products are off by 5e-4.  For the activations and gradients of
a layer that is what the user asked for.  A matrix that is multiplied so is no longer unitary, so what
steps, corrects or measures weights multiplies in true float32 (`exact_products`).  For the same reason
it does so outside of ``torch.autocast``, which would multiply in half precision (`without_autocast`,
`in_full_precision`).
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import TracebackType
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from projunn_kernels.private import float32_setting, is_autocast_on

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
_BACKENDS = {"cuda": torch.backends.cuda.matmul, "mkldnn": torch.backends.mkldnn.matmul}  # type: ignore[attr-defined]
_EXACT = ("ieee", "none")


def setting_of(kind: str) -> str:
    """``tf32``, ``bf16`` or ``ieee``: how a device type ("cpu", "cuda") multiplies float32.

    Read from the setting of the backend itself: `torch.get_float32_matmul_precision` raises where that
    setting was made by ``torch.backends``.
    """
    found = float32_setting("mkldnn" if kind == "cpu" else "cuda", "matmul")
    return "ieee" if found in _EXACT else found


class _ExactProducts:
    """Counts the open contexts of all threads: the first changes the settings, the last undoes it."""

    def __init__(self) -> None:
        self.depth = 0
        self._lock = threading.Lock()
        self._legacy: str | None = None
        self._before: dict[str, str] = {}

    def __enter__(self) -> None:
        with self._lock:
            if not self.depth:
                self._legacy, self._before = set_precision("highest", "ieee")
            self.depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self.depth -= 1
            if not self.depth:
                _restore(self._legacy, self._before)


exact_products = _ExactProducts()  # a context


def may_be_inexact() -> bool:
    """Whether float32 products need `exact_products` to be exact."""
    if float32_setting("cuda", "matmul") in _EXACT and float32_setting("mkldnn", "matmul") in _EXACT:
        return bool(exact_products.depth)
    return True


def exact_product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in true float32; in compiled code, which cannot change settings, by way of float64."""
    if is_autocast_on():
        return without_autocast(exact_product, a, b)
    if torch.compiler.is_compiling():
        if a.device.type == "cpu" or a.dtype not in (torch.float32, torch.complex64):
            return a @ b
        wide = torch.complex128 if a.is_complex() else torch.float64
        return (a.to(wide) @ b.to(wide)).to(a.dtype)
    if not may_be_inexact():
        return a @ b
    with exact_products:
        return a @ b


def without_autocast(
    function: Callable[Arguments, Result], *arguments: Arguments.args, **options: Arguments.kwargs
) -> Result:
    """``function(*arguments, **options)``, computed in the dtypes of the arguments.

    Entering the two contexts takes 10 us, so callers ask `is_autocast_on` first.
    """
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        return function(*arguments, **options)


def in_full_precision(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorates a function that does inside of ``torch.autocast`` what it does outside."""

    @wraps(function)
    def call(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        if is_autocast_on():
            return without_autocast(function, *arguments, **options)
        return function(*arguments, **options)

    return call


@contextmanager
def matmul_precision(setting: str) -> Iterator[None]:
    """Sets the precision of float32 products, "highest" or "high", inside, and puts it back after it."""
    before = set_precision(setting, "ieee" if setting == "highest" else "tf32")
    try:
        yield
    finally:
        _restore(*before)


def set_precision(legacy: str, own: str) -> tuple[str | None, dict[str, str]]:
    """Make both of PyTorch's settings; what they were.

    They must agree, or `torch.get_float32_matmul_precision` raises: so the older one is changed too,
    unless the user has made them disagree.
    """
    before = {name: float32_setting(name, "matmul") for name in _BACKENDS}
    try:
        older: str | None = torch.get_float32_matmul_precision()
    except RuntimeError:
        older = None
    if older is not None:
        torch.set_float32_matmul_precision(legacy)
    _set(dict.fromkeys(_BACKENDS, own))
    return older, before


def _restore(older: str | None, before: dict[str, str]) -> None:
    if older is not None:
        torch.set_float32_matmul_precision(older)
    _set(before)


def _set(wanted: dict[str, str]) -> None:
    for name, value in wanted.items():
        found = float32_setting(name, "matmul")
        if found != value and not (found in _EXACT and value in _EXACT):
            _BACKENDS[name].fp32_precision = value
