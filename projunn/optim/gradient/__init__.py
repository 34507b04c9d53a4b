"""The gradients of unitary parameters, dense, sparse or in factors, behind one interface.

    gradient.follow(rule)    the direction of the rule, whose averages move
    take_steps(gradients)    the steps along their directions

A dense gradient has as many numbers as the weight, a sparse one belongs to some matrices of a bank (both
in `dense`), and one in factors is low-rank and never formed (`factored`).
"""

from collections.abc import Iterable
from typing import Any

from projunn.factored import FactoredTensor
from projunn.optim.gradient.dense import DenseGradient, options_in_common, take_together
from projunn.optim.gradient.factored import FactoredGradient
from projunn.optim.member import Member

__all__ = ["DenseGradient", "FactoredGradient", "Gradient", "gradient_of", "take_steps"]

Gradient = DenseGradient | FactoredGradient


def gradient_of(member: Member) -> Gradient:
    """The gradient of a parameter; one in factors if that belongs to a layer with ``sketch_rank``.

    Raises:
        TypeError: it is sparse in another way than over the matrices of a bank, or sparse though the
            parameter belongs to a layer with ``sketch_rank``, or in factors though it does not.
    """
    known = member.gradient
    in_factors = isinstance(member.grad, FactoredTensor)
    if isinstance(known, DenseGradient) and not in_factors and known.renew(member.grad):
        return known
    sketch = getattr(member.parameter, "sketch", None)  # tracing puts tensors without marks there
    kind = FactoredGradient if in_factors or sketch is not None else DenseGradient
    found: Gradient = kind(member)
    member.gradient = found
    return found


def take_steps(gradients: Iterable[Gradient]) -> None:
    """Take the steps along the directions: parameters that are alike step together."""
    together: dict[tuple[Any, ...], list[DenseGradient]] = {}
    options: dict[int, tuple[Any, ...] | None] = {}
    for gradient in gradients:
        group = gradient.group
        if id(group) not in options:
            options[id(group)] = options_in_common(group)
        likeness = gradient.likeness(options[id(group)])
        if isinstance(gradient, DenseGradient) and likeness is not None:
            together.setdefault(likeness, []).append(gradient)
        else:
            gradient.take()
    for alike in together.values():
        take_together(alike)
