"""The retraction of a step ``W + X Y^H``, in place: what `projunn.retract` and the optimizers run.

    Z = W^H X        Z Y^H = Q E Q^H        F = f(E) - I        W += (W Q) (Q F^H)^H

W is (*batch, m, n), X (*batch, m, k), Y (*batch, n, k).  With ``active`` (A,), W is (B, m, n) and the
factors have A in place of the batch; negative entries stand for nothing.  Tall matrices (m > n) take
the mirror image: W^H is wide, its step is (X Y^H)^H = Y X^H, and W'^H = W^H (I + Q F Q^H).

On a GPU, for k up to `MAX_RANK` and m <= n, that is three launches: Z is read off W in one pass; Q, E
and F are made by one program a matrix; and rows of W are turned in registers, one read and one write.
"""

import torch
from torch import Tensor

from projunn.kernels.backends import opaque, operator, uses_triton
from projunn.kernels.basis import step_basis
from projunn.kernels.blocks import as_blocks, flattened, known_to_hold, present
from projunn.kernels.factor import MAX_RANK
from projunn.kernels.products import adjoint_product, product
from projunn.kernels.rank_update import rank_update_
from projunn.kernels.rotation import rotation


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
        rank_update_(weight, product(weight, basis), turned)
    return taken


def _turn(
    own: Tensor, pulled: Tensor, retraction: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Q F^H and Q, zero where the step is not taken, and where it is."""
    q, e = step_basis(own, pulled)
    f, taken = rotation(e, retraction, torch.finfo(dtype).eps)
    if not known_to_hold(taken):
        q = torch.where(taken[..., None, None], q, 0.0)
    return (f.conj() @ q.mT).mT.to(dtype), q.to(dtype), taken


def _on_device(
    weight: Tensor, left: Tensor, right: Tensor, retraction: str, active: Tensor | None
) -> Tensor:
    from projunn.kernels.jit import launch

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
