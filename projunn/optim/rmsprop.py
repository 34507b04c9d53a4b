"""RMSprop, with unitary parameters."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from projunn.optim.base import UnitaryOptimizer
from projunn.optim.by_kernels import KernelRule
from projunn.optim.gradient.dense import DenseGradient, add_square_
from projunn.optim.gradient.factored import FactoredGradient, Factors


class RMSprop(UnitaryOptimizer):
    """`torch.optim.RMSprop` that keeps unitary parameters unitary.

    For a unitary W with gradient G, elementwise, the square being |G|^2 = G conj(G) if complex:

        V <- alpha V + (1 - alpha) |G|^2     direction G / (sqrt(V) + eps)
        centered: V - |M|^2 in place of V, with M <- alpha M + (1 - alpha) G
        momentum: B <- mu B + direction, and B is the direction
        W <- retraction of W - unitary_lr (direction at rank k)

    All other parameters take the step of `torch.optim.RMSprop`.

    For the weight of a layer with ``sketch_rank``, V is the product of row and column means of the
    second moments over their mean, as in Adafactor (arXiv 1804.04235).  B is stored at low rank, and
    ``centered`` raises.  The means are estimated from the sketch, which should therefore have more
    columns than the step: ``sketch_rank=4`` for ``rank=1``.

    Args:
        params, lr, alpha, eps, weight_decay, momentum, centered, capturable, foreach, maximize,
            differentiable: as in ``torch.optim.RMSprop``.  ``foreach``, ``differentiable`` and
            ``weight_decay`` act on the other parameters only; for unitary ones ``capturable`` is as in
            `projunn.optim.SGD`.
        rank, retraction, factorization, averages, polish_every: as in `projunn.optim.SGD`.
        unitary_lr: learning rate of the unitary parameters; default 16 lr / sqrt(mn) for m x n matrices,
            and 256 lr / (N sqrt(mn)) where the optimizer trains N > 16 of them, so that a step
            along a direction of rank 1 turns its matrix by about 16 lr radians (of higher rank, by
            less), and those of N layers by no more than 256 lr in all.  A scheduler that changes ``lr``
            changes it in proportion.

    Steps that cannot be taken, parameter groups, errors and the source are as in `projunn.optim.SGD`.
    """

    plain_rule = torch.optim.RMSprop
    normalizes = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rank: int = 1,
        retraction: str = "exp",
        factorization: str = "subspace",
        averages: str = "gradient",
        unitary_lr: float | Tensor | None = None,
        polish_every: int | None = None,
    ) -> None:
        rule = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
            "capturable": capturable,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
        }
        super().__init__(
            params,
            rule,
            rank=rank,
            retraction=retraction,
            factorization=factorization,
            averages=averages,
            unitary_lr=unitary_lr,
            polish_every=polish_every,
        )

    def _averages(self, group: dict[str, Any]) -> dict[str, bool]:
        averages = {"square_avg": True}
        if group["centered"]:
            averages["grad_avg"] = False
        if group["momentum"]:
            averages["momentum_buffer"] = False
        return averages

    def _kernel_rule(self, group: dict[str, Any]) -> KernelRule:
        weights, momentum = (group["alpha"], 1 - group["alpha"]), group["momentum"]
        return KernelRule(
            "rmsprop",
            mean="grad_avg" if group["centered"] else "",
            square="square_avg",
            other="momentum_buffer" if momentum else "",
            mean_weights=weights,
            square_weights=weights,
            eps=group["eps"],
            momentum=momentum,
        )

    def _direction(
        self, matrices: DenseGradient, grad: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> Tensor:
        alpha = group["alpha"]
        clean, decay = matrices.clean(grad), matrices.decay(alpha)
        average = add_square_(state["square_avg"].mul_(decay), clean, 1 - alpha)
        if group["centered"]:
            mean = matrices.view(state["grad_avg"]).mul_(decay).add_(clean, alpha=1 - alpha)
            average = add_square_(average.clone(), mean, -1.0).clamp_min_(0)
        direction = clean / average.sqrt().add_(group["eps"])
        if group["momentum"] == 0:
            return direction
        buffer = matrices.view(state["momentum_buffer"])
        return buffer.mul_(matrices.decay(group["momentum"])).add_(direction)

    def _factored_direction(self, gradient: FactoredGradient, group: dict[str, Any]) -> Factors:
        if group["centered"]:
            raise ValueError("centered: got True, wanted False for a parameter with sketched gradients")
        scaled = gradient.over_root_of_squares(
            "square_avg", gradient.clean, group["alpha"], 1.0, group["eps"]
        )
        momentum = group["momentum"]
        return gradient.average("momentum_buffer", scaled, momentum) if momentum else scaled
