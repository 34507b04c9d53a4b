"""Selecting a few matrices of a large bank, with a gradient for those alone."""

from typing import Any

import torch
from torch import Tensor, nn

from projunn.arguments import of_kind, tensor
from projunn.manifold import UnitaryParameter, view_like
from projunn.parameter import recognise
from projunn_kernels import private


class _Select(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bank: Tensor, indices: Tensor) -> Tensor:
        ctx.shape = bank.shape
        ctx.save_for_backward(indices)
        return bank.detach().index_select(0, indices)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (indices,) = ctx.saved_tensors
        sparse = torch.sparse_coo_tensor(
            indices.unsqueeze(0), gradient, ctx.shape, check_invariants=False
        )
        return sparse, None


def select_blocks(bank: UnitaryParameter, indices: Tensor) -> Tensor:
    """The matrices ``bank[indices]``, with a sparse gradient of the bank, like a sparse embedding's.

    An optimizer of `projunn.optim` then reads and writes only those matrices: of a bank of 10,000
    matrices of which 32 were selected, a step pays for 32.  The momentum and the second moments of the
    others do not change either.  Such a step can neither be traced by ``torch.compile`` nor captured in
    a CUDA graph.

    Args:
        bank: (B, m, n), or (B, m, n, 2) stored as pairs of reals.
        indices: (A,), int64, from 0 to B - 1; an index may be listed more than once.

    Returns:
        (A, m, n), complex where the bank is.

    Raises:
        ValueError: ``bank`` has another number of axes, or ``indices`` is not one axis of int64 or, on a
            CPU, has an entry that is out of range.
        TypeError: ``bank`` is no `projunn.UnitaryParameter`, or ``indices`` no tensor.
    """
    if type(bank) is nn.Parameter and not torch.compiler.is_compiling():
        recognise()  # a conversion may have put it in the place of a unitary one
    of_kind("bank", bank, UnitaryParameter, "a projunn.UnitaryParameter")
    if bank.ndim != (4 if bank.pairs else 3) or bank.blocks > 1 or bank.singletons:
        raise ValueError(f"bank: got shape {tuple(bank.shape)}, wanted (B, m, n), or with real pairs")
    if tensor("indices", indices).ndim != 1 or indices.dtype != torch.int64:
        raise ValueError(
            f"indices: got shape {tuple(indices.shape)} and {indices.dtype}, wanted (A,) and int64"
        )
    try:
        if private.in_transform():  # which know no sparse gradients
            return view_like(bank, bank.index_select(0, indices))
        return view_like(bank, _Select.apply(bank, indices))  # type: ignore[no-untyped-call]
    except IndexError as error:
        raise ValueError(f"indices: got one that is not from 0 to {len(bank) - 1}") from error
