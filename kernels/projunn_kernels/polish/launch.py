"""Launches of the polish: the residual, and the corrected matrix."""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from projunn_kernels.batches import as_matrices, flattened, programs, within_reach
from projunn_kernels.launching import address_table, configured, floats, launch, options
from projunn_kernels.polish.eager import NEAR
from projunn_kernels.polish.kernels import correct_kernel, residual_kernel

_MOST = 1 << 24  # floats of the parameters that are polished at once, of which there are two copies


def polish_when_due(
    weights: list[Tensor],
    steps: list[Tensor],
    period: int,
    pairs: bool,
    missed: list[Tensor],
    taken: Tensor | None = None,
) -> None:
    """`projunn_kernels.polish_when_due_` of tensors as users have them."""
    first = weights[0]
    if first.numel() == 0:
        return
    batch = first.shape[: -3 if pairs else -2]
    device, count = first.device, len(weights)
    if not missed:
        missed = [torch.zeros(batch, dtype=torch.int64, device=device)] * count
    if taken is None:
        taken = torch.ones(count, *batch, dtype=torch.bool, device=device)
    marks = taken.reshape(count, -1).contiguous().view(torch.int8)
    missed = [counter.contiguous() for counter in missed]
    counts = [step if step.dtype == torch.int64 else step.long() for step in steps]
    together = max(1, _MOST // first.numel())
    with ExitStack() as stack:
        flat = [
            as_matrices(stack.enter_context(flattened(torch.view_as_complex(t) if pairs else t)))
            for t in weights
        ]
        for start in range(0, count, together):
            some = slice(start, start + together)
            polish(flat[some], counts[some], period, missed[some], marks[some])


def polish(
    weights: Sequence[Tensor],
    steps: Sequence[Tensor],
    period: int,
    missed: Sequence[Tensor],
    taken: Tensor,
) -> None:
    """One Newton-Schulz step, in place, on the matrices that are due by the device's counts.

    Args:
        weights: W, (B, m, n), contiguous, one entry a parameter.
        steps, missed: int64, 0-d and of B elements, contiguous.
        taken: int8, (parameters, B), contiguous.
    """
    first = weights[0]
    within_reach(first, single=True)
    matrices, m, n = first.shape
    count, size = matrices * len(weights), min(m, n)
    error = first.new_empty(count, size, size)
    moved = first.new_empty(count, m, n)
    config = configured("polish", first, 1, count)
    of_error, of_weights = (
        count * -(-a // config.rows) * -(-b // config.rows) for a, b in ((size, size), (m, n))
    )
    shared = {
        "weights": address_table(weights),
        "error": floats(error),
        "moved": floats(moved),
        "parts": torch.empty(of_error, dtype=torch.float32, device=first.device),
        "steps": address_table(steps),
        "missed": address_table(missed),
        "taken_mask": taken,
        "period": period,
        "matrices": matrices,
        "slots": count,
        "m": m,
        "n": n,
        "WIDE": m < n,
        "PAIRS": first.is_complex(),
        "B": config.rows,
    } | options(config.warps)

    def run(kernel: object, tiles: int, **arguments: object) -> None:
        launch(kernel, (programs(tiles, first.device),), tiles=tiles, **arguments, **shared)

    run(residual_kernel, of_error, of_weights=of_weights)
    run(correct_kernel, of_weights, near=NEAR)
