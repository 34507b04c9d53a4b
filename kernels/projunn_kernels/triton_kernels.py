"""Every Triton kernel of the package.  Triton is imported when they are asked for, and not before."""

import importlib
import importlib.util
import pkgutil
from functools import cache
from typing import Any

import projunn_kernels


@cache
def kernels() -> dict[str, Any]:
    """The kernels by the names of their functions, from ``kernels`` in the folder of each operation."""
    found: dict[str, Any] = {}
    for module in pkgutil.iter_modules(projunn_kernels.__path__, "projunn_kernels."):
        name = f"{module.name}.kernels"
        if module.ispkg and importlib.util.find_spec(name) is not None:
            defined = vars(importlib.import_module(name)).items()
            found |= {key: value for key, value in defined if key.endswith("_kernel")}
    return found
