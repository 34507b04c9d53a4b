"""Batches of matrices as the kernels want them: one leading axis, contiguous."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from projunn_kernels import selfcheck
from projunn_kernels.backends import TooManyPrograms, on_device
from projunn_kernels.configs.problem import device_of

# The mask that is set everywhere: recognised by identity, it costs nothing to make or look at.
EVERY = torch.tensor(True, device="cpu")
_every: dict[torch.Size, Tensor] = {}


def as_matrices(tensor: Tensor) -> Tensor:
    """(*batch, rows, columns) as (B, rows, columns)."""
    return tensor.reshape(-1, *tensor.shape[-2:])


def lying_flat(tensor: Tensor) -> Tensor:
    """The tensor to read from: contiguous, aligned, and neither lazily conjugated nor negated."""
    tensor = tensor.resolve_conj().resolve_neg().contiguous()
    return tensor if is_aligned(tensor) else tensor.clone()


def contiguous_matrices(tensor: Tensor) -> Tensor:
    """`lying_flat`, as (B, m, n)."""
    return as_matrices(lying_flat(tensor))


def is_aligned(tensor: Tensor) -> bool:
    """Whether it starts where an allocation could: kernels that get addresses load 16 bytes at once."""
    return not on_device(tensor) or tensor.data_ptr() % 16 == 0


def within_reach(matrices: Tensor, *, single: bool) -> None:
    """Checks that kernels, which count the numbers of a matrix in 32 bits, can take these (B, m, n).

    With ``single``, one matrix alone may have any size.

    Raises:
        TooManyPrograms: they have 2^31 floats or more each.
    """
    count, m, n = matrices.shape
    if m * n * (1 + matrices.is_complex()) >> 31 and not (single and count == 1):
        raise TooManyPrograms(f"matrices of {m} x {n} numbers, whose places a kernel has in 32 bits")


def programs(count: int, device: torch.device) -> int:
    """How many programs share ``count`` matrices or tiles: one each, or as many as registers let run.

    In a check they are half as many: those of large problems take one after the other too.
    """
    most = count // 2 if selfcheck.is_comparing() else 2 * device_of(device).processors
    return min(count, max(1, most))


@contextmanager
def flattened(matrices: Tensor) -> Iterator[Tensor]:
    """Gives ``matrices`` as contiguous (B, m, n); what is written there is copied back, if need be."""
    if matrices.is_contiguous() and not matrices.is_conj() and is_aligned(matrices):
        yield as_matrices(matrices)
        return
    copy = contiguous_matrices(matrices).view(matrices.shape)
    yield as_matrices(copy)
    matrices.copy_(copy)


def present(active: Tensor) -> Tensor:
    """The entries of an active list that name a matrix.  It waits for the device of the list."""
    return active[active >= 0].long()


def every(batch: torch.Size) -> Tensor:
    """`EVERY` as the mask of a batch, on the CPU; made once, and not to be written to."""
    mask = _every.get(batch)
    if mask is None:
        mask = _every[batch] = EVERY.expand(batch)
    return mask


def surely_all(mask: Tensor) -> bool:
    """True if every entry is set.  Always False off the CPU, where looking would wait for the device."""
    if mask is EVERY or on_device(mask):
        return mask is EVERY
    if mask.dim() == 0:
        return bool(mask)
    return mask is _every.get(mask.shape) or bool(mask.all())
