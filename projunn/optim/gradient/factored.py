"""The step of a unitary parameter whose gradient comes in factors: nothing here has m n elements.

    gradient X Y^H, at the rank of the sketch where micro-batches added theirs up
        -> average B <- decay B + weight X Y^H, truncated to its largest parts
        -> over the root of its second moments, held as row and column means
        -> direction at rank k

Factors are pairs (L, R) with L (*batch, m, r) and R (*batch, n, r), for L R^H.
"""

import weakref
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from projunn.factored import FactoredTensor
from projunn.optim.gradient.dense import active_matrices, largest, stored_like
from projunn.optim.member import Member, OptimizerLike
from projunn_kernels import factor, orthonormalize, seeded_normal
from projunn_kernels.backends import on_device
from projunn_kernels.batches import surely_all

Factors = tuple[Tensor, Tensor]

# An average over many steps has more directions than a step; it is held at this multiple of the sketch's
# rank, and at no less than the second number.
_AVERAGE, _LEAST_AVERAGE = 4, 8
REDRAWN = "redrawn"  # in the state of a parameter whose sketches start from random columns


class FactoredGradient:
    """The gradient of one sketched parameter in a step, and the part of its state that is low-rank.

    The state of matrices whose gradient is not finite does not move.

    Attributes:
        parameter, state, group, index: as in `Member`.
        factors: of the gradient.
        direction: the rule's, in factors, once `follow` has been called.
        layout: shape, strides, and whatever else of the parameter says how its matrices are stored.
    """

    direction: Factors
    active = None

    def __init__(self, member: Member) -> None:
        p, grad, state = member.parameter, member.grad, member.state
        if p.sketch is None:
            raise TypeError(
                f"params: a parameter of shape {tuple(p.shape)} has a gradient in factors, but belongs"
                " to no layer with sketch_rank"
            )
        if member.group["factorization"] == "tangent":
            raise ValueError(
                f'factorization: got "tangent" for a parameter of shape {tuple(p.shape)} of a layer with'
                ' sketch_rank, wanted "subspace": a sketch of the gradient lacks its tangent part'
            )
        if member.group["averages"] == "tangent":
            raise ValueError(
                f'averages: got "tangent" for a parameter of shape {tuple(p.shape)} of a layer with'
                ' sketch_rank, wanted "gradient": a sketch of the gradient lacks its tangent part'
            )
        member.start_counting()
        self.parameter, self.state, self.group = p, state, member.group
        self.index = member.index
        start, kept = p.sketch.stored_left, torch.contiguous_format
        if "probe" not in state or state["probe"].shape != start.shape:
            state["basis"], state["probe"] = (start.clone(memory_format=kept) for _ in range(2))
        self._address = p.data_ptr()
        self.layout = (p.shape, p.stride(), p.pairs, p.dtype, p.device)
        self._feed(grad)

    def renew(self, grad: Tensor) -> bool:
        """Take up the gradient of the next step; False if more has changed than its numbers."""
        p, start = self.parameter, self.parameter.sketch
        if type(grad) is not FactoredTensor or start is None or p.data_ptr() != self._address:
            return False
        if (p.shape, p.stride(), p.pairs, p.dtype) != self.layout[:4]:
            return False
        same_rank = self.state["probe"].shape == start.stored_left.shape
        if not same_rank or "tangent" in (self.group["factorization"], self.group["averages"]):
            return False
        self._feed(grad)
        return True

    def _feed(self, grad: Tensor) -> None:
        basis = self.view(self.state["basis"])
        if isinstance(grad, FactoredTensor):
            left, right = grad.left.to(basis.dtype), grad.right.to(basis.dtype)
            self.factors = compressed(left, right, basis)
        else:
            matrices, active = active_matrices(self.parameter, grad)
            if active is not None:
                raise TypeError(
                    f"params: a parameter of shape {tuple(self.parameter.shape)} of a layer with"
                    f" sketch_rank has a {grad.layout} gradient, wanted one in factors or a dense one"
                )
            self.factors = factor(matrices, basis)
        self._sound: Tensor | None = None
        for cached in ("_all_sound", "clean"):
            self.__dict__.pop(cached, None)

    @property
    def shape(self) -> tuple[int, int]:
        """m and n."""
        left, right = self.factors
        return left.shape[-2], right.shape[-2]

    @property
    def sound_if_asked(self) -> Tensor | None:
        """`sound`, if the rule has asked for it; else None, as of a rule without averages."""
        return self._sound

    def follow(self, optimizer: OptimizerLike) -> None:
        """Have the rule find the direction, which moves its averages."""
        self._optimizer: Any = weakref.ref(optimizer)
        left, right = optimizer._factored_direction(self, self.group)
        rank = min(self.group["rank"], left.shape[-2], right.shape[-2])
        self.direction = self.gate(truncated(left, right, rank))

    def start_of_sketch(self) -> Tensor:
        """Where the next sketch finds the basis that it starts from; that of the state is to go there.

        If sketches of this parameter start from random columns, the basis of the state is drawn anew.
        """
        if REDRAWN in self.state:
            basis = self.state["basis"]
            seed = 1_000_003 * int(self.state["step"].item()) + self.index
            drawn = seeded_normal(self.factors[0], self.view(basis).shape, seed)
            basis.copy_(self.store(orthonormalize(drawn)))
        assert self.parameter.sketch is not None
        return self.parameter.sketch.stored_left

    def redraw(self) -> None:
        """Let each sketch from now on start from random columns, not from those of the last step."""
        self.state[REDRAWN] = torch.ones((), dtype=torch.bool, device=self.parameter.device)

    @property
    def sound(self) -> Tensor:
        """The mask of the sound matrices, (*batch, 1, 1); found when the rule first asks for it."""
        if self._sound is None:
            limit = largest(self._optimizer(), self.group, self.factors[0].dtype)
            left, right = (torch.linalg.vector_norm(f, dim=(-2, -1), keepdim=True) for f in self.factors)
            self._sound = (left < limit) & (right < limit) & (left < limit / right)
        return self._sound

    @cached_property
    def _all_sound(self) -> bool:
        """Whether all matrices can be seen to be."""
        return surely_all(self.sound)

    @cached_property
    def clean(self) -> Factors:
        """The factors, zero for the matrices that are not sound."""
        left, right = self.factors
        if self._all_sound:
            return left, right
        return torch.where(self.sound, left, 0.0), torch.where(self.sound, right, 0.0)

    def average(
        self, name: str, factors: Factors, decay: float, weight: float = 1.0, first: float | None = None
    ) -> Factors:
        """``B <- decay B + weight L R^H``, truncated to the rank at which it is held in the state.

        ``first`` is the weight in the first step, where it differs.
        """
        keys = f"{name}_left", f"{name}_right"
        left, right = factors
        if keys[0] not in self.state:
            weight = weight if first is None else first
            rank, (m, n) = self.factors[0].shape[-1], (f.shape[-2] for f in self.factors)
            columns = average_columns(rank, m, n)
            for key, factor in zip(keys, (left, right), strict=True):
                empty = factor.new_zeros((*factor.shape[:-1], columns))
                self.state[key] = self.store(empty)
        held = [self.view(self.state[key]) for key in keys]
        new = truncated(
            torch.cat([held[0] * decay, left * weight], -1),
            torch.cat([held[1], right], -1),
            held[0].shape[-1],
        )
        for old, fresh in zip(held, new, strict=True):
            self._keep(old, fresh)
        return new

    def over_root_of_squares(
        self, name: str, factors: Factors, decay: float, correction: Any, eps: float
    ) -> Factors:
        """``factors`` over the root of V, the second moments of the gradient G (Adafactor's rule).

            V_ij = R_i C_j / mean(R) / correction        R, C <- decay R, C + (1 - decay) means of
                                                         |G_ij|^2 + eps^2 over each row, column

        Source: Shazeer and Stern, ICML 2018, arXiv 1804.04235, section 3.
        """
        left, right = self.clean
        moments = []
        for axis, own, other in (("row", left, right), ("column", right, left)):
            key = f"{name}_{axis}"
            means = (row_energies(own, other) / other.shape[-2]).add_(eps**2)
            if key not in self.state:
                self.state[key] = torch.zeros_like(means)
            self._keep(self.state[key], self.state[key] * decay + means * (1 - decay))
            moments.append((self.state[key] / correction).clamp_min(torch.finfo(means.dtype).tiny))
        # Each half gets the root of the root of mean(R): neither overflows.
        share = moments[0].mean(-2, keepdim=True).sqrt()
        halves = [f * (share / v).sqrt() for f, v in zip(factors, moments, strict=True)]
        return halves[0], halves[1]

    def gate(self, factors: Factors) -> Factors:
        """``factors``, of matrices whose step must not be taken made NaN."""
        left, right = factors
        if self._sound is None or self._all_sound:
            return left, right
        return torch.where(self._sound, left, torch.nan), right

    def store(self, tensor: Tensor) -> Tensor:
        """Factors as they are kept in the state: complex as pairs if the parameter is."""
        return stored_like(self.parameter, tensor)

    def view(self, stored: Tensor) -> Tensor:
        """The inverse of `store`; shares memory."""
        return torch.view_as_complex(stored) if self.parameter.pairs else stored

    def _keep(self, old: Tensor, fresh: Tensor) -> None:
        old.copy_(fresh if self._all_sound else torch.where(self.sound, fresh, old))


def average_columns(rank: int, m: int, n: int) -> int:
    """The rank at which an average of m x n gradients is held that are sketched at this rank."""
    return min(max(_AVERAGE * rank, _LEAST_AVERAGE), m, n)


def compressed(left: Tensor, right: Tensor, basis: Tensor) -> Factors:
    """L R^H at the rank of a basis of its range: ``Y = orth(R L^H B)``, ``X = L R^H Y``.

    As `projunn_kernels.factor` of the product; factors of that rank stay as they are.
    """
    missing = basis.shape[-1] - left.shape[-1]
    if missing >= 0:
        return (pad(left, (0, missing)), pad(right, (0, missing))) if missing else (left, right)
    y = orthonormalize(right @ (left.mH @ basis))
    return left @ (right.mH @ y), y


def truncated(left: Tensor, right: Tensor, rank: int) -> Factors:
    """About the best approximation of L R^H of a rank: X Y^H, Y orthonormal, the largest parts first.

    On a CPU by the eigenvectors of X^H X, r x r in float64.  A GPU would make the host wait for them and
    takes orthogonal iterations instead: parts that differ by a factor q in size are told apart to q^-12.
    """
    if left.shape[-1] <= rank:
        return left, right
    y = orthonormalize(right)
    x = left @ (right.mH @ y)
    precise = x.to(torch.complex128 if x.is_complex() else torch.float64)
    gram = precise.mH @ precise
    size = gram.diagonal(dim1=-2, dim2=-1).real.sum(-1, keepdim=True).unsqueeze(-1)
    gram = gram / size.clamp_min(torch.finfo(size.dtype).tiny)
    if on_device(gram):
        rotation = _leading(gram, rank)
    else:
        finite = gram.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
        vectors = torch.linalg.eigh(torch.where(finite, gram, 0.0)).eigenvectors
        rotation = vectors[..., -rank:].flip(-1)
    rotation = rotation.to(x.dtype)
    return x @ rotation, y @ rotation


def _leading(gram: Tensor, rank: int) -> Tensor:
    """The leading eigenvectors, by iterations that a few dense columns start."""
    rows = torch.arange(gram.shape[-1], dtype=torch.float64, device=gram.device)
    columns = (torch.outer(rows + 1, rows[:rank] + 1) * 2**0.5).cos().to(gram.dtype)
    vectors = orthonormalize(gram @ columns)
    for _ in range(5):
        vectors = orthonormalize(gram @ vectors)
    return vectors


def row_energies(left: Tensor, right: Tensor) -> Tensor:
    """Sums of |.|^2 over the rows of L R^H: (*batch, m, 1), real."""
    weighted = left @ (right.mH @ right)
    return (weighted * left.conj()).sum(-1, keepdim=True).real.clamp_min(0)
