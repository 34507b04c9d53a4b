"""The gradient of a unitary parameter as matrices: dense, or sparse over the matrices of a bank."""

import weakref
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from projunn.lowrank import factorize
from projunn.manifold import UnitaryParameter, view_like
from projunn.optim.member import COUNTERS, Member, OptimizerLike, capturing
from projunn.optim.options import CAN_STOP, WARM, unitary_learning_rate
from projunn_kernels import private, retract_
from projunn_kernels.backends import on_device
from projunn_kernels.batches import as_matrices, flattened, surely_all

_NOT_OF_THE_RULE = (*COUNTERS, "skipped", *(name for names in WARM.values() for name in names))


def active_matrices(p: UnitaryParameter, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
    """The gradient as matrices in the parameter's dtype, and the indices of those that have one.

    A dense gradient (*batch, m, n) belongs to every matrix (None).  One that is sparse over the batch
    and dense in the matrices, as `projunn.nn.select_blocks` makes it, belongs to those that it lists:
    (A, m, n) and (A,).

    Raises:
        TypeError: a sparse gradient of another kind.
    """
    if gradient.layout == torch.strided:
        return view_like(p, gradient.to(p.dtype).resolve_conj().contiguous()), None
    batch = p.shape[: p.ndim - (3 if p.pairs else 2)]
    whole = p.blocks > 1 or p.singletons > 0
    if gradient.layout != torch.sparse_coo or whole or gradient.sparse_dim() != len(batch):
        raise TypeError(
            f"params: a unitary parameter of shape {tuple(p.shape)} has a {gradient.layout} gradient,"
            f" wanted a dense one, or torch.sparse_coo over its {len(batch)} batch dimensions"
        )
    if capturing(p):
        raise RuntimeError(
            f"params: a unitary parameter of shape {tuple(p.shape)} has a sparse gradient, wanted a"
            " dense one for the capture of a CUDA graph: the host waits for how many matrices it lists"
        )
    gradient = gradient.coalesce()
    active = torch.zeros_like(gradient.indices()[0])
    for indices, size in zip(gradient.indices(), batch, strict=True):
        active = active * size + indices
    return view_like(p, gradient.values().to(p.dtype).resolve_conj().contiguous()), active


def stored_like(p: UnitaryParameter, tensor: Tensor) -> Tensor:
    """A tensor of matrices as the state of ``p`` holds it: contiguous, complex as pairs if ``p`` is."""
    tensor = tensor.resolve_conj().contiguous()
    return torch.view_as_real(tensor) if p.pairs else tensor


class DenseGradient:
    """The matrices of one unitary parameter in a step: layout of its state, and which are sound.

    A matrix is sound if its gradient is finite, and so is what the averages make of it.  The state of
    the others must not move: averages are multiplied with `decay` and fed from `clean`, and `gate` makes
    their step one that is not taken.

    Attributes:
        parameter, state, group, index: as in `Member`.
        grad: the gradient as matrices, those of the active ones where only some have one.
        active: which have one, as indices (A,); None for all.
        is_plain: whether its memory holds the matrices one after the other, complex numbers as such.
        layout: shape, strides, and whatever else of the parameter says how its matrices are stored.
        direction: the rule's, once `follow` has been called.
        taken: which steps were, (*batch) or (A,), once they have been tried.
    """

    direction: Tensor
    taken: Tensor

    def __init__(self, member: Member) -> None:
        self.parameter, self.state, self.group = member.parameter, member.state, member.group
        self.index = member.index
        self.grad, self.active = active_matrices(member.parameter, member.grad)
        self._sound: Tensor | None = None
        p = member.parameter
        self.layout = (p.shape, p.stride(), p.pairs, p.blocks, p.dtype, p.device, p.singletons)
        self._complex = p.is_complex()
        self.is_plain = not p.pairs and p.blocks == 1 and not p.singletons
        weight = p.detach()
        self.stored_weight = weight if p.pairs else view_like(p, weight)

    def renew(self, grad: Tensor) -> bool:
        """Take up the gradient of the next step; False if more has changed than its numbers."""
        p = self.parameter
        if self.active is not None or type(grad) is not Tensor or grad.layout is not torch.strided:
            return False
        if p.data_ptr() != self.stored_weight.data_ptr():
            return False
        if (p.shape, p.stride(), p.pairs, p.blocks, p.dtype) != self.layout[:5]:
            return False
        as_it_is = self.is_plain and grad.dtype is self.layout[4] and grad.is_contiguous()
        as_it_is = as_it_is and not (self._complex and grad.is_conj())
        self.grad, self._sound = grad if as_it_is else active_matrices(p, grad)[0], None
        return True

    def feed(self, grad: Tensor) -> None:
        """Take up the gradient of the next step, as matrices."""
        self.grad, self._sound = grad, None

    @property
    def shape(self) -> torch.Size:
        """(.., m, n)."""
        return self.grad.shape

    @property
    def sound_if_asked(self) -> Tensor | None:
        """`sound`, if the rule has asked for it; else None, as of a rule without averages."""
        return self._sound

    def follow(self, optimizer: OptimizerLike) -> None:
        """Have the rule find the direction, which moves its averages."""
        self._optimizer: Any = weakref.ref(optimizer)
        if self.active is None:
            direction = optimizer._direction(self, self.for_averages, self.state, self.group)
            direction = self.from_averages(direction)
            self.direction = direction if self._sound is None else self.gate(direction)
            return
        own = self.rule_state()
        direction = optimizer._direction(self, self.for_averages, own, self.group)
        self.direction = self.gate(self.from_averages(direction))
        self.keep_rule_state(own)

    @property
    def for_averages(self) -> Tensor:
        """The matrices that the rule averages: G, or its tangent part.

        That of a square W in its own frame, A = (W^H G - G^H W)/2; of a rectangular one, which has no
        frame, (G - W G^H W)/2, which would be W A.
        """
        if self.group["averages"] == "gradient":
            return self.grad
        weight = self._weight()
        if self._is_square:
            pulled = weight.mH @ self.grad
            return (pulled - pulled.mH) / 2
        wide = weight.shape[-2] < weight.shape[-1]
        mirrored = (weight @ self.grad.mH) @ weight if wide else weight @ (self.grad.mH @ weight)
        return (self.grad - mirrored) / 2

    def from_averages(self, direction: Tensor) -> Tensor:
        """The direction D from that of the averages: itself, or W times it."""
        in_frame = self.group["averages"] == "tangent" and self._is_square
        return self._weight() @ direction if in_frame else direction

    @property
    def _is_square(self) -> bool:
        return self.grad.shape[-2] == self.grad.shape[-1]

    def _weight(self) -> Tensor:
        weight = self.view(self.stored_weight)
        return weight if self.active is None else as_matrices(weight)[self.active]

    @property
    def factorization(self) -> str:
        """Where the factors of the step come from: that of the group, or of `projunn.optim.stopping`."""
        named: str = self.group["factorization"]
        return "tangent" if named in CAN_STOP and WARM["tangent"][0] in self.state else named

    def take(self) -> None:
        """Take the step alone, with factors that are drawn at random or found by SVD."""
        direction, group = self.direction, self.group
        rank = min(group["rank"], *direction.shape[-2:])
        if group["factorization"] == "svd":
            if capturing(self.parameter):
                raise RuntimeError(
                    'factorization: "svd" waits for the device; wanted one that keeps a basis, such as'
                    ' "subspace", for the capture of a CUDA graph'
                )
            left, right = factorize(direction, rank, "svd")
        else:
            source = self._random_numbers(direction.device)
            left, right = factorize(direction, rank, group["factorization"], generator=source)
        rate = unitary_learning_rate(group, direction.shape)
        left = left * (rate if group["maximize"] else -rate)
        weight = view_like(self.parameter, self.parameter.detach())
        if self.active is None:
            taken = retract_(weight, left, right, group["retraction"])
        else:
            with flattened(weight) as matrices:
                taken = retract_(matrices, left, right, group["retraction"], self.active)
        if not surely_all(taken):
            self.state["skipped"].add_(taken.logical_not().sum())
            if self.active is None:
                self.state["missed"].add_(taken.logical_not())
        self.taken = taken

    def _random_numbers(self, device: torch.device) -> torch.Generator:
        """Numbers of this step and this parameter only: the same on resume and on replicas."""
        if self.state["step"].device.type != "cpu" or capturing(self.parameter):
            raise ValueError(
                f'factorization: "{self.group["factorization"]}" draws random numbers on the host;'
                ' wanted one that keeps a basis, such as "subspace", with capturable=True,'
                " torch.compile or a CUDA graph"
            )
        seed = (1_000_003 * int(self.state["step"].item()) + self.index) % 2**32
        return torch.Generator(device).manual_seed(seed)

    @property
    def sound(self) -> Tensor:
        """The mask of the sound matrices, (*batch, 1, 1); found when the rule first asks for it."""
        if self._sound is None:
            limit, grad = largest(self._optimizer(), self.group, self.grad.dtype), self.grad
            if self.group["averages"] == "tangent":  # of entries that are no larger than the 2-norm
                limit /= (grad.shape[-2] * grad.shape[-1]) ** 0.5
            if not on_device(grad):  # faster, and no entry is larger than the 2-norm
                self._sound = frobenius_norms(grad) < limit
            if self._sound is None or not surely_all(self._sound):
                size = torch.linalg.vector_norm(grad, torch.inf, dim=(-2, -1), keepdim=True)
                self._sound = size < limit
        return self._sound

    def clean(self, tensor: Tensor) -> Tensor:
        """``tensor`` with the unsound matrices set to zero."""
        if surely_all(self.sound):
            return tensor
        return torch.where(self.sound, tensor, 0.0)

    def gate(self, tensor: Tensor) -> Tensor:
        """``tensor`` with the unsound matrices set to NaN, so that their steps are not taken."""
        if self._sound is None or surely_all(self._sound):
            return tensor
        return torch.where(self._sound, tensor, torch.nan)

    def decay(self, factor: Any) -> Any:
        """``factor`` for sound matrices, 1 for the others: (*batch, 1, 1), or a number for all."""
        if surely_all(self.sound):
            return factor
        dtype = self.grad.dtype.to_real()
        if not isinstance(factor, Tensor):  # not as `torch.where` makes it: of the default dtype
            factor = self.grad.new_full((), factor, dtype=dtype)
        return torch.where(self.sound, factor, 1.0).to(dtype)

    def store(self, tensor: Tensor) -> Tensor:
        """A tensor of matrices as it is kept in the state: complex as pairs if the parameter is."""
        plain = not self.layout[2] and tensor.is_contiguous()
        plain = plain and not (self._complex and tensor.is_conj())
        return tensor if plain else stored_like(self.parameter, tensor)

    def view(self, stored: Tensor) -> Tensor:
        """The inverse of `store`; shares memory."""
        return torch.view_as_complex(stored) if self.parameter.pairs else stored

    def rule_state(self) -> dict[str, Any]:
        """The state of the active matrices, as the rule sees it."""
        averages = {n: v for n, v in self.state.items() if n not in _NOT_OF_THE_RULE}
        return {n: self._rows(v)[self.active] for n, v in averages.items()} | {
            "step": self.state["step"],
            "missed": self.state["missed"].flatten()[self.active],
        }

    def keep_rule_state(self, own: dict[str, Any]) -> None:
        """Put back what `rule_state` took out."""
        for name, part in own.items():
            if name not in _NOT_OF_THE_RULE:
                self._rows(self.state[name])[self.active] = part

    def _rows(self, stored: Tensor) -> Tensor:
        """A tensor of the state with the batch as one axis; shares memory."""
        batch = view_like(self.parameter, self.parameter.detach()).ndim - 2
        return stored.flatten(0, batch - 1)


def largest(optimizer: OptimizerLike, group: dict[str, Any], dtype: torch.dtype) -> float:
    """The size of entries at which the averages of a rule may overflow."""
    most = torch.finfo(dtype).max
    if any(optimizer._averages(group).values()):  # of squares
        return most**0.5 / 2
    # B <- mu B + G stays below |G| / (1 - mu)
    return most / 4 * max(1 - group.get("momentum", 0), 2**-24)


def frobenius_norms(matrices: Tensor) -> Tensor:
    """The Frobenius norms, (*batch, 1, 1); by parts, as complex ones take PyTorch 100 times as long."""
    if not matrices.is_complex():
        return torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)
    parts = torch.view_as_real(matrices.resolve_conj())
    return torch.linalg.vector_norm(parts, dim=(-3, -2, -1), keepdim=True).squeeze(-1)


def add_square_(average: Tensor, tensor: Tensor, weight: float) -> Tensor:
    """``average += weight |tensor|^2``, elementwise; |z|^2 = z conj(z) is real."""
    if not tensor.is_complex():
        return average.addcmul_(tensor, tensor, value=weight)
    real, imaginary = torch.view_as_real(tensor).square().unbind(-1)
    return average.add_(real + imaginary, alpha=weight)  # eight times as fast as a sum over the axis


_LAYOUT = attrgetter("shape", "pairs", "blocks")
_KIND = attrgetter("layout", "dtype")


class PlainGradients:
    """The checks of `DenseGradient.renew` for all gradients of a step, without a Python call for each.

    Args:
        gradients: dense ones, of parameters whose memory holds their matrices one after the other.
    """

    def __init__(self, gradients: Sequence[DenseGradient]) -> None:
        self._gradients = gradients
        self._parameters = [gradient.parameter for gradient in gradients]
        self._kinds = [(torch.strided, p.dtype) for p in self._parameters]
        self._any_complex = any(p.is_complex() for p in self._parameters)
        self._known = self._places()

    @classmethod
    def of(cls, gradients: Sequence[Any]) -> "PlainGradients | None":
        """For the gradients of a step; None if one of them is not dense, or not stored plainly."""
        dense = all(isinstance(g, DenseGradient) and g.active is None for g in gradients)
        plain = dense and all(g.is_plain and not private.is_fake(g.parameter) for g in gradients)
        return cls(gradients) if plain else None

    def _places(self) -> tuple[list[Any], ...]:
        own = self._parameters
        with private.as_plain_tensors():
            return [*map(Tensor.data_ptr, own)], [*map(_LAYOUT, own)], [*map(Tensor.stride, own)]

    def renew(self, grads: list[Tensor]) -> bool:
        """Take up the gradients of the next step; False if one of them is not as it must be."""
        if {*map(type, grads)} != {Tensor} or [*map(_KIND, grads)] != self._kinds:
            return False
        if not all(map(Tensor.is_contiguous, grads)) or self._places() != self._known:
            return False
        if self._any_complex and any(map(Tensor.is_conj, grads)):
            return False
        for gradient, grad in zip(self._gradients, grads, strict=True):
            gradient.grad, gradient._sound = grad, None
        return True
