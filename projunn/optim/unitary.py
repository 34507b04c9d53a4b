"""The optimizer step of a unitary parameter, common to every rule.

    gradient -> direction (the rule's momentum, second moments)    n x n, as torch.optim has it
             -> low-rank factors X Y^H of -lr direction            projunn.lowrank
             -> retraction of W + X Y^H, in place                  projunn.retraction
             -> once in a while a polish against drift             projunn.drift

Every other parameter is handed to `torch.optim`'s own optimizer, unchanged.
"""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from projunn.drift import polish_, polish_period
from projunn.kernels import RETRACTIONS
from projunn.lowrank import FACTORIZATIONS, factorize, orthonormalize
from projunn.manifold import (
    MATRIX_DTYPES,
    UnitaryParameter,
    dtype_names,
    view_like,
)
from projunn.retraction import known_to_hold, take_step_

# The default unitary learning rate is lr / 32: lr_divider in the experiments of arXiv 2203.05483.
_LR_DIVIDER = 32
# Share of a fixed random direction in the warm basis, without which a gradient orthogonal to the
# basis would be invisible for ever.
_PROBE = 0.01


class UnitaryOptimizer(torch.optim.Optimizer):
    """Base of the optimizers: subclasses name torch's rule and give the direction it takes."""

    plain_rule: ClassVar[Callable[..., torch.optim.Optimizer]]

    def __init__(
        self,
        params: Iterable[Any],
        rule_options: dict[str, Any],
        *,
        rank: int,
        retraction: str,
        factorization: str,
        unitary_lr: float | Tensor | None,
        polish_every: int | None,
    ) -> None:
        checked = self.plain_rule([torch.zeros(0)], **rule_options)
        defaults = {
            **checked.defaults,
            "rank": rank,
            "retraction": retraction,
            "factorization": factorization,
            "unitary_lr": unitary_lr,
            "polish_every": polish_every,
        }
        super().__init__(params, defaults)

    def _direction(
        self, matrices: "Matrices", grad: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> Tensor:
        """The rule's step direction for one unitary parameter, like ``grad``; updates ``state``."""
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        group = {**self.defaults, **param_group}
        _check_options(group)
        super().add_param_group(param_group)
        added = self.param_groups[-1]
        # Schedulers change lr; an explicit unitary_lr moves in proportion to it.
        lr = added["lr"]
        added.setdefault("base_lr", lr.clone() if isinstance(lr, Tensor) else lr)
        try:
            for p in added["params"]:
                _check_parameter(p)
        except TypeError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure`` as in `torch.optim`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._plain_step()
        members = [(g, p) for g in self.param_groups for p in g["params"]]
        for index, (group, p) in enumerate(members):
            if isinstance(p, UnitaryParameter) and p.grad is not None:
                self._unitary_step(p, p.grad, self.state[p], group, index)
        return loss

    def _plain_step(self) -> None:
        groups = []
        for group in self.param_groups:
            plain = [p for p in group["params"] if not isinstance(p, UnitaryParameter)]
            groups.append({**group, "params": plain})
        if not any(group["params"] for group in groups):
            return
        if not hasattr(self, "_plain"):  # made late: pickling and deepcopy leave it out
            self._plain = self.plain_rule([torch.zeros(0)])
        self._plain.param_groups, self._plain.state = groups, self.state
        self._plain.step()

    def _unitary_step(
        self,
        p: UnitaryParameter,
        gradient: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        index: int,
    ) -> None:
        if gradient.layout != torch.strided:
            raise TypeError(
                f"params: a unitary parameter has a {gradient.layout} gradient, wanted dense"
            )
        weight, grad = view_like(p, p.detach()), view_like(p, gradient.to(p.dtype).contiguous())
        matrices = Matrices(p, grad)
        if "step" not in state:
            state["step"] = 0
            state["skipped"] = torch.zeros((), dtype=p.dtype.to_real(), device=p.device)
        state["step"] += 1

        direction = matrices.gate(self._direction(matrices, grad, state, group))
        left, right = self._factorize(matrices, direction, state, group, index)
        rate = unitary_learning_rate(group)
        taken = take_step_(
            weight, left * (rate if group["maximize"] else -rate), right, group["retraction"]
        )
        usual = known_to_hold(taken)
        if not usual:
            state["skipped"].add_(taken.logical_not().sum())
        if group["factorization"] == "subspace":
            # A zero step leaves the probe alone, which starts the basis afresh.
            basis, probe = matrices.view(state["basis"]), matrices.view(state["probe"])
            warm = orthonormalize(left).add_(probe, alpha=_PROBE)
            basis.copy_(warm if usual else torch.where(taken[..., None, None], warm, basis))

        period = group["polish_every"]
        if period is None:
            period = polish_period(weight)
        if period and state["step"] % period == 0:
            polish_(weight)

    def _factorize(
        self,
        matrices: "Matrices",
        direction: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        index: int,
    ) -> tuple[Tensor, Tensor]:
        rank, method = min(group["rank"], *direction.shape[-2:]), group["factorization"]
        if method == "svd":
            left, right = factorize(matrices.clean(direction), rank, "svd")
            return matrices.gate(left), right

        def generator() -> torch.Generator:
            # A function of the step and the parameter only: the same on resume and on replicas.
            seed = (1_000_003 * state["step"] + index) % 2**32
            return torch.Generator(direction.device).manual_seed(seed)

        if method != "subspace":
            return factorize(direction, rank, method, generator=generator())
        shape = (*direction.shape[:-1], rank)
        if "probe" not in state or matrices.view(state["probe"]).shape != shape:
            noise = torch.empty(shape, dtype=direction.dtype, device=direction.device)
            noise.normal_(generator=generator())
            state["probe"] = matrices.store(orthonormalize(noise))
            state["basis"] = state["probe"].clone()
        return factorize(direction, rank, "subspace", basis=matrices.view(state["basis"]))

    def skipped_steps(self) -> int:
        """Steps of single matrices not taken so far: not finite, or ("polar") W + D singular.

        The counters live on the devices of the parameters; this call reads them and so waits.
        """
        return int(sum(s["skipped"].item() for s in self.state.values() if "skipped" in s))


class Matrices:
    """The matrices of one unitary parameter in a step: layout of its state, and which are sound.

    A matrix is sound if its gradient is finite.  The state of the others must not move: averages are
    multiplied with `decay` and fed from `clean`, and `gate` makes their step one that is not taken.
    """

    def __init__(self, parameter: UnitaryParameter, grad: Tensor) -> None:
        self.parameter = parameter
        self.grad = grad
        self._finite: Tensor | None = None

    @property
    def finite(self) -> Tensor:
        """Which matrices are sound, (*batch, 1, 1); looked at only when a rule asks."""
        if self._finite is None:
            norm = torch.linalg.vector_norm(self.grad, dim=(-2, -1), keepdim=True)
            self._finite = norm.isfinite()
        return self._finite

    def clean(self, tensor: Tensor) -> Tensor:
        """``tensor`` with the unsound matrices set to zero."""
        if known_to_hold(self.finite):
            return tensor
        return torch.where(self.finite, tensor, 0.0)

    def gate(self, tensor: Tensor) -> Tensor:
        """``tensor`` with the unsound matrices set to NaN, so that their steps are not taken."""
        if self._finite is None or known_to_hold(self._finite):
            return tensor
        return torch.where(self._finite, tensor, torch.nan)

    def decay(self, factor: float) -> Tensor:
        """``factor`` for sound matrices, 1 for the others: (*batch, 1, 1)."""
        return torch.where(self.finite, factor, 1.0).to(self.grad.dtype.to_real())

    def store(self, tensor: Tensor) -> Tensor:
        """A tensor of matrices as it is kept in the state: complex as pairs if the parameter is."""
        return torch.view_as_real(tensor).contiguous() if self.parameter.pairs else tensor

    def view(self, stored: Tensor) -> Tensor:
        """The inverse of `store`; shares memory."""
        return torch.view_as_complex(stored) if self.parameter.pairs else stored

    def zeros(self, state: dict[str, Any], name: str) -> Tensor:
        """The average ``name`` of matrices like the gradient, created as zeros where it is missing."""
        if name not in state:
            state[name] = self.store(torch.zeros_like(self.grad, memory_format=torch.contiguous_format))
        return self.view(state[name])

    def squares(self, state: dict[str, Any], name: str) -> Tensor:
        """Likewise for an average of squares |.|^2, real."""
        if name not in state:
            state[name] = torch.zeros(
                self.grad.shape, dtype=self.grad.dtype.to_real(), device=self.grad.device
            )
        return state[name]


def add_square_(average: Tensor, tensor: Tensor, weight: float) -> Tensor:
    """``average += weight |tensor|^2``, elementwise; |z|^2 = z conj(z) is real."""
    if not tensor.is_complex():
        return average.addcmul_(tensor, tensor, value=weight)
    pairs = torch.view_as_real(tensor)
    return average.add_(pairs.square().sum(-1), alpha=weight)


def unitary_learning_rate(group: dict[str, Any]) -> Any:
    """The learning rate of a group's unitary parameters: a float, or a tensor if ``lr`` is one."""
    lr, unitary_lr, base_lr = group["lr"], group["unitary_lr"], group["base_lr"]
    if unitary_lr is None:
        return lr / _LR_DIVIDER
    return unitary_lr * (lr / base_lr) if base_lr else unitary_lr


def _check_options(group: dict[str, Any]) -> None:
    rank, every, unitary_lr = group["rank"], group["polish_every"], group["unitary_lr"]
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ValueError(f"rank: got {rank!r}, wanted a positive integer")
    for name, allowed in (("retraction", RETRACTIONS), ("factorization", FACTORIZATIONS)):
        if group[name] not in allowed:
            raise ValueError(f"{name}: got {group[name]!r}, wanted one of {', '.join(allowed)}")
    if unitary_lr is not None and not isinstance(unitary_lr, Tensor) and not unitary_lr >= 0:
        raise ValueError(f"unitary_lr: got {unitary_lr!r}, wanted a number >= 0 or None (lr / 32)")
    if every is not None and (not isinstance(every, int) or every < 0):
        raise ValueError(
            f"polish_every: got {every!r}, wanted a number of steps, 0 (never) or None (automatic)"
        )


def _check_parameter(p: Tensor) -> None:
    if isinstance(p, UnitaryParameter) and p.dtype not in MATRIX_DTYPES:
        raise TypeError(
            f"params: a unitary parameter of shape {tuple(p.shape)} is {p.dtype}, wanted one of"
            f" {dtype_names()} (use autocast for layers in lower precision)"
        )
