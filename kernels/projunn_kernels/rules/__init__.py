"""The rules of optimizers: averages of gradients, and the direction that a step takes, elementwise.

    momentum   B <- mu B + G
               D = B, or G + mu B with Nesterov
    rmsprop    V <- a V + (1 - a) |G|^2
               D = G / (sqrt(V) + eps)
               centered: V - |M|^2 in place of V, with M <- a M + (1 - a) G
               momentum: B <- mu B + D, and B is the direction
    adamw      M <- b1 M + (1 - b1) G,  V <- b2 V + (1 - b2) |G|^2
               D = M / (1 - b1^t) / (sqrt(V / (1 - b2^t)) + eps)
               amsgrad: the largest V so far in place of V
    lion       D = sgn(b1 M + (1 - b1) G)
               M <- b2 M + (1 - b2) G

The averages of a matrix move only if all of its gradient is finite, and so small that no square
overflows.  The direction of the others is NaN, so that their step is not taken, and counts as missed.  t
is the number of steps that the matrix has not missed, this one included.

On a GPU it takes two launches for all parameters of one shape: the first looks at the gradients, the
second moves the averages.  The second may also be the first pass of a step
(`projunn_kernels.followed_step_`): of one that has a launch for each pass, or of a single pass.
"""

from torch import Tensor

from projunn_kernels.operation import Operation
from projunn_kernels.rules import eager
from projunn_kernels.rules.arguments import RULES, RuleNumbers, RuleStep
from projunn_kernels.rules.tiles import RULE, RULE_PRODUCT

__all__ = ["RULES", "RuleNumbers", "RuleStep", "follow_rule_"]


def follow_rule_(step: RuleStep) -> Tensor:
    """Move the averages of a rule in place, and count the matrices that have missed the step.

    Returns:
        D, the directions of the parameters, (parameters, *batch, m, n) in the dtype of the gradients.
    """
    directions: Tensor = _follow_rule(step)
    return directions


def _fake(step: RuleStep) -> Tensor:
    first = step.gradients[0]
    return first.new_empty(len(step.gradients), *first.shape)


_follow_rule = Operation(
    name="follow_rule_",
    eager=eager.follow_rule,
    launches="projunn_kernels.rules.launch:follow_rule",
    fake=_fake,
    on="gradients",
    kernels=(RULE, RULE_PRODUCT),
    mutates=("means", "squares", "others", "missed"),
    bundle=RuleStep,
)
