"""The arguments of a rule's step."""

from dataclasses import dataclass, fields

from torch import Tensor

RULES = ("momentum", "rmsprop", "adamw", "lion")
# The `RuleStep.form` of steps along gradients as they are.
NO_RULE: dict[str, str | bool] = {"rule": "none", "mean": False, "other": False, "nesterov": False}


@dataclass(frozen=True)
class RuleStep:
    """The arguments of `projunn_kernels.follow_rule_`: lists have one entry a parameter.

    Attributes:
        gradients: G, (*batch, m, n), float32 or complex64.
        means: the average that is linear in G: B of ``"momentum"``, M of the others.
        squares: V, the average of |G|^2, real.
        others: the third average: RMSprop's B, or the largest V so far of AMSGrad.  All three lists are
            empty where the rule has no such average.
        missed: how many steps each matrix has not taken, (*batch), int64.
        numbers: those of `RuleNumbers`, in its order.
        rule: one of ``"momentum"`` (that of SGD), ``"rmsprop"``, ``"adamw"`` and ``"lion"``.
        nesterov: whether ``"momentum"`` looks ahead.
        steps: the number of steps of the parameters, this one included, where the host counts them.
        counted: 0-d tensors of that number, one a parameter, where the device counts them; else empty.
        pairs: True if ``means`` and ``others`` hold complex numbers as pairs, on a trailing axis.
    """

    gradients: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    others: list[Tensor]
    missed: list[Tensor]
    numbers: list[float]
    rule: str
    nesterov: bool
    steps: int
    counted: list[Tensor]
    pairs: bool = False

    @property
    def form(self) -> dict[str, str | bool]:
        """The rule, and which averages it has: what kernels are compiled for."""
        has = {"mean": bool(self.means), "other": bool(self.others)}
        return {"rule": self.rule, **has, "nesterov": self.nesterov}


@dataclass(frozen=True)
class RuleNumbers:
    """The constants of a rule.

    Attributes:
        mean_decay, mean_weight: M <- mean_decay M + mean_weight G.
        square_decay, square_weight: V <- square_decay V + square_weight |G|^2.
        eps: what is added to the root of V.
        momentum: mu of ``"momentum"`` and ``"rmsprop"``; beta1 of ``"lion"``.
        limit: entries of G of this size or more are not followed: an average could overflow.
    """

    limit: float
    mean_decay: float = 0.0
    mean_weight: float = 1.0
    square_decay: float = 0.0
    square_weight: float = 1.0
    eps: float = 0.0
    momentum: float = 0.0

    def in_order(self) -> list[float]:
        """The numbers as a list, as the kernels read them."""
        return [float(getattr(self, field.name)) for field in fields(self)]
