"""What the steps of the optimizers take."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class FusedStep:
    """The arguments of `projunn_kernels.fused_step_`: lists have one entry a parameter.

    Attributes:
        weights, directions: W and D, (*batch, m, n).
        bases, probes: R and its probe, (*batch, m, k); with ``"tangent"``, (*batch, max(m, n), k).
        skipped: counters () of the matrices whose step could not be taken.
        rate, scale: the learning rate is ``rate``, times the 0-d ``scale`` if given.
        retraction: ``"exp"``, ``"polar"`` or ``"cayley"``.
        pairs: the tensors are stored as real pairs, with a trailing axis of size 2.
        active: (A,) lists the matrices of one parameter's batch that take part, each once; the direction
            then is (A, m, n) and stands for those.  Negative entries stand for nothing.
        factorization: ``"subspace"`` steps along factors of D, ``"tangent"`` along those of its tangent
            part (`projunn_kernels.factorization`).
    """

    weights: list[Tensor]
    directions: list[Tensor]
    bases: list[Tensor]
    probes: list[Tensor]
    skipped: list[Tensor]
    rate: float
    scale: Tensor | None = None
    retraction: str = "exp"
    pairs: bool = False
    active: Tensor | None = None
    factorization: str = "subspace"


@dataclass(frozen=True)
class FactoredStep:
    """The arguments of `projunn_kernels.factored_step_`, of one parameter.

    Attributes:
        weight: W, (*batch, m, n).
        left, right: X (*batch, m, k) and Y (*batch, n, k) of the direction.
        sketched: S, the left factor of the gradient, (*batch, m, r).
        basis, probe: R and its probe, (*batch, m, r).
        skipped: the counter () of the matrices whose step could not be taken.
        rate, scale, retraction: as in `FusedStep`.
        pairs: W, R and the probe are stored as real pairs; the factors are complex.
    """

    weight: Tensor
    left: Tensor
    right: Tensor
    sketched: Tensor
    basis: Tensor
    probe: Tensor
    skipped: Tensor
    rate: float
    scale: Tensor | None = None
    retraction: str = "exp"
    pairs: bool = False


@dataclass(frozen=True)
class FactoredTangentStep:
    """The arguments of `projunn_kernels.factored_tangent_step_`, of one parameter.

    Attributes:
        weight: W, (*batch, m, n).
        left, right: of the direction D = left right^H, (*batch, m, q) and (*batch, n, q).
        basis, probe: R and its probe, (*batch, max(m, n), r), r <= q.
        skipped: the counter () of the matrices whose step could not be taken.
        rank: k of the step.
        rate, scale, retraction: as in `FusedStep`.
        pairs: W, R and the probe are stored as real pairs; the factors are complex.
    """

    weight: Tensor
    left: Tensor
    right: Tensor
    basis: Tensor
    probe: Tensor
    skipped: Tensor
    rank: int
    rate: float
    scale: Tensor | None = None
    retraction: str = "exp"
    pairs: bool = False
