"""TODO."""

from collections.abc import Sequence

import torch
from torch import Tensor

from projunn_kernels.configs.problem import Config, power_of_two
from projunn_kernels.launching import (
    PRECISION,
    TRITON_DTYPES,
    active_list,
    address_table,
    chosen,
    floats,
    options,
)
from projunn_kernels.retraction.launch import RETRACTION_CODES
from projunn_kernels.step.kernels import plane_step_kernel, warm_basis_kernel, wide_step_kernel


def fused_step(
    weights: Sequence[Tensor],
    directions: Sequence[Tensor],
    bases: Sequence[Tensor],
    probes: Sequence[Tensor],
    skipped: Sequence[Tensor],
    rate: float,
    rate_tensor: Tensor | None,
    retraction: str,
    active: Tensor | None,
    warm: bool,
    config: Config | None = None,
) -> None:
    """One launch for parameters of one shape: weights (B, m, n), bases (B, m, k), counters ().

    With ``active`` (A,) one parameter, and its direction is (A, m, n).
    """
    w, k = weights[0], bases[0].shape[-1]
    blocks, m, n = w.shape
    count = blocks * len(weights) if active is None else active.shape[0]
    if count == 0 or w.numel() == 0:
        return
    c = chosen("fused_step", w, k, count, config)
    panels = -(-m // c.rows)
    pairs = w.is_complex()
    width = 2 if pairs else 1
    needed = panels > 1 or k > 1
    scratch = torch.empty(count * m * k * width if needed else 1, dtype=torch.float32, device=w.device)
    lists = (weights, directions, bases, probes, skipped)
    tables = [address_table(tensors) for tensors in lists]
    constants = {
        "D_TYPE": TRITON_DTYPES[directions[0].dtype],
        "RETRACTION": RETRACTION_CODES[retraction],
        "PAIRS": pairs,
        "ACTIVE": active is not None,
        "HAS_RATE": rate_tensor is not None,
        "WARM": warm,
        "BM": c.rows,
        "BN": power_of_two(n),
        "PANELS": panels,
    } | options(c.warps)
    others = (
        active_list(tables[0], active),
        scratch,
        scratch if rate_tensor is None else rate_tensor,
        rate,
        PRECISION,
        blocks,
        m,
        n,
    )
    if k == 1:
        plane_step_kernel[(count,)](*tables, *others, **constants)
    else:
        wide_step_kernel[(count,)](*tables, *others, k, K=power_of_two(k), **constants)


def warm_basis(left: Tensor, basis: Tensor, probe: Tensor, taken: Tensor) -> None:
    """k = 1: ``R <- X / |X| + 0.01 probe`` in place, where ``taken``; all (B, m, 1) and contiguous."""
    count, m, _ = left.shape
    warm_basis_kernel[(count,)](
        floats(left.contiguous()),
        floats(basis),
        floats(probe),
        taken.to(torch.int8),
        m,
        PAIRS=left.is_complex(),
        BN=min(2048, power_of_two(m)),
        **options(4),
    )
