"""The basis that the factorization of the next step starts from: ``R <- orth(S) + 0.01 probe``.

R, its probe and S, the left factor of the gradient, are (*batch, m, k).  Only the bases of matrices
whose step was taken change.  The probe is a fixed random matrix, without which a gradient orthogonal to
the basis would be invisible for ever.
"""

from typing import Any

import torch
from torch import Tensor

from projunn_kernels.batches import surely_all
from projunn_kernels.constants import PROBE
from projunn_kernels.factorization import orthonormalize
from projunn_kernels.operation import Operation, nothing
from projunn_kernels.warm_basis.tiles import WARM_BASIS


def refresh_basis_(left: Tensor, basis: Tensor, probe: Tensor, taken: Tensor) -> None:
    """``R <- orth(S) + 0.01 probe`` in place, for the matrices whose step was taken.

    Args:
        left: S, the left factor of the gradient, (*batch, m, k).
        basis, probe: R and its probe, (*batch, m, k).
        taken: the mask of the steps that were taken, (*batch).
    """
    _refresh(left=left, basis=basis, probe=probe, taken=taken)


def _eager(left: Tensor, basis: Tensor, probe: Tensor, taken: Tensor) -> None:
    warm = orthonormalize(left)
    if surely_all(taken):
        torch.add(warm, probe, alpha=PROBE, out=basis)
    else:
        basis.copy_(torch.where(taken[..., None, None], warm.add_(probe, alpha=PROBE), basis))


def _one_column(left: Tensor, **_: Any) -> bool:
    return left.shape[-1] == 1


_refresh = Operation(
    name="refresh_basis_",
    eager=_eager,
    launches="projunn_kernels.warm_basis.launch:refresh",
    fits=_one_column,
    fake=nothing,
    on="left",
    mutates=("basis",),
    kernels=(WARM_BASIS,),
)
