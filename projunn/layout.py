"""How matrices lie in a tensor, and which memory holds those whose shape alone does not tell.

* real, or natively complex: (*batch, m, n);
* ``pairs``: complex numbers as pairs of reals, (*batch, m, n, 2), as the layers of `projunn.nn` store
  them;
* ``blocks > 1``: that many matrices stacked along the rows, (*batch, blocks m, n), as the gates of
  ``nn.LSTM`` and ``nn.GRU`` are: in the notation of einops "(gate m) n -> gate m n";
* ``singletons``: so many axes of size 1 after the matrix, (*batch, m, n, 1, 1), as the filter of a
  1 x 1 convolution has.
"""

import weakref
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from projunn_kernels import private


class Layout(NamedTuple):
    """How matrices lie in a tensor: see the top of this file."""

    pairs: bool = False
    blocks: int = 1
    singletons: int = 0


PLAIN = Layout()
HALVES = (torch.float16, torch.bfloat16)
Maybe = TypeVar("Maybe", Tensor, Tensor | None)


def single(tensor: Maybe) -> Maybe:
    """A tensor in half precision, which has no complex numbers, as float32; any other as it is."""
    return tensor.float() if tensor is not None and tensor.dtype in HALVES else tensor


def as_matrices(tensor: Tensor, pairs: bool, blocks: int, singletons: int = 0) -> Tensor:
    """The matrices (*batch, m, n) of a tensor in a layout; a view of it.

    Raises:
        ValueError: ``blocks`` does not divide the rows, as where other rows were put into a slot.
        TypeError: pairs of bfloat16 numbers, which no complex dtype of PyTorch is made of.
    """
    if pairs:
        if tensor.dtype == torch.bfloat16:
            raise TypeError(
                f"tensor: got complex matrices as pairs of {tensor.dtype}, of which PyTorch has no"
                " complex numbers; wanted them in float32 (module.float(), module.bfloat16() afterwards)"
            )
        tensor = torch.view_as_complex(tensor)
    for _ in range(singletons):
        tensor = tensor.squeeze(-1)
    if blocks > 1:
        if tensor.ndim < 2 or tensor.shape[-2] % blocks:
            raise ValueError(
                f"blocks: got {blocks} for a tensor of shape {tuple(tensor.shape)}, wanted a divisor of"
                " its rows; projunn.constrain(module, name, blocks=...) says of how many matrices it is"
            )
        # "... (gate m) n -> ... gate m n"; not by `einops.rearrange`, which promises no view.
        tensor = tensor.unflatten(-2, (blocks, -1))
    return tensor


def view_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """The matrices (*batch, m, n) of ``tensor``, whose layout is that of ``parameter``; a view of it.

    ``tensor`` may be the gradient of ``parameter``, for instance.  Pairs of reals become complex
    numbers, stacked blocks become an axis of the batch, and singletons go.  If ``parameter`` is no
    `UnitaryParameter`, ``tensor`` is returned.
    """
    blocks: int | None = getattr(parameter, "blocks", None)
    if blocks is None:
        return tensor
    pairs: bool = parameter.pairs  # type: ignore[attr-defined]
    return as_matrices(tensor, pairs, blocks, parameter.singletons)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class _Region:
    """Where in a storage a parameter lies, and in which layout."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    pairs: bool
    blocks: int
    singletons: int

    def layout(self, tensor: Tensor, wrapped: bool = False) -> Layout | None:
        """The layout of a tensor that shares the storage; None if it lies elsewhere in it.

        A tensor that a transform has ``wrapped`` shows its shape, and not where it lies.

        Raises:
            ValueError: it holds the same numbers in another order, so that what its matrices are is
                not to be seen.
        """
        if self.singletons:
            return self._of_filter(tensor, wrapped)
        axis = -3 if self.pairs else -2
        start = 0 if wrapped else tensor.storage_offset() - self.offset
        size = torch.Size(self.shape).numel()
        if not 0 <= start < max(1, size) or (self.pairs and tensor.is_complex()):
            return None
        rows = self.shape[axis] // self.blocks
        alike = tensor.ndim >= -axis and tensor.shape[axis + 1 :] == self.shape[axis + 1 :]
        alike = alike and (wrapped or tensor.stride()[axis:] == self.strides[axis:]) and rows > 0
        if alike and tensor.shape[axis] % rows == 0 and start % (rows * self.strides[axis]) == 0:
            return Layout(self.pairs, max(1, tensor.shape[axis] // rows))
        ends_in_pairs = self.pairs and self.blocks == 1 and tensor.shape[-1:] == (2,)
        if ends_in_pairs and (wrapped or (tensor.stride(-1) == self.strides[-1] and start % 2 == 0)):
            return Layout(True)  # some other view of it
        if tensor.numel() == size and not wrapped:
            kind = "real pairs" if self.pairs else f"{self.blocks} blocks"
            raise ValueError(
                f"tensor: has shape {tuple(tensor.shape)} and shares memory with a unitary parameter of"
                f" shape {self.shape} ({kind}); wanted projunn.matrix_view of that"
            )
        return None

    def _of_filter(self, tensor: Tensor, wrapped: bool) -> Layout | None:
        """The layout of a tensor in the storage of a 1 x 1 filter, with or without those axes."""
        ones = self.singletons
        whole = tensor.ndim >= ones + 2 and tensor.shape[-ones:] == self.shape[-ones:]
        if not whole and self.blocks == 1 and not self.pairs:
            return PLAIN
        rest = replace(self, shape=self.shape[:-ones], strides=self.strides[:-ones], singletons=0)
        found = rest.layout(as_matrices(tensor, False, 1, ones) if whole else tensor, wrapped)
        return found._replace(singletons=ones) if whole and found is not None else found


@dataclass(frozen=True)
class _Memory:
    """A storage, held weakly, and the parameters in it by their offset."""

    storage: weakref.ref[Any]
    regions: dict[int, _Region]


# By the address of the storage: of tensors that have pairs, blocks or singletons.  Addresses are used
# again, so an entry counts only while its own storage lives.
_memory: dict[int, _Memory] = {}


def remember(tensor: Tensor, layout: Layout) -> None:
    """Notes in which layout the memory of a tensor is to be read, as long as that memory lives."""
    storage = tensor.untyped_storage()
    address, known = storage.data_ptr(), _memory.get(storage.data_ptr())
    if known is None or known.storage() is not storage:
        for key, memory in list(_memory.items()):  # a copy, because other threads may add to it
            if memory.storage() is None:
                _memory.pop(key, None)
        known = _memory[address] = _Memory(weakref.ref(storage), {})
    offset = int(tensor.storage_offset())
    known.regions[offset] = _Region(offset, tuple(tensor.shape), tensor.stride(), *layout)


def forget_memory(tensor: Tensor) -> None:
    """The inverse of `remember`."""
    known = _memory.get(tensor.untyped_storage().data_ptr())
    if known is not None:
        known.regions.pop(int(tensor.storage_offset()), None)


def remembered(tensor: Tensor) -> Layout | None:
    """The layout of a tensor by what is known of its memory; None if nothing is."""
    wrapped = False
    try:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
    except (NotImplementedError, RuntimeError):  # a transform has wrapped it
        wrapped, storage = True, private.beneath(tensor).untyped_storage()
        address = storage.data_ptr()
    known = _memory.get(address)
    if known is None or known.storage() is not storage:
        return None
    found = (region.layout(tensor, wrapped) for region in known.regions.values())
    return next((layout for layout in found if layout is not None), None)
