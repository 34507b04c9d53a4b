"""Batches of matrices as the kernels want them: one leading axis, contiguous."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from projunn_kernels.backends import on_device


def as_matrices(tensor: Tensor) -> Tensor:
    """(*batch, rows, columns) as (B, rows, columns)."""
    return tensor.reshape(-1, *tensor.shape[-2:])


def contiguous_matrices(tensor: Tensor) -> Tensor:
    """The same to read from, contiguous, and numbers rather than a note that they are conjugates."""
    return as_matrices(tensor.resolve_conj().contiguous())


@contextmanager
def flattened(matrices: Tensor) -> Iterator[Tensor]:
    """Gives ``matrices`` as contiguous (B, m, n); what is written there reaches strided ones too."""
    if matrices.is_contiguous() and not matrices.is_conj():
        yield as_matrices(matrices)
        return
    copy = matrices.resolve_conj().contiguous()
    yield as_matrices(copy)
    matrices.copy_(copy)


def present(active: Tensor) -> Tensor:
    """The entries of an active list that name a matrix.  It waits for the device of the list."""
    return active[active >= 0].long()


def surely_all(mask: Tensor) -> bool:
    """True if every entry is set.  Always False off the CPU, where looking would wait for the device."""
    return not on_device(mask) and bool(mask if mask.dim() == 0 else mask.all())
