"""The retraction of a step ``W + X Y^H``, in place: what `projunn.retract` and the optimizers run.

    Z = W^H X        Z Y^H = Q E Q^H        F = f(E) - I        W += (W Q) (Q F^H)^H

W is (*batch, m, n), X (*batch, m, k), Y (*batch, n, k).  With ``active`` (A,), W is (B, m, n) and the
factors have A in place of the batch; negative entries stand for nothing.  Tall matrices (m > n) take
the mirror image: W^H is wide, its step is (X Y^H)^H = Y X^H, and W'^H = W^H (I + Q F Q^H).

On a GPU, for k up to `MAX_RANK` and m <= n, that is three launches: Z is read off W in one pass; Q, E
and F are made by one program a matrix; and rows of W are turned in registers, one read and one write.
"""

from math import inf, nan, sqrt

import torch
from torch import Tensor

from projunn_kernels.backends import opaque, operator, uses_triton
from projunn_kernels.basis import step_basis
from projunn_kernels.blocks import as_blocks, flattened, known_to_hold, present
from projunn_kernels.factor import MAX_RANK
from projunn_kernels.products import adjoint_product, product
from projunn_kernels.rank_update import rank_update_, turn_rows_
from projunn_kernels.rotation import plane_rotation, rotation


def retract_(
    weight: Tensor, left: Tensor, right: Tensor, retraction: str, active: Tensor | None = None
) -> Tensor:
    """Take the step in place; returns the mask (*batch), or (A,), of the matrices that took it."""
    if opaque(weight):
        return _operator(weight, left, right, retraction, active)
    return _retract(weight, left, right, retraction, active)


def _retract(
    weight: Tensor, left: Tensor, right: Tensor, retraction: str, active: Tensor | None
) -> Tensor:
    if uses_triton(weight):
        return _on_device(weight, left, right, retraction, active)
    if active is None:
        return _plain(weight, left, right, retraction)
    chosen, named = present(active), active >= 0
    taken = torch.zeros(active.shape, dtype=torch.bool, device=weight.device)
    if len(chosen):
        part = weight[chosen]
        taken[named] = _plain(part, left[named], right[named], retraction)
        weight[chosen] = part
    return taken


def _plain(weight: Tensor, left: Tensor, right: Tensor, retraction: str) -> Tensor:
    """In PyTorch, the formula line by line."""
    dtype = weight.dtype
    tall = weight.shape[-2] > weight.shape[-1]
    pulled = product(weight, right) if tall else adjoint_product(weight, left)
    turned, basis, taken = _turn(left if tall else right, pulled, retraction, dtype)
    if tall:
        rank_update_(weight, turned, adjoint_product(weight, basis))
    else:
        turn_rows_(weight, basis, turned)
    return taken


def _turn(
    own: Tensor, pulled: Tensor, retraction: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Q F^H and Q, zero where the step is not taken, and where it is."""
    if own.shape == (own.shape[0], 1) and own.device.type == "cpu" and dtype == torch.float32:
        plane = _turn_of_plane(own, pulled, retraction)
        if plane is not None:
            return *plane, torch.tensor(True)
    q, e = step_basis(own, pulled)
    f, taken = rotation(e, retraction, torch.finfo(dtype).eps)
    if not known_to_hold(taken):
        q = torch.where(taken[..., None, None], q, 0.0)
    return (f.conj() @ q.mT).mT.to(dtype), q.to(dtype), taken


def _turn_of_plane(own: Tensor, pulled: Tensor, retraction: str) -> tuple[Tensor, Tensor] | None:
    """Q F^T and Q of one real step of rank one, or None if that takes more care.

    All 2 x 2 is in Python's floats, with Q from the inner products of y and z in place of Gram-Schmidt:
    in float64 good to 1e-13 where the angle between them is above 1e-3.
    """
    vectors = torch.cat([own.mT, pulled.mT]).double()
    (yy, yz), (_, zz) = (vectors @ vectors.mT).tolist()
    a = sqrt(yy) if 0 < yy < inf else nan
    b = yz / a
    rest = zz - b * b
    if not 1e-6 * zz < rest < inf:  # nor if there is a NaN
        return None
    c = sqrt(rest)
    f = plane_rotation(a * b, 0.0, a * c, 0.0, retraction, torch.finfo(own.dtype).eps)
    if f is None:
        return None
    q = ((1 / a, 0.0), (-b / (a * c), 1 / c))  # columns, of coefficients of y and z
    turned = [[f1 * q1 + f2 * q2 for q1, q2 in zip(*q, strict=True)] for f1, f2 in f]
    rows = (torch.tensor([*turned, *q], dtype=torch.float64) @ vectors).to(own.dtype)
    return rows[:2].mT, rows[2:].mT


def _on_device(
    weight: Tensor, left: Tensor, right: Tensor, retraction: str, active: Tensor | None
) -> Tensor:
    from projunn_kernels.jit import launch

    batch = weight.shape[:-2] if active is None else active.shape
    if weight.numel() == 0 or batch.numel() == 0:
        return torch.ones(batch, dtype=torch.bool, device=weight.device)
    x, y = as_blocks(left), as_blocks(right)
    with flattened(weight) as blocks:
        if left.shape[-1] <= MAX_RANK:
            taken = launch.turn(blocks, x, y, retraction, 1.0, active)
        else:
            tall = weight.shape[-2] > weight.shape[-1]
            multiply = launch.product if tall else launch.adjoint_product
            pulled = multiply(blocks, y if tall else x, active)
            turned, basis, taken = _turn(x if tall else y, pulled, retraction, weight.dtype)
            if tall:
                factors = turned, launch.adjoint_product(blocks, basis, active)
            else:
                factors = launch.product(blocks, basis, active), turned
            launch.rank_update(blocks, *factors, active)
    return taken.reshape(batch)


@operator("projunn::retract_", mutates_args=("weight",))
def _operator(
    weight: Tensor, left: Tensor, right: Tensor, retraction: str, active: Tensor | None = None
) -> Tensor:
    return _retract(weight, left, right, retraction, active)


@_operator.register_fake
def _(weight, left, right, retraction, active=None):  # type: ignore[no-untyped-def]
    batch = weight.shape[:-2] if active is None else active.shape
    return torch.empty(batch, dtype=torch.bool, device=weight.device)
