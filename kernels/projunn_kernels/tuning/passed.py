"""Triton functions that are constants of a launch, as other processes and files can name them."""

import importlib
from dataclasses import dataclass
from typing import Any

from projunn_kernels.configs.fingerprints import fingerprint


@dataclass(frozen=True, order=True)
class Passed:
    """A function made by ``triton.jit``: where it is, and what its source was."""

    module: str
    name: str
    fingerprint: str

    @property
    def function(self) -> Any:
        """The function itself."""
        return getattr(importlib.import_module(self.module), self.name)


def encoded(value: Any) -> Any:
    """A constant of a launch; functions as `Passed`."""
    fn = getattr(value, "fn", None)
    return value if fn is None else Passed(fn.__module__, fn.__name__, fingerprint(value))


def decoded(value: Any) -> Any:
    """The inverse of `encoded`."""
    return value.function if isinstance(value, Passed) else value
