"""Launches of the sketch of a gradient that is never formed, kept for the next of the same shapes."""

from collections.abc import Callable, Sequence
from functools import partial
from threading import get_ident

import torch
from torch import Tensor

from projunn_kernels.batches import as_matrices, contiguous_matrices
from projunn_kernels.factorization.launch import orthonormal_launch
from projunn_kernels.keeping import IDLE, Recent, in_force, may_keep
from projunn_kernels.launching import Launch, Matrices, floats
from projunn_kernels.products.launch import adjoint_launch, product_launch
from projunn_kernels.sketching.eager import numbers


def factors(
    inputs: list[Tensor], grads: list[Tensor], basis: Tensor, pairs: bool, group: str = ""
) -> tuple[Tensor, Tensor]:
    """`projunn_kernels.sketch`, without a ``group``, of tensors as users have them."""
    inputs, grads, basis = numbers(inputs, grads, basis, pairs)
    xs, gs = ([contiguous_matrices(t) for t in tensors] for tensors in (inputs, grads))
    columns = _kept_sketch(xs, gs, basis)(xs, gs, basis)
    left, right = (c.view(*basis.shape[:-2], *c.shape[-2:]).mT for c in columns)
    return (torch.view_as_real(left), torch.view_as_real(right)) if pairs else (left, right)


_kept: Recent["Sketch"] = Recent(256, IDLE)


def _kept_sketch(inputs: Sequence[Tensor], grads: Sequence[Tensor], basis: Tensor) -> "Sketch":
    if not may_keep(basis):
        return Sketch(inputs, grads, basis)
    sizes = [(t.shape, t.dtype) for t in (*inputs, *grads, basis)]
    # Sketches of one thread and stream follow each other, so that they can share what lies between.
    key = (*sizes, basis.device, get_ident(), *in_force(basis))
    return _kept.made(key, lambda: Sketch(inputs, grads, basis))


class Sketch:
    """`projunn_kernels.sketch` of x (B, rows, n) and g (B, rows, m), k <= MAX_RANK.

    Four launches for each x and g, and a few for all.  The kernels make ``M Y`` and ``M^H X``: all but
    x and g is conjugated on the way in and out.

    Args:
        inputs, grads: of the shapes and dtypes of those of the calls.
        basis: R, (*batch, m, k), likewise.
    """

    def __init__(self, inputs: Sequence[Tensor], grads: Sequence[Tensor], basis: Tensor) -> None:
        start = as_matrices(basis).mT
        self._start = torch.empty(start.shape, dtype=start.dtype, device=start.device)
        self._pull, pulled = _sums(grads, inputs, self._start)
        self._pulled, joined = _side_by_side(pulled)
        self._orthonormal, self._right = orthonormal_launch(joined)
        self._push, pushed = _sums(inputs, grads, self._right)
        self._pushed, self._joined = _side_by_side(pushed)

    def __call__(
        self, inputs: Sequence[Tensor], grads: Sequence[Tensor], basis: Tensor
    ) -> tuple[Tensor, Tensor]:
        """X as (B, k, m) and Y as (B, k, n)."""
        self._start.copy_(as_matrices(basis).mT.conj())
        _run(self._pull, grads, inputs)
        self._pulled()
        self._orthonormal()
        _run(self._push, inputs, grads)
        self._pushed()
        left, right = self._joined.sum(1), self._right.clone()
        return (left.conj_physical_(), right.conj_physical_()) if left.is_complex() else (left, right)


_Sums = list[tuple[Launch, Launch]]


def _sums(
    inner: Sequence[Tensor], outer: Sequence[Tensor], columns: Tensor
) -> tuple[_Sums, list[Tensor]]:
    """Launches of the partial sums of ``a^H (b C)``: a is of ``outer``, b of ``inner``."""
    runs, partials = [], []
    for b, a in zip(inner, outer, strict=True):
        through, moved = product_launch(_like(b), columns)
        back, partial = adjoint_launch(_like(a), columns.shape[1], moved)
        runs.append((through, back))
        partials.append(partial)
    return runs, partials


def _like(matrices: Tensor) -> Matrices:
    """A stand-in for matrices that each call names: a kept launch would hold on to the first ones."""
    return Matrices.of(matrices.new_empty(1).expand(matrices.shape))


def _run(sums: _Sums, inner: Sequence[Tensor], outer: Sequence[Tensor]) -> None:
    for (through, back), b, a in zip(sums, inner, outer, strict=True):
        first, second = floats(b), floats(a)
        through(matrix=first, listed=first)
        back(matrix=second, listed=second)


def _side_by_side(partials: list[Tensor]) -> tuple[Callable[[], object], Tensor]:
    """A function that joins partial sums, and the joined ones; for a single pair it does nothing."""
    if len(partials) == 1:
        return _nothing, partials[0]
    joined = torch.cat(partials, 1)
    return partial(torch.cat, partials, 1, out=joined), joined


def _nothing() -> None:
    pass
