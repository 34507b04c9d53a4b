"""Lion, whose step is the sign of a momentum, with unitary parameters."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from projunn.optim.base import UnitaryOptimizer
from projunn.optim.by_kernels import KernelRule
from projunn.optim.gradient.dense import DenseGradient
from projunn.optim.gradient.factored import FactoredGradient, Factors


class _PlainLion(torch.optim.Optimizer):
    """Lion for parameters that are not unitary, since `torch.optim` has no Lion."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        if not isinstance(lr, Tensor) and not lr >= 0:
            raise ValueError(f"Invalid learning rate: {lr}")
        for index, beta in enumerate(betas):
            if not 0 <= beta < 1:
                raise ValueError(f"Invalid beta parameter at index {index}: {beta}")
        if not weight_decay >= 0:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "capturable": capturable,
        }
        super().__init__(params, defaults)

    def _init_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
    ) -> None:
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.is_sparse:
                raise RuntimeError("Lion does not support sparse gradients")
            state = self.state[p]
            if "exp_avg" not in state:
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            params.append(p)
            grads.append(p.grad)
            exp_avgs.append(state["exp_avg"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params: list[Tensor] = []
            grads: list[Tensor] = []
            exp_avgs: list[Tensor] = []
            self._init_group(group, params, grads, exp_avgs)
            (beta1, beta2), lr = group["betas"], group["lr"]
            for p, grad, mean in zip(params, grads, exp_avgs, strict=True):
                if group["maximize"]:
                    grad = -grad
                direction = torch.lerp(grad, mean, beta1).sgn()
                p.mul_(1 - lr * group["weight_decay"])
                p.sub_(direction * lr)
                mean.lerp_(grad, 1 - beta2)
        return loss


class Lion(UnitaryOptimizer):
    """Lion (evolved sign momentum) that keeps unitary parameters unitary.

    For a unitary W with gradient G, elementwise, sgn(z) = z / |z| if complex:

        direction  sgn(beta1 M + (1 - beta1) G)        M <- beta2 M + (1 - beta2) G
        W <- retraction of W - unitary_lr (direction at rank k)

    All other parameters w take the step w <- w - lr (direction + weight_decay w).  The entries of a
    direction have size 1 whatever the size of the gradient, so learning rates are a third to a tenth of
    AdamW's.

    Args:
        params, lr, betas, weight_decay: as in the paper.  ``weight_decay`` acts on the other parameters
            only.
        maximize: as in ``torch.optim.AdamW``.
        rank, retraction, factorization, averages, polish_every, capturable: as in
            `projunn.optim.SGD`.
        unitary_lr: as in `projunn.optim.RMSprop`.

    Raises:
        ValueError: an option is out of its range, or, in `step`, a parameter belongs to a layer with
            ``sketch_rank``: the signs of the entries of a low-rank matrix need the whole matrix.
        TypeError: a unitary parameter in half precision.

    Steps that cannot be taken and parameter groups are as in `projunn.optim.SGD`.

    Source: Chen et al., Symbolic Discovery of Optimization Algorithms, NeurIPS 2023, arXiv 2302.06675.
    """

    plain_rule = _PlainLion
    normalizes = True
    takes_sketches = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        capturable: bool = False,
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
            "weight_decay": weight_decay,
            "maximize": maximize,
            "capturable": capturable,
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
        return {"exp_avg": False}

    def _kernel_rule(self, group: dict[str, Any]) -> KernelRule:
        beta1, beta2 = group["betas"]
        return KernelRule("lion", "exp_avg", mean_weights=(beta2, 1 - beta2), momentum=beta1)

    def _direction(
        self, matrices: DenseGradient, grad: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> Tensor:
        beta1, beta2 = group["betas"]
        clean = matrices.clean(grad)
        mean = matrices.view(state["exp_avg"])
        direction = torch.lerp(clean, mean, beta1).sgn()
        mean.mul_(matrices.decay(beta2)).add_(clean, alpha=1 - beta2)
        return direction

    def _factored_direction(self, gradient: FactoredGradient, group: dict[str, Any]) -> Factors:
        raise ValueError(
            "params: Lion takes the signs of all entries of a gradient, and a parameter belongs to"
            " a layer with sketch_rank, whose gradients are never formed; wanted sketch_rank=None"
        )
