"""AdamW, with unitary parameters."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from projunn.optim.base import UnitaryOptimizer
from projunn.optim.by_kernels import KernelRule
from projunn.optim.gradient.dense import DenseGradient, add_square_
from projunn.optim.gradient.factored import FactoredGradient, Factors
from projunn.optim.member import steps_taken


class AdamW(UnitaryOptimizer):
    """`torch.optim.AdamW` that keeps unitary parameters unitary.

    For a unitary W with gradient G at step t, elementwise, the square being |G|^2 = G conj(G) if
    complex:

        M <- beta1 M + (1 - beta1) G        V <- beta2 V + (1 - beta2) |G|^2
        direction  M / (1 - beta1^t) / (sqrt(V / (1 - beta2^t)) + eps)
        amsgrad: the maximum of all V so far in place of V
        W <- retraction of W - unitary_lr (direction at rank k)

    All other parameters take the step of `torch.optim.AdamW`.

    For the weight of a layer with ``sketch_rank``, V is the product of row and column means of the
    second moments over their mean, as in Adafactor (arXiv 1804.04235).  M is stored at low rank, and
    ``amsgrad`` raises.  The means are estimated from the sketch, which should therefore have more
    columns than the step: ``sketch_rank=4`` for ``rank=1``.

    Args:
        params, lr, betas, eps, weight_decay, amsgrad, maximize, foreach, capturable, differentiable,
            fused: as in ``torch.optim.AdamW``.  ``foreach``, ``differentiable``, ``fused`` and
            ``weight_decay`` act on the other parameters only; for unitary ones ``capturable`` is as in
            `projunn.optim.SGD`.
        rank, retraction, factorization, averages, polish_every: as in `projunn.optim.SGD`.
        unitary_lr: as in `projunn.optim.RMSprop`.

    Steps that cannot be taken, parameter groups, errors and the source are as in `projunn.optim.SGD`.
    """

    plain_rule = torch.optim.AdamW
    normalizes = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        rank: int = 1,
        retraction: str = "exp",
        factorization: str = "subspace",
        averages: str = "gradient",
        unitary_lr: float | Tensor | None = None,
        polish_every: int | None = None,
    ) -> None:
        rule = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
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
        averages = {"exp_avg": False, "exp_avg_sq": True}
        return averages | {"max_exp_avg_sq": True} if group["amsgrad"] else averages

    def _kernel_rule(self, group: dict[str, Any]) -> KernelRule:
        beta1, beta2 = group["betas"]
        return KernelRule(
            "adamw",
            mean="exp_avg",
            square="exp_avg_sq",
            other="max_exp_avg_sq" if group["amsgrad"] else "",
            mean_weights=(beta1, 1 - beta1),
            square_weights=(beta2, 1 - beta2),
            eps=group["eps"],
        )

    def _direction(
        self, matrices: DenseGradient, grad: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> Tensor:
        beta1, beta2 = group["betas"]
        clean = matrices.clean(grad)
        mean = matrices.view(state["exp_avg"])
        mean.mul_(matrices.decay(beta1)).add_(clean, alpha=1 - beta1)
        average = state["exp_avg_sq"]
        add_square_(average.mul_(matrices.decay(beta2)), clean, 1 - beta2)
        if group["amsgrad"]:
            largest = state["max_exp_avg_sq"]
            average = torch.maximum(largest, average, out=largest)
        steps, real = steps_taken(state), average.dtype
        correction1, correction2 = bias(beta1, steps, real), bias(beta2, steps, real)
        spread = average.sqrt().mul_(correction2**-0.5).add_(group["eps"])
        return mean / spread.mul_(correction1)

    def _factored_direction(self, gradient: FactoredGradient, group: dict[str, Any]) -> Factors:
        if group["amsgrad"]:
            raise ValueError("amsgrad: got True, wanted False for a parameter with sketched gradients")
        beta1, beta2 = group["betas"]
        steps, real = steps_taken(gradient.state), gradient.factors[0].dtype.to_real()
        mean = gradient.average("exp_avg", gradient.clean, beta1, 1 - beta1)
        left, right = gradient.over_root_of_squares(
            "exp_avg_sq", mean, beta2, bias(beta2, steps, real), group["eps"]
        )
        return left / bias(beta1, steps, real), right


def bias(beta: Any, steps: Any, dtype: torch.dtype) -> Any:
    """1 - beta^t, the share of the weights of an average that its t steps have: like ``steps``."""
    share = 1 - beta**steps
    return share.to(dtype) if isinstance(share, Tensor) else share
