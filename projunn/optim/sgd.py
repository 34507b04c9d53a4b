"""Stochastic gradient descent, with unitary parameters."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from projunn.optim.base import UnitaryOptimizer
from projunn.optim.by_kernels import KernelRule
from projunn.optim.gradient.dense import DenseGradient
from projunn.optim.gradient.factored import FactoredGradient, Factors


class SGD(UnitaryOptimizer):
    """`torch.optim.SGD` that keeps unitary parameters unitary.

    For a unitary W with gradient G, momentum mu and dampening d:

        B <- mu B + (1 - d) G  (first step: B = G)      direction B, or G + mu B with Nesterov
        W <- retraction of W - unitary_lr (direction at rank k)

    All other parameters take the step of `torch.optim.SGD`.

    Args:
        params, lr, momentum, dampening, weight_decay, nesterov, maximize, foreach, differentiable,
            fused: as in ``torch.optim.SGD``.  ``foreach``, ``differentiable`` and ``fused`` act on the
            other parameters only, and so does ``weight_decay``, which has no meaning on the manifold.
        rank: k, the rank of the step of each unitary matrix, at least 1; at most min(m, n) is used.
        retraction: ``"exp"`` (projUNN-T), ``"polar"`` (projUNN-D) or ``"cayley"``, as in
            `projunn.retract`.
        factorization: ``"subspace"``, ``"lsi"``, ``"column"`` and ``"svd"`` sketch the direction, as in
            `projunn.factorize`.  ``"tangent"`` sketches its tangent part, (W^H D - D^H W)/2, which is
            what moves a unitary W, and reads W more often.  ``"single_pass"`` projects the direction on
            the span of the last one's left factor, and reads D and W once; its kernels are for rank 1.
            This and ``"subspace"`` test at every 64th step whether their factors have become normal to
            the manifold, where they would stop for good, and go on as ``"tangent"`` if so; under
            ``torch.compile``, and with ``capturable`` on a GPU, they do not test it.
        averages: what momentum and second moments average: ``"gradient"``, G as in `torch.optim`, or
            ``"tangent"``, the tangent part A = (W^H G - G^H W)/2 of G in the frame of a square W (the
            direction is then W times that of A), or (G - W G^H W)/2 of a rectangular one.  This takes
            two products of the whole matrices.  Where the gradient at the optimum is normal to the
            manifold and not zero (eigenvectors, <C, W>, full batches), `RMSprop`, `AdamW` and `Lion` end
            elsewhere without it.
        unitary_lr: learning rate of the unitary parameters; default lr / 32, as in the paper's
            experiments.  A scheduler that changes ``lr`` changes it in proportion.
        polish_every: steps of a matrix between two corrections of its rounding drift; 0 for none.  The
            default is 2 n, at least 4 and at most 16, for the larger side n up to 64, and keeps such
            float32 weights within 1e-6 of unitary.  It is n^2 / 256 up to n = 512, and 2 n beyond.
        capturable: allow the step to be captured in a CUDA graph.  The steps of unitary parameters are
            then counted on the GPU, where it is also decided when to correct drift.

    The weight of a layer with ``sketch_rank`` has its gradient in factors and steps along those.  Then
    ``factorization`` has no effect (steps that have stopped go on from random columns), except that
    `step` refuses ``"tangent"`` with a ValueError, and B is stored at low rank, truncated to its
    largest parts.

    All arguments but ``params`` can be given in parameter groups.  If the gradient of a matrix is not
    finite, the matrix and its state stay as they were, and `skipped_steps` counts it.  If the gradient
    is finite, but so large that the result of the step is not determined to working precision, the
    matrix stays as it was too; but averages have taken the gradient in, so that the matrix may stay for
    more steps.

    Raises:
        ValueError: an option is out of its range.
        TypeError: a unitary parameter in half precision.

    Source: Kiani, Balestriero, LeCun, Lloyd, NeurIPS 2022, arXiv 2203.05483.
    """

    plain_rule = torch.optim.SGD

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        rank: int = 1,
        retraction: str = "exp",
        factorization: str = "subspace",
        averages: str = "gradient",
        unitary_lr: float | Tensor | None = None,
        polish_every: int | None = None,
        capturable: bool = False,
    ) -> None:
        rule = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
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
            capturable=capturable,
        )

    def _averages(self, group: dict[str, Any]) -> dict[str, bool]:
        return {"momentum_buffer": False} if group["momentum"] else {}

    def _kernel_rule(self, group: dict[str, Any]) -> KernelRule | None:
        mu = group["momentum"]
        if mu == 0 or group["dampening"] != 0:
            return None
        nesterov = group["nesterov"]
        return KernelRule(
            "momentum", "momentum_buffer", mean_weights=(mu, 1), momentum=mu, nesterov=nesterov
        )

    def _direction(
        self, matrices: DenseGradient, grad: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> Tensor:
        mu = group["momentum"]
        if mu == 0:
            return grad
        clean, weight = matrices.clean(grad), 1 - group["dampening"]
        if matrices.index in self._fresh:
            weight = 1
        elif weight != 1:  # a matrix that has missed all steps so far has its first one now
            first = (state["missed"] + 1 == state["step"]) & (state["missed"] > 0)
            clean, weight = clean * torch.where(first, 1.0, weight)[..., None, None], 1
        buffer = matrices.view(state["momentum_buffer"])
        buffer.mul_(matrices.decay(mu)).add_(clean, alpha=weight)
        return grad.add(buffer, alpha=mu) if group["nesterov"] else buffer

    def _factored_direction(self, gradient: FactoredGradient, group: dict[str, Any]) -> Factors:
        momentum = group["momentum"]
        if momentum == 0:
            return gradient.factors
        weight = 1 - group["dampening"]
        held = gradient.average("momentum_buffer", gradient.clean, momentum, weight, first=1.0)
        if not group["nesterov"]:
            return held
        left, right = gradient.factors
        return torch.cat([left, held[0] * momentum], -1), torch.cat([right, held[1]], -1)
