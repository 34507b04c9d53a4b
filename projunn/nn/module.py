"""The base of the unitary layers: how they store their parameters and keep them recognised."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from projunn.arguments import on_device, positive, refuse_script
from projunn.factored import FactoredTensor, TraceableFactors
from projunn.manifold import MATRIX_DTYPES, UnitaryParameter, dtype_names
from projunn.parameter import declaration, notice
from projunn.sketches import start
from projunn_kernels import private


class UnitaryModule(nn.Module):
    """Base of the unitary layers.

    Complex parameters are stored as pairs of reals.  The layer knows which of its parameters they are,
    and reads whatever tensor sits in the place of one in that layout (`projunn.parameter`).

    Args:
        dtype: float32, float64, complex64 or complex128; None for PyTorch's default dtype.

    Attributes:
        is_complex: True if the numbers are complex.

    Raises:
        TypeError: another dtype.
    """

    __prepare_scriptable__ = refuse_script
    _reals_only: ClassVar[bool] = False  # whether one built for reals cannot be converted to complex

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        got = repr(dtype)
        if dtype is None:
            dtype = torch.get_default_dtype()
            got = f"None, which is PyTorch's default dtype, {dtype} now"
        if not isinstance(dtype, torch.dtype) or dtype not in MATRIX_DTYPES:
            raise TypeError(f"dtype: got {got}; wanted one of {dtype_names()}")
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
            weight.sketch = TraceableFactors(left, right, pairs)
        return weight

    def _plain(self, *shape: int, device: torch.device | str | None) -> nn.Parameter:
        return nn.Parameter(self._empty(*shape, device=device, pairs=self.is_complex))

    def _empty(self, *shape: int, device: torch.device | str | None, pairs: bool) -> Tensor:
        shape = (*shape, 2) if pairs else shape
        return on_device(device, lambda: torch.empty(shape, dtype=self._stored, device=device))

    def _numbers(self, stored: Tensor) -> Tensor:
        """A stored parameter as the real or complex numbers it means."""
        return torch.view_as_complex(stored) if self.is_complex else stored

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(partial(self._converted, fn), recurse)
        found = declaration(self)
        if found is not None:
            found.restore()
            for _, slot, parameter in found.held():
                if slot.sketch is not None and parameter.is_shared():
                    slot.sketch.stored_left.share_memory_()
        return self

    def _converted(self, fn: Callable[[Tensor], Tensor], stored: Tensor) -> Tensor:
        """A stored tensor as ``Module.to`` and others convert it, in the layout that the layer reads.

        Complex numbers stay pairs of reals and contiguous: ``to(torch.complex128)`` means float64 for
        them, and ``to(memory_format=torch.channels_last)`` nothing.
        """
        if isinstance(stored, FactoredTensor):
            return fn(stored)
        # Tensors of three axes take no memory format.
        new = fn(stored) if stored.ndim < 4 else fn(stored.data.flatten(0, -3)).view(stored.shape)
        if new.is_complex() and not stored.is_complex():
            if self._reals_only and not self.is_complex:
                raise TypeError(
                    f"dtype: {type(self).__name__} is real, got {new.dtype}; build a complex layer"
                )
            new = new.real if self.is_complex else new
        if self.is_complex and new.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(
                f"dtype: {type(self).__name__} is complex, got {new.dtype}; wanted float32 or float64"
                " (or complex64, complex128)"
            )
        # Where nothing changed PyTorch returns the parameter itself, of a class that it cannot wrap.
        return (new.data if new is stored else new).contiguous()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, stored in self._parameters.items():
            given = state_dict.get(prefix + name)
            if stored is None or not isinstance(given, Tensor) or not given.is_complex():
                continue
            if stored.shape == (*given.shape, 2):  # true complex numbers for pairs
                state_dict[prefix + name] = torch.view_as_real(given.resolve_conj())
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def train(self, mode: bool = True) -> Self:
        """As in ``nn.Module``; ``eval()`` measures first whether the weights are unitary.

        On a GPU it leaves out weights that an optimizer of ours steps, because a check waits for the
        device.  A layer that is in evaluation mode already, as copies that average weights often are
        from the start, checks the weights that have been changed in place since the last call.

        Warns:
            OffManifoldWarning: a weight is not unitary.
        """
        found = None if torch.compiler.is_compiling() else declaration(self)
        if found is not None and not mode:
            changed = []
            for _, slot, p in found.held():
                before, slot.version = slot.version, -1 if p.is_inference() else p._version
                affordable = not slot.kept or p.device.type == "cpu"
                if affordable and (self.training or before != slot.version):
                    changed.append(p)
            notice(changed, "Before evaluation")
        return super().train(mode)


def kept_real(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A conversion as ``nn.Module._apply`` gets it; reals stay real: complex128 means float64."""

    def converted(stored: Tensor) -> Tensor:
        new = fn(stored)
        return new.real.contiguous() if new.is_complex() and not stored.is_complex() else new

    return converted


def sketch_of(weight: Tensor) -> FactoredTensor | None:
    """The factors that the sketch of a weight's gradient starts from; None if its gradients are dense.

    They are dense under the transforms of ``torch.func`` and in forward mode, which know no factors, in
    exported and traced programs, which compute no gradients of weights, and in half precision, which has
    no factorizations and no optimizer here.
    """
    sketch: FactoredTensor | None = getattr(weight, "sketch", None)
    if sketch is None or weight.dtype not in MATRIX_DTYPES or private.in_transform_or_export():
        return None
    return sketch


def start_sketch(weight: UnitaryParameter) -> None:
    """Gives the first sketch of a weight's gradient a random basis to start from, one for each shape."""
    if weight.sketch is not None:
        start(weight.sketch)
