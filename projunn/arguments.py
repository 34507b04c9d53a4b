"""Checks of arguments: each error names the argument, what it was, and what was wanted.

Those of layers' inputs look at types, dtypes, shapes and devices only, because they run in every call,
and ``torch.compile`` traces them away.
"""

import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from numbers import Integral, Real
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from projunn_kernels import private

_LARGEST = 2**31  # of what is counted; PyTorch's own sizes end at 2^63
_BY_AUTOCAST = (torch.float32, torch.float16, torch.bfloat16)  # what autocast converts
# Not by `torch.dtype.to_complex`, which Dynamo cannot trace.
_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}

_LEAF = (
    ": torch.fx.symbolic_trace cannot follow this layer; trace with a torch.fx.Tracer whose"
    " is_leaf_module is True for it, or use torch.export"
)

Converted = Literal["nothing", "reals", "all numbers"]


def positive(name: str, value: Any) -> int:
    """``value``, checked to be a positive integer; one of Python's, if it is another kind."""
    if not is_whole(value) or not 1 <= value < _LARGEST:
        raise ValueError(f"{name}: got {_said(value)}, wanted a positive integer")
    return int(value)


def whole(name: str, value: Any) -> int:
    """``value``, checked to be an integer; one of Python's, if it is another kind."""
    if not is_whole(value) or abs(value) >= _LARGEST:
        raise ValueError(f"{name}: got {_said(value)}, wanted an integer")
    return int(value)


def is_whole(value: Any) -> bool:
    """True for integers of whatever kind, such as NumPy's; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def per_axis(name: str, value: Any, axes: int) -> tuple[int, ...]:
    """One positive integer for each axis, from as many of them or from one for all."""
    values: tuple[Any, ...] = (value,) * axes
    if isinstance(value, Iterable):
        with suppress(TypeError):  # of a tensor without axes
            values = tuple(value)
    if len(values) != axes:
        raise ValueError(f"{name}: got {_said(value)}, wanted an integer or {axes} of them")
    return tuple(positive(name, v) for v in values)


def number(name: str, value: Any, low: float, high: float) -> float:
    """``value``, checked to be a real number from ``low`` to ``high``."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not low <= float(value) <= high:
        raise ValueError(f"{name}: got {_said(value)}, wanted a number from {low} to {high}")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """``value``, checked to be True or False, or 1 or 0."""
    single = isinstance(value, bool | Integral) or type(value).__name__ in ("bool", "bool_")
    if not single or value not in (0, 1):
        raise TypeError(f"{name}: got {_said(value)}, wanted True or False")
    return bool(value)


def one_of(name: str, value: Any, wanted: Iterable[str]) -> str:
    """``value``, checked to be one of some words."""
    if not isinstance(value, str) or value not in wanted:
        raise ValueError(f"{name}: got {_said(value)}, wanted one of {', '.join(wanted)}")
    return value


def words(text: str) -> tuple[str, ...]:
    """``"a, b"`` as ``("a", "b")``: a list on a command line, with commas, and spaces if you like."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def on_device(value: Any, make: Callable[[], Tensor]) -> Tensor:
    """A tensor that is made on a device, or an error that names the argument ``device``."""
    try:
        return make()
    except Exception as error:
        try:
            torch.empty(0, device=value)
        except Exception as reason:
            said = (str(reason).splitlines() or [type(reason).__name__])[0]
            raise ValueError(
                f"device: got {_said(value)}, wanted one of this machine ({said})"
            ) from error
        raise


def tensor(name: str, value: Any) -> Tensor:
    """``value``, checked to be a tensor."""
    if not isinstance(value, Tensor):
        symbolic = is_symbolic(value)
        raise TypeError(f"{name}: got {_said(value)}, wanted a tensor{_LEAF if symbolic else ''}")
    return value


def is_symbolic(value: Any) -> bool:
    """True for what stands for a tensor in a symbolic trace of ``torch.fx``."""
    fx = sys.modules.get("torch.fx")
    return fx is not None and isinstance(value, fx.Proxy)


def own_memory(name: str, value: Tensor) -> Tensor:
    """``value``, checked to be no expanded tensor, whose entries share memory."""
    if any(step == 0 and size > 1 for step, size in zip(value.stride(), value.shape, strict=True)):
        raise ValueError(
            f"{name}: got an expanded tensor of shape {tuple(value.shape)}, several entries of which are"
            " one number in memory; wanted a tensor of its own, such as its clone()"
        )
    return value


def matrices(name: str, value: Any) -> Tensor:
    """``value``, checked to hold real or complex matrices (\\*batch, m, n)."""
    floating = tensor(name, value).is_floating_point() or value.is_complex()
    if value.ndim < 2 or not floating:
        raise ValueError(
            f"{name}: got shape {tuple(value.shape)} and {value.dtype}, wanted real or complex"
            " matrices (*batch, m, n)"
        )
    return value


def of_kind(name: str, value: Any, kind: type, wanted: str) -> None:
    """Raises TypeError if ``value`` is not of a class."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: got {_said(value)}, wanted {wanted}")


def refuse_script(module: torch.nn.Module) -> NoReturn:
    """What ``torch.jit.script`` calls before it compiles a module (``__prepare_scriptable__``)."""
    raise NotImplementedError(
        f"torch.jit.script cannot compile {type(module).__name__}, whose Python is more than TorchScript"
        " knows; wanted torch.compile, torch.export.export or torch.jit.trace, or a model of PyTorch's"
        " own layers: projunn.to_plain(copy.deepcopy(model))"
    )


def check_generator(value: Any) -> None:
    """Raises TypeError if ``value`` is neither a generator of random numbers nor None."""
    if value is not None:
        of_kind("generator", value, torch.Generator, "a torch.Generator or None")


def check_numbers(
    name: str, value: Any, weight: Tensor, is_complex: bool, converted: Converted = "nothing"
) -> None:
    """Checks the dtype and the device of a layer's input.

    Args:
        name: of the argument.
        value: the input.
        weight: a parameter of the layer as it is stored, which may be as real pairs.
        is_complex: whether the layer's numbers are complex.
        converted: which numbers of another dtype the layer converts to its own.

    Raises:
        TypeError: it is no tensor, or of another dtype.
        ValueError: it is on another device, or sparse.
    """
    if not isinstance(value, Tensor):
        tensor(name, value)
    if value.dtype is not weight.dtype or (is_complex and weight.is_complex()):
        _check_dtype(name, value, weight, is_complex, converted)
    if value.device != weight.device:
        raise ValueError(f"{name}: is on {value.device}, wanted the layer's device {weight.device}")


def check_strided(name: str, value: Tensor) -> None:
    """Refuses sparse and quantized tensors, and their like."""
    if value.layout is not torch.strided or value.is_quantized:
        kind = value.dtype if value.is_quantized else value.layout
        raise ValueError(f"{name}: got a tensor of {kind}, wanted one whose numbers are stored plainly")


def _check_dtype(
    name: str, value: Tensor, weight: Tensor, is_complex: bool, converted: Converted
) -> None:
    own, got = weight.dtype, value.dtype
    if is_complex and weight.is_complex():
        raise TypeError(
            f"weight: got {own} of shape {tuple(weight.shape)}, wanted pairs of reals, as"
            " torch.view_as_real makes them; load_state_dict takes complex numbers as they are"
        )
    if is_complex:
        own = _COMPLEX.get(own, own)
    fits = got is own
    if not fits and converted != "nothing" and not value.is_quantized:
        fits = not got.is_complex or (is_complex and converted == "all numbers")
    if not fits and own in _BY_AUTOCAST and got in _BY_AUTOCAST:
        fits = private.is_autocast_on()
    if not fits:
        reals = f"real numbers or {own}" if is_complex else "real numbers"
        wanted = str(own) if converted == "nothing" else reals
        raise TypeError(f"{name}: got {got}, wanted {wanted}")


def _said(value: Any) -> str:
    """A value as messages show it, in a few words."""
    if isinstance(value, Tensor) and value.numel() > 1:
        return f"a tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else type(value).__name__
