"""Isospectral SGD: any weight is turned from both sides, and keeps its singular values."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from projunn.arguments import one_of, positive
from projunn.optim.plain import PlainSGD
from projunn.optim.sides import Skew, tangent, turn_
from projunn.parameter import is_unitary
from projunn_kernels import orthonormalize, refresh_basis_, seeded_normal

SIDES = {"both": ("left", "right"), "left": ("left",), "right": ("right",)}


class Isospectral(PlainSGD):
    """SGD that turns matrices and never stretches them: W <- U W V with exact rotations U and V.

    For a matrix W (m x n) of any singular values, with gradient G:

        B = (W^H G - G^H W)/2      N_B <- B + mu N_B      V = exp(-lr N_B)
        C = (G W^H - W G^H)/2      N_C <- C + mu N_C      U = exp(-lr N_C)

    each at rank 2k, so that a step costs O(k m n).  The singular values of W stay what they were, to
    1e-6 of the largest after 10,000 steps: what rounding to the dtype of W takes is kept beside it, in
    ``state["rounding"]``, and the rotations are applied in float64.

    Args:
        params: parameters or parameter groups.  Those with two axes are turned; all others, and those of
            groups with ``isospectral=False``, take the step of ``torch.optim.SGD``.
        lr: the learning rate.  A matrix of singular values s moves about s^2 times as far as in SGD.
        momentum: mu.
        dampening, weight_decay, nesterov: as in ``torch.optim.SGD``, of the other parameters only.
        rank: k, at most min(m, n) is used.
        sides: ``"both"``, ``"left"`` (U alone) or ``"right"`` (V alone).
        isospectral: whether the matrices of the group are turned.

    `step` raises:
        TypeError: a matrix that is to be turned is in half precision or sharded, its gradient is
            not dense, or a unitary parameter is a bank, a filter or in pairs, as in complex layers.

    A step whose gradient is not finite is not taken, and `skipped_steps` counts it.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        rank: int = 4,
        sides: str = "both",
        isospectral: bool = True,
    ) -> None:
        rule = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, rule, {"rank": rank, "sides": sides, "isospectral": isospectral})

    def _check(self, group: dict[str, Any]) -> None:
        positive("rank", group["rank"])
        one_of("sides", group["sides"], SIDES)
        super()._check(group)

    def _is_ours(self, parameter: Tensor, group: dict[str, Any]) -> bool:
        return group["isospectral"] and (parameter.ndim == 2 or is_unitary(parameter))

    def _own_step(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, weight = self.state[parameter], parameter.detach()
        if "skipped" not in state:
            state["skipped"] = torch.zeros((), dtype=weight.dtype.to_real(), device=weight.device)
            state["rounding"] = torch.zeros_like(weight)
        grad = grad.to(weight.dtype)
        precise = weight.to(torch.complex128 if weight.is_complex() else torch.float64)
        precise = precise + state["rounding"]
        rank = min(int(group["rank"]), *weight.shape)
        seen = {"right": (weight, grad, precise), "left": (weight.mT, grad.mT, precise.mT)}
        steps = {
            side: _step(side, *seen[side][:2], rank, state, group) for side in SIDES[group["sides"]]
        }
        taken = torch.ones((), dtype=torch.bool, device=weight.device)
        for side, step in steps.items():
            scaled = Skew((step.pulled * -group["lr"]).to(precise.dtype), step.right.to(precise.dtype))
            taken = taken & turn_(seen[side][2], scaled, "exp")
        turned = torch.where(taken, precise, weight)
        lost = torch.where(taken, turned - turned.to(weight.dtype), state["rounding"])
        weight.copy_(turned)
        state["rounding"].copy_(lost)
        for side, step in steps.items():
            refresh_basis_(step.pulled, state[f"{side}_basis"], state[f"{side}_probe"], taken)
            if group["momentum"]:
                _keep(side, step, state, taken)
        state["skipped"].add_(taken.logical_not())


def _kept(side: str) -> tuple[str, str]:
    """The names of the factors of a side's momentum."""
    return f"{side}_momentum_pulled", f"{side}_momentum_right"


def _keep(side: str, step: Skew, state: dict[str, Any], taken: Tensor) -> None:
    """Keep a step as the momentum of its side, where it was taken."""
    for name, new in zip(_kept(side), step, strict=True):
        before = state.get(name, torch.zeros_like(new))
        if before.shape == new.shape:
            state[name] = torch.where(taken, new, before)
        elif taken:  # the first step of another rank
            state[name] = new


def _step(
    side: str, weight: Tensor, grad: Tensor, rank: int, state: dict[str, Any], group: dict[str, Any]
) -> Skew:
    """The tangent of one side, W seen so that it is its right side."""
    basis, probe = f"{side}_basis", f"{side}_probe"
    if probe not in state or state[probe].shape != (weight.shape[-1], rank):
        drawn = seeded_normal(weight, (weight.shape[-1], rank), side == "left")
        state[probe] = orthonormalize(drawn)
        state[basis] = state[probe].clone()
    kept = None
    if group["momentum"] and _kept(side)[0] in state:
        kept = Skew(*(state[name] for name in _kept(side)))
    return tangent(weight, grad, state[basis], kept, group["momentum"]).step
