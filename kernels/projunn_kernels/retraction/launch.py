"""Launches of a retraction: the factors of the step between two passes over W."""

import importlib
from typing import Any

import torch
from torch import Tensor

from projunn_kernels.batches import as_matrices, flattened
from projunn_kernels.configs.problem import power_of_two
from projunn_kernels.constants import MAX_RANK
from projunn_kernels.launching import (
    PRECISION,
    active_list,
    as_columns,
    configured,
    floats,
    launch,
    options,
)
from projunn_kernels.products.launch import (
    adjoint_partials,
    adjoint_product,
    product,
    product_columns,
)
from projunn_kernels.rank_update.launch import rank_update
from projunn_kernels.retraction.eager import rotated_basis
from projunn_kernels.retraction.kernels import basis_kernel, plane_basis_kernel, rotate_rows_kernel
from projunn_kernels.retraction.rotations import named


def device_function(retraction: str, k: int) -> Any:
    """The Triton function that makes F of E, for steps of rank k."""
    module = named(retraction).kernels
    assert module is not None
    return getattr(importlib.import_module(module), "plane" if k == 1 else "small")


def retract(
    weight: Tensor, left: Tensor, right: Tensor, retraction: str, active: Tensor | None = None
) -> Tensor:
    """`projunn_kernels.retract_` of tensors as users have them, and of any rank."""
    batch = weight.shape[:-2] if active is None else active.shape
    if weight.numel() == 0 or batch.numel() == 0:
        return torch.ones(batch, dtype=torch.bool, device=weight.device)
    x, y = as_matrices(left), as_matrices(right)
    with flattened(weight) as matrices:
        few = left.shape[-1] <= MAX_RANK and named(retraction).kernels is not None
        retract_any = retract_few if few else _retract_by_products
        return retract_any(matrices, x, y, retraction, active).reshape(batch)


def retract_pulled(
    weight: Tensor,
    pulled: Tensor,
    right: Tensor,
    moved: Tensor,
    retraction: str,
    active: Tensor | None = None,
) -> Tensor:
    """`projunn_kernels.retract_pulled_` of tensors as users have them, and of any rank.

    The pass that updates W makes W Y itself.
    """
    batch = weight.shape[:-2] if active is None else active.shape
    if weight.numel() == 0 or batch.numel() == 0:
        return torch.ones(batch, dtype=torch.bool, device=weight.device)
    z, y = as_matrices(pulled), as_matrices(right)
    with flattened(weight) as matrices:
        if right.shape[-1] <= MAX_RANK and named(retraction).kernels is not None:
            columns, partial = as_columns(y), as_columns(z).unsqueeze(1)
            taken = _rotate_few(matrices, columns, partial, retraction, active)
        else:
            taken = _rotate_by_products(matrices, y, z, retraction, active)
        return taken.reshape(batch)


def _retract_by_products(
    weight: Tensor, left: Tensor, right: Tensor, retraction: str, active: Tensor | None
) -> Tensor:
    """`retract_few` for any rank: the passes over W are launches, what is between them is PyTorch."""
    if weight.shape[-2] > weight.shape[-1]:
        factor, pulled = left, product(weight, right, active)
    else:
        factor, pulled = right, adjoint_product(weight, left, active)
    return _rotate_by_products(weight, factor, pulled, retraction, active)


def _rotate_by_products(
    weight: Tensor, factor: Tensor, pulled: Tensor, retraction: str, active: Tensor | None
) -> Tensor:
    rotated, basis, taken = rotated_basis(factor, pulled, retraction, weight.dtype)
    if weight.shape[-2] > weight.shape[-1]:
        rank_update(weight, rotated, adjoint_product(weight, basis, active), active)
    else:
        rank_update(weight, product(weight, basis, active), rotated, active)
    return taken


def retract_few(
    weight: Tensor, left: Tensor, right: Tensor, retraction: str, active: Tensor | None = None
) -> Tensor:
    """Retract ``W + X Y^H`` in place, k <= MAX_RANK; the mask (A,) of the steps taken.

    Three launches and 3 m n numbers for m <= n; the mirror image reads W twice and updates it once.
    """
    x, y = as_columns(left), as_columns(right)
    if weight.shape[-2] > weight.shape[-1]:
        factor, pulled = x, product_columns(weight, y, active).unsqueeze(1)
    else:
        factor, pulled = y, adjoint_partials(weight, x, active)
    return _rotate_few(weight, factor, pulled, retraction, active)


def _rotate_few(
    weight: Tensor, factor: Tensor, pulled: Tensor, retraction: str, active: Tensor | None
) -> Tensor:
    """The rest of `retract_few`, from Y as (A, k, n) and the partial sums (A, splits, k, n) of Z."""
    tall = weight.shape[-2] > weight.shape[-1]
    count, splits, k, length = pulled.shape
    rank = power_of_two(k)
    q, t = (pulled.new_empty(count, 2 * rank, length) for _ in range(2))
    taken = torch.empty(count, dtype=torch.int8, device=weight.device)
    config = configured("basis", weight, k, count, retraction=retraction)
    arguments = {
        "right": floats(factor),
        "partial": floats(pulled),
        "basis": floats(q),
        "rotated_basis": floats(t),
        "taken_mask": taken,
        "n": length,
        "splits": splits,
        "precision": PRECISION,
        "ROTATE": device_function(retraction, k),
        "PAIRS": weight.is_complex(),
        "BN": config.columns,
    } | options(config.warps)
    if k == 1:
        launch(plane_basis_kernel, (count,), **arguments)
    else:
        launch(basis_kernel, (count,), k=k, K=rank, **arguments)
    if tall:
        rank_update(weight, t.mT, adjoint_product(weight, q.mT, active), active)
    else:
        rotate_rows(weight, q, t, taken, active)
    return taken.bool()


def rotate_rows(weight: Tensor, q: Tensor, t: Tensor, taken: Tensor, active: Tensor | None) -> None:
    """``W += (W Q) T^H`` from Q and T as (A, S, n), in place where ``taken``."""
    count, s, n = q.shape
    m = weight.shape[-2]
    config = configured("rotate_rows", weight, s // 2, count, active=active is not None)
    launch(
        rotate_rows_kernel,
        (-(-m // config.rows), count),
        weight=floats(weight),
        basis=floats(q),
        rotated_basis=floats(t),
        taken_mask=taken,
        active=active_list(taken, active),
        m=m,
        n=n,
        PAIRS=weight.is_complex(),
        ACTIVE=active is not None,
        BM=config.rows,
        BN=config.columns,
        S=s,
        HOLD=config.hold,
        **options(config.warps),
    )
