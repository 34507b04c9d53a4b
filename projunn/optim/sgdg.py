"""Cayley SGD on the Stiefel manifold, with the signature of the field's ``SGDG``."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from projunn.arguments import positive
from projunn.noticing import estimated_defect, say
from projunn.optim.drift import polish_period, pull_back
from projunn.optim.plain import PlainSGD
from projunn.optim.sides import Skew, dense_tangent, tangent, turn_, turn_densely_
from projunn_kernels import orthonormalize, polish_, refresh_basis_, seeded_normal

_TINY = 1e-8  # added to the norm of a tangent
_DENSE_PERIOD = 4  # steps between two polishes: elimination in float32 is off by 2e-7 a step
_ROUNDING = 2e-6  # a defect that is not worth a polish
_PROBES, _LONGEST = 4, 2.0  # columns that estimate what a step lacks, and how much longer it may be
_NEAR = 1e-2  # a defect above which a parameter is not what its user says
# Up to this n, or this multiple of k, a dense step costs a CPU no more than one of rank k.
_SMALL, _RANKS = 192, 8


class SGDG(PlainSGD):
    """Cayley SGD with momentum of matrices that their user knows to be orthogonal (SGD-G).

    For a parameter R (m x n, m <= n, R R^H = I) with gradient G, learning rate ``lr`` and momentum mu:

        A  = (R^H G' - G'^H R)/2                       G' = G if R is square, else 2 G - G R^H R
        V <- A + mu V                                  in the frame of R, so that it stays tangent
        a  = min(1 / (‖V‖_1 + 1e-8), lr)               ‖V‖_1 the largest absolute column sum
        R <- R (I + a V/2)^-1 (I - a V/2)              the Cayley transform of -a V

    Its arguments and the scale of its learning rates are those of the optimizer of that name with which
    rotations of language models are learned (SpinQuant: ``SGDG(rotations, lr=1.5, stiefel=True)``).  V
    is a matrix of rank 2k, and a step costs O(k n^2), where that of the published optimizer costs nine
    products of n x n matrices.  The transform is exact, so that R is orthogonal to rounding after any
    number of steps.

    Args:
        params: parameters or parameter groups, as in ``torch.optim``.
        lr: the learning rate.
        momentum: mu.  (The published routine writes its momentum to a copy, so that it has no effect
            there; here it has.)
        dampening, weight_decay, nesterov: as in ``torch.optim.SGD``, of the other parameters only.
        stiefel: declares that the parameters of the group are orthogonal: each is a matrix (m, n), or is
            flattened to one, (m, -1), and has orthonormal rows if m <= n, else orthonormal columns.
            Vectors and all parameters of groups without it take the step of ``torch.optim.SGD``.
            (The published routine takes that for matrices with m > n too.)
        omega, grad_clip: have no effect, as in the published routine.
        rank: k; None for the whole tangent.  A step of a part V_k of the tangent V is longer by
            ‖V‖_F^2 / ‖V_k‖_F^2, at most 2, estimated by 4 random columns: to first order the loss falls
            as along V.  Square matrices up to n = 192 or n = 8 k take the whole tangent in any case,
            with dense matrices, by elimination: a part of it would cost as much or more.

    `step` raises:
        TypeError: a parameter of a group with ``stiefel`` is in half precision, sharded or a bank, or
            its gradient is not dense.
        ValueError: such a parameter is not orthogonal when it takes its first step: its
            ‖R^H R - I‖_F / sqrt(n) is above 0.01.

    A step whose gradient is not finite is not taken, and `skipped_steps` counts it.  A matrix that is
    loaded or edited later, and is not orthogonal, is named in a `projunn.OffManifoldWarning` at the next
    correction of its drift, and on a CPU is replaced by the nearest orthogonal one.

    Source: Li, Li, Todorovic, Efficient Riemannian Optimization on the Stiefel Manifold via the Cayley
    Transform, ICLR 2020, arXiv 2002.01113, algorithm 1; Liu et al., SpinQuant, arXiv 2405.16406.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        stiefel: bool = False,
        omega: float = 0,
        grad_clip: float | None = None,
        *,
        rank: int | None = 32,
    ) -> None:
        rule = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        ours = {"stiefel": stiefel, "omega": omega, "grad_clip": grad_clip, "rank": rank}
        super().__init__(params, rule, ours)

    def _check(self, group: dict[str, Any]) -> None:
        if group["rank"] is not None:
            positive("rank", group["rank"])
        super()._check(group)

    def _is_ours(self, parameter: Tensor, group: dict[str, Any]) -> bool:
        return group["stiefel"] and parameter.ndim > 1

    def _own_step(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        stored = parameter.detach().flatten(1)
        weight, direction = stored, grad.to(parameter.dtype).flatten(1)
        if weight.shape[0] > weight.shape[1]:
            weight, direction = weight.mT, direction.mT
        if "step" not in state:
            _start(weight, parameter, state)
        m, n = weight.shape
        if m < n:
            direction = 2 * direction - (direction @ weight.mH) @ weight
        rank = m if group["rank"] is None else min(int(group["rank"]), m)
        dense = m == n <= max(_SMALL, _RANKS * rank)
        taken = (_dense_step if dense else _step)(weight, direction, rank, state, group)
        state["skipped"].add_(taken.logical_not())
        state["step"] += 1
        if int(state["step"]) % (_DENSE_PERIOD if dense else polish_period(weight)) == 0:
            if weight.device.type != "cpu":
                polish_(weight, taken)
            elif taken:
                pull_back(weight, lambda: _say(parameter, weight, int(state["step"])))
        if stored.data_ptr() != parameter.data_ptr():  # flattened to a copy
            parameter.detach().copy_(stored.view(parameter.shape))


def _start(weight: Tensor, parameter: Tensor, state: dict[str, Any]) -> None:
    """Makes the counters of a parameter, and brings it onto the manifold, if it is near."""
    defect = float(estimated_defect(weight))
    if not defect < _NEAR:
        raise ValueError(
            f"params: one of shape {tuple(parameter.shape)} in a group with stiefel=True is not"
            f" orthogonal: ‖R^H R - I‖_F / sqrt(n) is {defect:.2g}, wanted less than {_NEAR:g};"
            " projunn.project_(parameter) makes it so"
        )
    for _ in range(3 if defect > _ROUNDING else 0):
        polish_(weight)
    state.clear()  # the momentum of another rule, that was loaded, is of gradients
    state["step"] = torch.zeros((), dtype=torch.int64, device="cpu")
    state["skipped"] = torch.zeros((), dtype=weight.dtype.to_real(), device=weight.device)


def _say(parameter: Tensor, weight: Tensor, steps: int) -> None:
    """Warns of a parameter that is off the manifold, as one is that was loaded or edited meanwhile."""
    name = f"a parameter of shape {tuple(parameter.shape)}"
    say([(name, float(estimated_defect(weight)))], f"After {steps} steps")


def _rate(norm: Tensor, group: dict[str, Any]) -> Tensor:
    """a = min(1 / norm, lr), and 0 where the norm is not finite."""
    rate = (norm + _TINY).reciprocal().clamp_max(group["lr"])
    return torch.where(norm.isfinite(), rate, 0.0)


def _dense_step(
    weight: Tensor, direction: Tensor, rank: int, state: dict[str, Any], group: dict[str, Any]
) -> Tensor:
    momentum = group["momentum"]
    v = dense_tangent(weight, direction)
    if momentum:
        if "momentum_pulled" in state:  # of steps of rank k: of an older version, or an option changed
            factors = state.pop("momentum_pulled"), state.pop("momentum_right")
            state["momentum_buffer"] = dense_tangent(*(factor.mH for factor in factors))
        v.add_(state.setdefault("momentum_buffer", torch.zeros_like(v)), alpha=momentum)
    norm = v.abs().sum(0).amax()
    taken = norm.isfinite()
    if momentum:
        state["momentum_buffer"] = torch.where(taken, v, state["momentum_buffer"])
    turn_densely_(weight, torch.where(taken, v * -_rate(norm, group), 0.0))
    return taken


def _step(
    weight: Tensor, direction: Tensor, rank: int, state: dict[str, Any], group: dict[str, Any]
) -> Tensor:
    n, momentum = weight.shape[-1], group["momentum"]
    if "probe" not in state or state["probe"].shape != (n, rank):
        state["probe"] = orthonormalize(seeded_normal(weight, (n, rank), 0))
        state["basis"] = state["probe"].clone()
    kept = _momentum(state) if momentum else None
    probes = seeded_normal(weight, (n, _PROBES), 1 + int(state["step"]))
    step, rest = tangent(
        *(weight, direction, state["basis"], kept, momentum), orthonormal=True, probes=probes
    )
    longer = (1 + rest / step.energy().clamp_min(torch.finfo(rest.dtype).tiny)).clamp_max(_LONGEST)
    rate = _rate(step.norm_one(), group) * longer
    taken = turn_(weight, Skew(step.pulled * -rate, step.right))
    refresh_basis_(step.pulled, state["basis"], state["probe"], taken)
    if momentum:
        before = kept or Skew(*map(torch.zeros_like, step))
        if before.right.shape == step.right.shape:
            step = Skew(*(torch.where(taken, new, old) for new, old in zip(step, before, strict=True)))
        elif not taken:  # the first step of another rank
            return taken
        state.pop("momentum_buffer", None)
        state["momentum_pulled"], state["momentum_right"] = step
    return taken


def _momentum(state: dict[str, Any]) -> Skew | None:
    """V in factors: as they are, or a matrix of steps of the whole tangent and the identity."""
    if "momentum_buffer" in state:
        whole: Tensor = state["momentum_buffer"]
        return Skew(whole, torch.eye(len(whole), dtype=whole.dtype, device=whole.device))
    if "momentum_pulled" in state:
        return Skew(state["momentum_pulled"], state["momentum_right"])
    return None
