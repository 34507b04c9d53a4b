"""The matrices of one unitary parameter in one optimizer step: gradient, state, and which are sound."""

from typing import Any

import torch
from torch import Tensor

from projunn.manifold import UnitaryParameter, view_like
from projunn_kernels.batches import known_to_hold

_NOT_OF_THE_RULE = ("step", "skipped", "basis", "probe")


def active_matrices(p: UnitaryParameter, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
    """The gradient as matrices in the parameter's dtype, and the indices of those that have one.

    A dense gradient (*batch, m, n) belongs to every matrix (None).  One that is sparse over the batch
    and dense in the matrices, as `projunn.nn.select_blocks` makes it, belongs to those that it lists:
    (A, m, n) and (A,).

    Raises:
        TypeError: a sparse gradient of another kind.
    """
    if gradient.layout == torch.strided:
        return view_like(p, gradient.to(p.dtype).contiguous()), None
    batch = p.shape[: p.ndim - (3 if p.pairs else 2)]
    if gradient.layout != torch.sparse_coo or p.blocks > 1 or gradient.sparse_dim() != len(batch):
        raise TypeError(
            f"params: a unitary parameter of shape {tuple(p.shape)} has a {gradient.layout} gradient,"
            f" wanted a dense one, or torch.sparse_coo over its {len(batch)} batch dimensions"
        )
    gradient = gradient.coalesce()
    active = torch.zeros_like(gradient.indices()[0])
    for indices, size in zip(gradient.indices(), batch, strict=True):
        active = active * size + indices
    return view_like(p, gradient.values().to(p.dtype).contiguous()), active


def stored_like(p: UnitaryParameter, tensor: Tensor) -> Tensor:
    """A tensor of matrices as the state of ``p`` holds it: complex as pairs if ``p`` is."""
    return torch.view_as_real(tensor.contiguous()) if p.pairs else tensor


class Matrices:
    """The matrices of one unitary parameter in a step: layout of its state, and which are sound.

    A matrix is sound if its gradient is finite.  The state of the others must not move: averages are
    multiplied with `decay` and fed from `clean`, and `gate` makes their step one that is not taken.
    """

    direction: Tensor

    def __init__(
        self,
        parameter: UnitaryParameter,
        grad: Tensor,
        active: Tensor | None,
        state: dict[str, Any],
        group: dict[str, Any],
        index: int,
    ) -> None:
        self.parameter = parameter
        self.grad = grad
        self.active = active
        self.state = state
        self.group = group
        self.index = index  # of the parameter, among all of the optimizer
        self._finite: Tensor | None = None

    @property
    def stored_weight(self) -> Tensor:
        """The parameter as `projunn_kernels.fused_step_` takes it."""
        weight = self.parameter.detach()
        return weight if self.parameter.pairs else view_like(self.parameter, weight)

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
        return stored_like(self.parameter, tensor)

    def view(self, stored: Tensor) -> Tensor:
        """The inverse of `store`; shares memory."""
        return torch.view_as_complex(stored) if self.parameter.pairs else stored

    def rule_state(self) -> dict[str, Any]:
        """The state that the rule sees: that of the active matrices, where only some are."""
        if self.active is None:
            return self.state
        averages = {n: v for n, v in self.state.items() if n not in _NOT_OF_THE_RULE}
        return {n: self._rows(v)[self.active] for n, v in averages.items()} | {
            "step": self.state["step"]
        }

    def keep_rule_state(self, own: dict[str, Any]) -> None:
        """Put back what `rule_state` took out."""
        if self.active is None:
            return
        for name, part in own.items():
            if name not in _NOT_OF_THE_RULE:
                self._rows(self.state[name])[self.active] = part

    def _rows(self, stored: Tensor) -> Tensor:
        """A tensor of the state with the batch as one axis; shares memory."""
        batch = view_like(self.parameter, self.parameter.detach()).ndim - 2
        return stored.flatten(0, batch - 1)


def add_square_(average: Tensor, tensor: Tensor, weight: float) -> Tensor:
    """``average += weight |tensor|^2``, elementwise; |z|^2 = z conj(z) is real."""
    if not tensor.is_complex():
        return average.addcmul_(tensor, tensor, value=weight)
    pairs = torch.view_as_real(tensor)
    return average.add_(pairs.square().sum(-1), alpha=weight)


def count_of(step: Tensor) -> Any:
    """The number of steps so far: a float where the host may read it, else the tensor."""
    return step if step.device.type != "cpu" else step.item()
