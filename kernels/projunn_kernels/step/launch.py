"""Launches of whole steps."""

from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor

from projunn_kernels.batches import contiguous_matrices, flattened
from projunn_kernels.configs.problem import power_of_two
from projunn_kernels.launching import (
    PRECISION,
    TRITON_DTYPES,
    active_list,
    address_table,
    configured,
    half_precision,
    launch,
    options,
)
from projunn_kernels.retraction.launch import device_function
from projunn_kernels.step.arguments import FusedStep
from projunn_kernels.step.eager import as_numbers
from projunn_kernels.step.kernels import plane_step_kernel, wide_step_kernel


def fused(step: FusedStep) -> Tensor:
    """`projunn_kernels.fused_step_` of tensors as users have them."""
    if step.pairs:
        step = as_numbers(step)
    batch = step.weights[0].shape[:-2] if step.active is None else step.active.shape
    with ExitStack() as stack:
        taken = fused_step(
            replace(
                step,
                weights=[stack.enter_context(flattened(t)) for t in step.weights],
                directions=[contiguous_matrices(t) for t in step.directions],
                bases=[stack.enter_context(flattened(t)) for t in step.bases],
                probes=[contiguous_matrices(t) for t in step.probes],
            )
        )
    count = len(step.weights)
    return taken.view(batch if count == 1 else (count, *batch)).bool()


def fused_step(step: FusedStep) -> Tensor:
    """One launch for parameters of one shape: weights (B, m, n), bases (B, m, k), counters ().

    With ``active`` (A,) one parameter, and its direction is (A, m, n).  All tensors are contiguous.

    Returns:
        The mask of the steps taken, of all parameters in turn, as int8.
    """
    weight, k = step.weights[0], step.bases[0].shape[-1]
    matrices, m, n = weight.shape
    count = matrices * len(step.weights) if step.active is None else step.active.shape[0]
    if count == 0 or weight.numel() == 0:
        return torch.ones(count, dtype=torch.int8, device=weight.device)
    taken = torch.empty(count, dtype=torch.int8, device=weight.device)
    scaled, listed = step.scale is not None, step.active is not None
    options_of_the_step = {"retraction": step.retraction, "scaled": scaled, "active": listed}
    gradient = half_precision(step.directions[0])
    config = configured("fused_step", weight, k, count, **options_of_the_step, gradient=gradient)
    panels = -(-m // config.rows)
    pairs = weight.is_complex()
    floats_of_x = count * m * k * (2 if pairs else 1) if panels > 1 or k > 1 else 1
    scratch = torch.empty(floats_of_x, dtype=torch.float32, device=weight.device)
    weights = address_table(step.weights)
    arguments = {
        "weights": weights,
        "directions": address_table(step.directions),
        "bases": address_table(step.bases),
        "probes": address_table(step.probes),
        "skipped": address_table(step.skipped),
        "taken_mask": taken,
        "active": active_list(weights, step.active),
        "scratch": scratch,
        "rate_tensor": scratch if step.scale is None else step.scale,
        "rate": step.rate,
        "precision": PRECISION,
        "matrices": matrices,
        "m": m,
        "n": n,
        "D_TYPE": TRITON_DTYPES[step.directions[0].dtype],
        "ROTATE": device_function(step.retraction, k),
        "PAIRS": pairs,
        "ACTIVE": listed,
        "HAS_RATE": scaled,
        "BM": config.rows,
        "BN": power_of_two(n),
        "PANELS": panels,
    } | options(config.warps)
    if k == 1:
        launch(plane_step_kernel, (count,), **arguments)
    else:
        launch(wide_step_kernel, (count,), k=k, K=power_of_two(k), **arguments)
    return taken
