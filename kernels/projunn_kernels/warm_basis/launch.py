"""The launch that refreshes bases of one column."""

import torch
from torch import Tensor

from projunn_kernels.batches import as_matrices, contiguous_matrices, flattened
from projunn_kernels.launching import configured, floats, launch, options
from projunn_kernels.warm_basis.kernels import warm_basis_kernel


def refresh(left: Tensor, basis: Tensor, probe: Tensor, taken: Tensor) -> None:
    """`projunn_kernels.refresh_basis_` of tensors as users have them, k = 1."""
    with flattened(basis) as bases:
        warm_basis(as_matrices(left), bases, contiguous_matrices(probe), taken.reshape(-1))


def warm_basis(left: Tensor, basis: Tensor, probe: Tensor, taken: Tensor) -> None:
    """k = 1: ``R <- X / |X| + 0.01 probe`` in place, where ``taken``; all (B, m, 1) and contiguous."""
    count, m, _ = left.shape
    config = configured("warm_basis", left, 1, count)
    launch(
        warm_basis_kernel,
        (count,),
        left=floats(left.contiguous()),
        basis=floats(basis),
        probe=floats(probe),
        taken_mask=taken.to(torch.int8),
        m=m,
        PAIRS=left.is_complex(),
        BN=config.columns,
        **options(config.warps),
    )
