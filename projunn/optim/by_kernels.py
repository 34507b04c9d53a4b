"""Rules that kernels follow: the averages and directions of parameters of one shape in two launches.

What the optimizers do elementwise in PyTorch (`DenseGradient.follow`) takes a dozen launches a parameter
on a GPU.  The formulas are those of `projunn_kernels.follow_rule_`.  Where nobody else wants the
directions, the second launch is the first pass of the step (`projunn_kernels.followed_step_`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from projunn.optim.gradient.dense import DenseGradient, largest
from projunn.optim.member import OptimizerLike
from projunn_kernels import RuleNumbers, RuleStep, follow_rule_
from projunn_kernels.backends import uses_triton
from projunn_kernels.keeping import unread


@dataclass(frozen=True)
class KernelRule:
    """A rule with the options of a group, as the kernels know it.

    Attributes:
        name: one of `projunn_kernels.RULES`.
        mean, square, other: what the averages of `projunn_kernels.RuleStep` are called in the state;
            empty where the rule has none.
        mean_weights, square_weights: the weights of the average and of what is new, as in `RuleNumbers`.
        eps, momentum, nesterov: as in `RuleNumbers` and `RuleStep`.
    """

    name: str
    mean: str = ""
    square: str = ""
    other: str = ""
    mean_weights: tuple[float, float] = (0.0, 1.0)
    square_weights: tuple[float, float] = (0.0, 1.0)
    eps: float = 0.0
    momentum: float = 0.0
    nesterov: bool = False

    def numbers(self, limit: float) -> list[float] | None:
        """The list of `RuleNumbers`; None if one is a tensor, which the host must not read."""
        values = (*self.mean_weights, *self.square_weights, self.eps, self.momentum)
        if any(isinstance(value, Tensor) for value in values):
            return None
        return RuleNumbers(limit, *values).in_order()


class Following:
    """The rule's part of the steps of parameters of one shape, kept from step to step.

    Args:
        gradients: their gradients, dense, of all matrices.
    """

    def __init__(self, gradients: Sequence[DenseGradient]) -> None:
        self._gradients = gradients
        self._states = [gradient.state for gradient in gradients]
        self._counts = [state["step"] for state in self._states]
        self._on_host = self._counts[0].device.type == "cpu"
        # The host passes one count for all; that of each advances with those of the others.
        self._one_count = not self._on_host or len({int(count.item()) for count in self._counts}) == 1
        self.not_counted = [unread(state["missed"]) for state in self._states]

    def step_of(self, optimizer: OptimizerLike, groups: Sequence[dict[str, Any]]) -> RuleStep | None:
        """The step of the rule as the kernels take it; None if they cannot follow it.

        Args:
            optimizer: the optimizer, whose ``_kernel_rule`` gives the `KernelRule` of a group, or None.
            groups: the groups of the parameters.
        """
        first = self._gradients[0]
        if not self._one_count or not uses_triton(first.stored_weight):
            return None
        known, *others = map(optimizer._kernel_rule, groups)
        if known is None or any(other != known for other in others):
            return None
        numbers = known.numbers(largest(optimizer, groups[0], first.grad.dtype))
        if numbers is None:
            return None
        averages = {
            lists: [state[name] for state in self._states] if name else []
            for lists, name in (
                ("means", known.mean),
                ("squares", known.square),
                ("others", known.other),
            )
        }
        return RuleStep(
            gradients=[gradient.for_averages for gradient in self._gradients],
            **averages,
            missed=[state["missed"] for state in self._states],
            numbers=numbers,
            rule=known.name,
            nesterov=known.nesterov,
            steps=int(self._counts[0].item()) if self._on_host else 0,
            counted=[] if self._on_host else self._counts,
            pairs=first.parameter.pairs,
        )

    def directions(self, step: RuleStep) -> list[Tensor]:
        """Move the averages, and count which matrices have missed the step.

        Returns:
            The directions as the state holds matrices, which their gradients have been given too.
        """
        directions = follow_rule_(step).unbind()
        for gradient, direction in zip(self._gradients, directions, strict=True):
            gradient.direction = gradient.from_averages(direction)
        return [gradient.store(gradient.direction) for gradient in self._gradients]
