"""Which parameters of a module a name means: its own, one inside, or all that fit a pattern."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import nn

NORMS = (nn.LayerNorm, nn.RMSNorm)  # their weights scale number by number, and may have several axes


class Place(NamedTuple):
    """A slot for a parameter: the module that has it, its name there, and its dotted name."""

    owner: nn.Module
    name: str
    full: str


def is_pattern(name: str) -> bool:
    """Whether a name has one of the characters that stand for others: ``*``, ``?``, ``[``."""
    return any(character in name for character in "*?[")


def names_of(argument: str, value: Any) -> list[str]:
    """A name or several, as a list.

    Raises:
        TypeError: something else.
        ValueError: none at all.
    """
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Iterable) or not all(isinstance(name, str) for name in (*names,)):
        raise TypeError(
            f"{argument}: got {value!r}, wanted the name of a parameter, a pattern or a list of them"
        )
    if not (names := [*names]):
        raise ValueError(f"{argument}: got no name at all")
    return names


def places(module: nn.Module, *, every_name: bool = False) -> list[Place]:
    """The slots of all parameters in a module; a shared one is listed as often as it occurs.

    Args:
        every_name: whether a module that occurs several times is listed by each of its names.
    """
    return [
        Place(owner, name, f"{prefix}.{name}" if prefix else name)
        for prefix, owner in module.named_modules(remove_duplicate=not every_name)
        for name, parameter in owner._parameters.items()
        if parameter is not None
    ]


def _may_be_matrix(place: Place) -> bool:
    parameter = place.owner._parameters[place.name]
    return parameter is not None and parameter.ndim > 1 and not isinstance(place.owner, NORMS)


def select(module: nn.Module, names: list[str]) -> list[Place]:
    """The slots that names mean, each parameter once, in the order of ``module.named_parameters()``.

    A name is dotted, ``"encoder.layers.0.linear1.weight"``, or a pattern, ``"encoder.*.weight"``, whose
    characters ``*`` (any others, dots too), ``?`` and ``[..]`` mean what they mean in file names.  A
    pattern passes over vectors and numbers, such as biases, and over the parameters of norms: only a
    matrix can be orthogonal.  Of a shared parameter the slot is the first that a name means.

    Raises:
        ValueError: a name or a pattern that no parameter has.
    """
    every, chosen = places(module, every_name=True), set()
    for name in names:
        fitting = [p for p in every if p.full == name]
        if not fitting and is_pattern(name):
            fitting = [p for p in every if _may_be_matrix(p) and fnmatchcase(p.full, name)]
        if not fitting:
            own = [p.full for p in every if p.owner is module or is_pattern(name) or "." in name]
            known = ", ".join(own[:8]) + ", .." * (len(own) > 8) or "none"
            raise ValueError(
                f"name: {type(module).__name__} has no parameter {name!r} (it has: {known})"
            )
        chosen |= {place.full for place in fitting}
    seen: set[int] = set()
    result = []
    for place in every:
        key = id(place.owner._parameters[place.name])
        if place.full in chosen and key not in seen:
            seen.add(key)
            result.append(place)
    return result
