"""The base of the unitary layers: how they store their parameters and keep them recognised."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from projunn.factored import FactoredTensor
from projunn.manifold import (
    MATRIX_DTYPES,
    UnitaryParameter,
    dtype_names,
    marks,
    matrix_view,
    restore_marks,
)
from projunn_kernels import orthonormalize, private, seeded_normal


class UnitaryModule(nn.Module):
    """Base of the unitary layers.

    Complex parameters are stored as pairs of reals.  ``Module.to_empty``, ``Module.to`` and
    ``load_state_dict(assign=True)`` may replace parameters by new, plain ones.  Those that replace
    unitary parameters are made unitary parameters again.

    Args:
        dtype: float32, float64, complex64 or complex128; None for PyTorch's default dtype.

    Attributes:
        is_complex: True if the numbers are complex.

    Raises:
        TypeError: another dtype.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in MATRIX_DTYPES:
            raise TypeError(f"dtype: got {dtype}, wanted one of {dtype_names()}")
        self.is_complex = dtype.is_complex
        self._stored = dtype.to_real()

    def _matrices(
        self,
        *shape: int,
        device: torch.device | str | None,
        sketch_rank: int | None = None,
        pairs: bool | None = None,
    ) -> UnitaryParameter:
        """An uninitialised unitary parameter, as real pairs if ``pairs`` (default: if the layer is)."""
        pairs = self.is_complex if pairs is None else pairs
        weight = UnitaryParameter(self._empty(*shape, device=device, pairs=pairs), pairs=pairs)
        if sketch_rank is not None:
            rank = min(positive("sketch_rank", sketch_rank), *shape[-2:])
            left, right = (
                self._empty(*shape[:-2], n, rank, device=device, pairs=pairs) for n in shape[-2:]
            )
            weight.sketch = FactoredTensor(left, right, pairs)
        return weight

    def _plain(self, *shape: int, device: torch.device | str | None) -> nn.Parameter:
        return nn.Parameter(self._empty(*shape, device=device, pairs=self.is_complex))

    def _empty(self, *shape: int, device: torch.device | str | None, pairs: bool) -> Tensor:
        shape = (*shape, 2) if pairs else shape
        return torch.empty(shape, dtype=self._stored, device=device)

    def _numbers(self, stored: Tensor) -> Tensor:
        """A stored parameter as the real or complex numbers it means."""
        return torch.view_as_complex(stored) if self.is_complex else stored

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        known = marks(self)
        super()._apply(fn, recurse)
        restore_marks(self, known)
        for parameter in self._parameters.values():
            if isinstance(parameter, UnitaryParameter) and parameter.sketch is not None:
                sketch = parameter.sketch
                moved = fn(sketch.stored_left), fn(sketch.stored_right)
                parameter.sketch = sketch.with_factors(*moved)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        known = marks(self)
        super()._load_from_state_dict(*args, **kwargs)
        restore_marks(self, known)


def positive(name: str, value: int) -> int:
    """``value``, checked to be a positive integer."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: got {value!r}, wanted a positive integer")
    return value


def sketch_of(weight: Tensor) -> FactoredTensor | None:
    """The factors that the sketch of a weight's gradient starts from; None if its gradients are dense.

    They are dense under the transforms of ``torch.func`` and in forward mode, which know no factors, and
    in exported and traced programs, which compute no gradients of weights.
    """
    sketch: FactoredTensor | None = getattr(weight, "sketch", None)
    return None if sketch is None or private.in_transform_or_export() else sketch


@torch.no_grad()
def start_sketch(weight: UnitaryParameter) -> None:
    """Gives the first sketch of a weight's gradient a random basis to start from, one for each shape."""
    if weight.sketch is not None:
        left = weight.sketch.left
        left.copy_(orthonormalize(seeded_normal(matrix_view(weight), left.shape, 0)))
        weight.sketch.right.zero_()
