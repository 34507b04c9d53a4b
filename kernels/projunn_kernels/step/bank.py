"""Steps of small matrices on a CPU, where calls of PyTorch cost what their arithmetic does.

    D^H R = Y T    X = D Y    Z = W^H X    [Y, -rate Z] = Q S    E = S_z S_y^H

    W += (W Q) (Q F^H)^H    R <- orth(X) + 0.01 probe

The formulas are those of `projunn_kernels.factorization` and `projunn_kernels.retraction`, for m <= n;
else Q is of [-rate X, W Y] and multiplies W from the left.  What is left out is their care for columns
that depend on each other, huge steps and numbers that are not finite: matrices that have such are left
as they are.
"""

from typing import Any

import torch
from torch import Tensor
from torch.linalg import qr, vector_norm

from projunn_kernels.backends import on_device
from projunn_kernels.batches import EVERY, surely_all
from projunn_kernels.constants import PROBE
from projunn_kernels.factorization.eager import regular_triangles
from projunn_kernels.products.eager import is_faster_by_rows
from projunn_kernels.retraction.rotations import named

LONG = 1e3  # entries of S below which E's rounding, in float64, is far below a float32 of W
_LARGE = 1 << 19  # numbers of one matrix, whose passes over memory are all that matters


def applies_to_bank(weight: Tensor, direction: Tensor, basis: Tensor, retraction: str) -> bool:
    """Whether `bank_step` can take the steps of these matrices, (*batch, m, n)."""
    k, (m, n) = basis.shape[-1], weight.shape[-2:]
    if not (0 < k <= min(m, n) and weight.numel() > 0) or on_device(weight):
        return False
    if weight.dtype not in (torch.float32, torch.complex64) or direction.dtype != weight.dtype:
        return False
    if weight.ndim == 2 and (weight.numel() > _LARGE or (k == 1 and not weight.is_complex())):
        return False  # of real ones of rank one `projunn_kernels.retraction.eager` takes less time
    flat = weight.is_contiguous() and basis.is_contiguous()
    return flat and named(retraction).dense is not None


def bank_step(
    weight: Tensor, direction: Tensor, basis: Tensor, probe: Tensor, rate: Any, retraction: str
) -> Tensor:
    """Take the steps of matrices (B, m, n) in place, but of those that want more care.

    Args:
        weight, direction: W and D, (B, m, n), float32 or complex64.
        basis, probe: R, which is renewed, and its probe, (B, m, k).
        rate: a number or a 0-d tensor.
        retraction: the name of one that is a rotation of the step's span.

    Returns:
        The mask of the steps taken, (B,).  Nothing of the other matrices has changed.
    """
    k, (m, n) = basis.shape[-1], weight.shape[-2:]
    precise = torch.complex128 if weight.is_complex() else torch.float64
    y, triangle = _orthonormal(torch.bmm(basis.mH, direction).mH)
    x = _times(direction, y)
    warm, another = _orthonormal(x)
    simple = regular_triangles(torch.stack([triangle, another])).all(0)
    if not simple.any():
        return simple
    if m > n:
        columns = torch.cat([x * -rate, _times(weight, y)], dim=-1)
    else:
        columns = torch.cat([y, torch.bmm(x.mH, weight).mH * -rate], dim=-1)
    q, s = qr(columns.to(precise))
    if not s.abs().amax().item() < LONG:
        return torch.zeros_like(simple)
    how, e = named(retraction), s[..., k:] @ s[..., :k].mH
    rotate = how.two_by_two if how.two_by_two is not None and e.shape[-1] == 2 else how.dense
    assert rotate is not None
    f, taken = rotate(e, torch.finfo(weight.dtype).eps)
    simple = simple & taken
    rotated, q = (f.conj() @ q.mT).to(weight.dtype), q.to(weight.dtype)  # Q F^H, transposed
    mask = EVERY
    if not surely_all(simple):
        mask, chosen = simple, simple[:, None, None]
        rotated = torch.where(chosen, rotated, 0.0)
        warm, probe = torch.where(chosen, warm, basis), torch.where(chosen, probe, 0.0)
    if m > n:
        weight.baddbmm_(rotated.mT, torch.bmm(q.mH, weight))
    else:
        weight.baddbmm_(_times(weight, q), rotated.conj())
    torch.add(warm, probe, alpha=PROBE, out=basis)
    return mask


def _times(matrices: Tensor, columns: Tensor) -> Tensor:
    """Their product by one call of ``bmm``, which takes less time than ``@`` does."""
    if is_faster_by_rows(matrices, columns.shape[-1]):
        return torch.bmm(columns.mT, matrices.mT).mT
    return torch.bmm(matrices, columns)


def _orthonormal(columns: Tensor) -> tuple[Tensor, Tensor]:
    """An orthonormal basis and the triangle that has the columns in it; of one column, its direction."""
    if columns.shape[-1] > 1:
        return qr(columns)
    norm = vector_norm(columns, dim=-2, keepdim=True)
    return columns / norm, norm
