"""The small unitary matrix of a step, minus the identity, in float64: one file a retraction.

A step D at W is ``W^H D = Q E Q^H`` in its basis (`projunn_kernels.retraction.basis`), E of size 2k x
2k. A retraction is ``W (I + Q F Q^H)`` with a unitary I + F; which one says what F is of E.
"""

import importlib
from typing import Any

import torch
from torch import Tensor

from projunn_kernels.backends import on_device
from projunn_kernels.retraction.rotations.cayley import CAYLEY
from projunn_kernels.retraction.rotations.declaration import Retraction
from projunn_kernels.retraction.rotations.exp import EXP
from projunn_kernels.retraction.rotations.polar import POLAR

RETRACTIONS = {retraction.name: retraction for retraction in (EXP, POLAR, CAYLEY)}
WITH_KERNELS = tuple(name for name, one in RETRACTIONS.items() if one.kernels is not None)
_UNITARY = 1e-9  # what I + F may be off


def named(retraction: str) -> Retraction:
    """The retraction of a name.

    Raises:
        ValueError: there is none of that name.
    """
    found = RETRACTIONS.get(retraction)
    if found is None:
        raise ValueError(f"retraction: got {retraction!r}, wanted one of {', '.join(RETRACTIONS)}")
    return found


def device_function(retraction: str, name: str) -> Any:
    """A Triton function of a retraction that has some."""
    module = named(retraction).kernels
    assert module is not None
    return getattr(importlib.import_module(module), name)


def rotation(e: Tensor, retraction: str, precision: float) -> tuple[Tensor, Tensor]:
    """F, with I + F unitary, from the small matrix E of a step, and where the step can be taken.

    Args:
        e: E, (*batch, 2k, 2k), float64 or complex128.
        retraction: one of `RETRACTIONS`.
        precision: the machine epsilon of the weight's dtype.

    Returns:
        F, shaped like E, and a mask (*batch).  The mask is False, and F zero, where E is not finite or F
        is not determined to working precision.

    Raises:
        ValueError: there is no such retraction, or it is no rotation of the step's span.
    """
    how, on_a_gpu = named(retraction), on_device(e)
    if how.dense is None:
        raise ValueError(f"retraction: {retraction!r} is no rotation of the step's span")
    if how.plane is not None and e.shape == (2, 2) and not e.is_complex() and not on_a_gpu:
        (e11, e12), (e21, e22) = e.tolist()
        single = how.plane(e11, e12, e21, e22, precision)
        if single is None:
            return torch.zeros_like(e), torch.tensor(False, device="cpu")
        return torch.tensor(single, dtype=e.dtype, device=e.device), torch.tensor(True, device=e.device)
    if how.two_by_two is not None and e.shape[-1] == 2:
        f, usable = how.two_by_two(e, precision)
    else:
        finite = e.isfinite().all(dim=(-2, -1))
        e = torch.where(finite[..., None, None], e, 0.0)
        if on_a_gpu and how.iterated is not None:
            f, regular = how.iterated(e, precision)
            regular = regular & (torch.linalg.matrix_norm(f + f.mH + f.mH @ f) < _UNITARY)
        else:
            f, regular = how.dense(e, precision)
        usable = finite & regular
    return torch.where(usable[..., None, None], f, 0.0), usable


def plane_rotation(
    e11: float, e12: float, e21: float, e22: float, retraction: str, precision: float
) -> list[list[float]] | None:
    """`rotation` of one real 2 x 2 matrix in Python's floats; None where the step cannot be taken."""
    plane = named(retraction).plane
    assert plane is not None
    return plane(e11, e12, e21, e22, precision)
