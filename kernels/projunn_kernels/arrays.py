"""Arithmetic on few numbers of a CPU, written once for NumPy's arrays and PyTorch's tensors.

A call of NumPy on few numbers takes a third of the time of a call of PyTorch.  Formulas that are made
of such calls take either kind, with the functions of `namespace`: NumPy 2 and PyTorch give those of the
array API standard the same names.
"""

from contextlib import AbstractContextManager
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

Array: TypeAlias = Any  # numpy.ndarray or torch.Tensor

# Numbers of one matrix up to which NumPy's BLAS starts no threads: it does not know how many may run.
SMALL = 1 << 13


@cache
def _numpy() -> Any:
    """NumPy if it is installed, and of a version that PyTorch and these formulas work with."""
    try:
        import numpy

        torch.zeros(1, device="cpu").numpy()
    except (ImportError, RuntimeError):
        return None
    return numpy if hasattr(numpy, "matrix_transpose") else None


def available(*tensors: Tensor) -> bool:
    """Whether NumPy is installed, and reads the numbers of these tensors as they lie in memory."""
    return _numpy() is not None and not any(t.is_conj() or t.is_neg() for t in tensors)


def shared(*tensors: Tensor) -> list[Array]:
    """NumPy's arrays in the memory of `available` tensors; who writes to them has to call `changed`."""
    return [tensor.detach().numpy() for tensor in tensors]


def changed(*tensors: Tensor) -> None:
    """Tell autograd that tensors were changed behind its back."""
    increment_version([t for t in tensors if not t.is_inference()])


def silently() -> AbstractContextManager[Any]:
    """Without NumPy's warnings of numbers that are not finite, of which PyTorch has none."""
    silence: AbstractContextManager[Any] = _numpy().errstate(all="ignore")
    return silence


def adjoint(array: Array) -> Array:
    """The conjugate transpose of NumPy's matrices."""
    return array.mT.conj() if array.dtype.kind == "c" else array.mT


def cast(array: Array, dtype: Any) -> Array:
    """The numbers of an array in a dtype; on its device, where PyTorch's ``asarray`` has the default."""
    return array.to(dtype) if isinstance(array, Tensor) else array.astype(dtype, copy=False)


def tensor(array: Array) -> Tensor:
    """The tensor in the memory of an array."""
    return array if isinstance(array, Tensor) else torch.from_numpy(array)


def namespace(array: Array) -> Any:
    """The module that has the functions of an array: ``numpy`` or ``torch``."""
    return torch if isinstance(array, Tensor) else _numpy()
