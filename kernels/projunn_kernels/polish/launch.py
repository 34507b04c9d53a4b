"""Launches of the polish: the residual, the corrected matrix, and the decision to keep it."""

import torch
from torch import Tensor

from projunn_kernels.batches import flattened
from projunn_kernels.launching import configured, floats, launch, options
from projunn_kernels.polish.eager import NEAR
from projunn_kernels.polish.kernels import correct_kernel, residual_kernel, settle_kernel


def polish_when_due(
    weight: Tensor,
    step: Tensor,
    period: int,
    pairs: bool,
    missed: Tensor | None = None,
    taken: Tensor | None = None,
) -> None:
    """`projunn_kernels.polish_when_due_` of tensors as users have them."""
    with flattened(torch.view_as_complex(weight) if pairs else weight) as matrices:
        polish(matrices, step, period, missed, taken)


def polish(
    weight: Tensor,
    step: Tensor,
    period: int,
    missed: Tensor | None = None,
    taken: Tensor | None = None,
) -> None:
    """One Newton-Schulz step on those of (B, m, n), in place, that the device's counts say are due.

    ``missed`` and ``taken`` are contiguous and have B elements each.
    """
    count, m, n = weight.shape
    if weight.numel() == 0:
        return
    size = min(m, n)
    error = weight.new_empty(count, size, size)
    moved = torch.empty_like(weight)
    sums = torch.zeros(count, dtype=torch.float32, device=weight.device)
    config = configured("polish", weight, 1, count)
    tile = config.rows
    if missed is None:
        missed = torch.zeros(count, dtype=torch.int64, device=weight.device)
    if taken is None:
        taken = torch.ones(count, dtype=torch.bool, device=weight.device)
    shared = {
        "step": step,
        "missed": missed,
        "taken_mask": taken.to(torch.int8),
        "period": period,
        "m": m,
        "n": n,
        "PAIRS": weight.is_complex(),
        "B": tile,
    } | options(config.warps)
    tiles, rows, columns = -(-size // tile), -(-m // tile), -(-n // tile)
    w, e, v = floats(weight), floats(error), floats(moved)
    wide = m < n
    launch(residual_kernel, (tiles, tiles, count), weight=w, error=e, sums=sums, WIDE=wide, **shared)
    launch(correct_kernel, (rows, columns, count), weight=w, error=e, moved=v, WIDE=wide, **shared)
    launch(settle_kernel, (rows, columns, count), weight=w, moved=v, sums=sums, near=NEAR, **shared)
