"""The arguments of the optimizers' steps."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from projunn_kernels.constants import MAX_FUSED, MAX_RANK
from projunn_kernels.keeping import unread
from projunn_kernels.rules.arguments import RuleStep


@dataclass(frozen=True)
class FusedStep:
    """The arguments of `projunn_kernels.fused_step_`: lists have one entry a parameter.

    Attributes:
        weights, directions: W and D, (*batch, m, n).
        bases, probes: R and its probe, (*batch, m, k); with ``"tangent"``, (*batch, max(m, n), k), and
            with ``"single_pass"`` R above V, (*batch, m + n, k).
        skipped: 0-d counters of the steps of single matrices that could not be taken.
        missed: for each matrix, (*batch) int64, the same; with ``active`` the caller counts those.
        rate, scale: the learning rate is ``rate``, times the 0-d tensor ``scale`` if given.
        retraction: ``"exp"``, ``"polar"`` or ``"cayley"``.
        pairs: True if the tensors hold complex numbers as pairs of reals, on a trailing axis.
        active: (A,) lists the matrices of one parameter's batch that take part, each once; the direction
            then is (A, m, n) and stands for those.  Negative entries stand for nothing.
        factorization: ``"subspace"`` steps along factors of D, ``"tangent"`` along those of its tangent
            part (`projunn_kernels.factorization`), ``"single_pass"`` along R R^H D
            (`projunn_kernels.single_pass`).
    """

    weights: list[Tensor]
    directions: list[Tensor]
    bases: list[Tensor]
    probes: list[Tensor]
    skipped: list[Tensor]
    missed: list[Tensor]
    rate: float
    scale: Tensor | None = None
    retraction: str = "exp"
    pairs: bool = False
    active: Tensor | None = None
    factorization: str = "subspace"

    @property
    def sizes(self) -> tuple[int, int, int]:
        """m, n and k."""
        weight, basis = self.weights[0].shape, self.bases[0].shape
        weight, basis = (weight[:-1], basis[:-1]) if self.pairs else (weight, basis)
        return weight[-2], weight[-1], basis[-1]

    @property
    def fits_a_program(self) -> bool:
        """Whether the step of a matrix is one program, which holds its rows in registers."""
        m, n, k = self.sizes
        return k == 1 and m <= n <= MAX_FUSED

    @property
    def follows_in_a_pass(self) -> bool:
        """Whether kernels that read D may as well make it, by a rule whose averages move."""
        if self.factorization == "single_pass":
            return True
        subspace = self.factorization == "subspace" and self.active is None
        return subspace and self.sizes[2] <= MAX_RANK and not self.fits_a_program


@dataclass(frozen=True)
class FactoredStep:
    """The arguments of `projunn_kernels.factored_step_`: lists have one entry a parameter.

    Attributes:
        weights: W, (*batch, m, n).
        lefts, rights: X (*batch, m, k) and Y (*batch, n, k) of the directions.
        sketched: S, the left factors of the gradients, (*batch, m, r).
        bases, probes: R and its probe, (*batch, m, r).
        skipped, missed, rate, scale, retraction: as in `FusedStep`.
        pairs: True if W, R and the probe hold complex numbers as pairs; the factors are complex.
    """

    weights: list[Tensor]
    lefts: list[Tensor]
    rights: list[Tensor]
    sketched: list[Tensor]
    bases: list[Tensor]
    probes: list[Tensor]
    skipped: list[Tensor]
    missed: list[Tensor]
    rate: float
    scale: Tensor | None = None
    retraction: str = "exp"
    pairs: bool = False


@dataclass(frozen=True)
class FollowedStep:
    """The arguments of `projunn_kernels.followed_step_`: lists have one entry a parameter.

    Attributes:
        weights, bases, probes, skipped: W, R, its probe and the counters, as in `FusedStep`.
        gradients: G, (*batch, m, n), float32 or complex64.
        means, squares, others, missed, numbers, rule, nesterov, steps, counted: as in `RuleStep`.
        rate, scale, retraction, factorization: as in `FusedStep`.
        pairs: True if all tensors but the gradients hold complex numbers as pairs.
        directions: a place for D, (parameters, *batch, m, n), or None if nobody wants to see it.
    """

    weights: list[Tensor]
    gradients: list[Tensor]
    bases: list[Tensor]
    probes: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    others: list[Tensor]
    skipped: list[Tensor]
    missed: list[Tensor]
    numbers: list[float]
    rule: str
    nesterov: bool
    steps: int
    counted: list[Tensor]
    rate: float
    scale: Tensor | None = None
    retraction: str = "exp"
    pairs: bool = False
    factorization: str = "subspace"
    directions: Tensor | None = None

    @property
    def by_rule(self) -> RuleStep:
        """The part in which the averages move."""
        return RuleStep(
            gradients=self.gradients,
            means=self.means,
            squares=self.squares,
            others=self.others,
            missed=self.missed,
            numbers=self.numbers,
            rule=self.rule,
            nesterov=self.nesterov,
            steps=self.steps,
            counted=self.counted,
            pairs=self.pairs,
        )

    def after(self, directions: Iterable[Tensor]) -> FusedStep:
        """The step along directions of the rule, which has counted the matrices that it ``missed``."""
        directions = list(directions)
        if self.directions is not None:
            torch.stack(directions, out=self.directions)
        return replace(self.along(directions), missed=[unread(t) for t in self.missed])

    def along(self, directions: Iterable[Tensor]) -> FusedStep:
        """The part in which the weights move, along directions that are stored as gradients are."""
        if self.pairs:
            directions = [torch.view_as_real(d.resolve_conj()) for d in directions]
        return FusedStep(
            weights=self.weights,
            directions=list(directions),
            bases=self.bases,
            probes=self.probes,
            skipped=self.skipped,
            missed=self.missed,
            rate=self.rate,
            scale=self.scale,
            retraction=self.retraction,
            pairs=self.pairs,
            factorization=self.factorization,
        )


def batch_of(step: FusedStep | FactoredStep | FollowedStep) -> torch.Size:
    """The shape of the mask of the steps that were taken, if all matrices take part."""
    batch = step.weights[0].shape[: -3 if step.pairs else -2]
    return batch if len(step.weights) == 1 else torch.Size((len(step.weights), *batch))
