"""The gradients of unitary parameters, dense, sparse or in factors, behind one interface.

    gradient.follow(optimizer)    the direction of the rule, whose averages move
    gradient.take()               the step along it, if the parameter steps alone

A dense gradient has as many numbers as the weight, a sparse one belongs to some matrices of a bank (both
in `dense`), and one in factors is low-rank and never formed (`factored`).  Parameters that are alike
step together (`projunn.optim.parts`).
"""

from projunn.factored import FactoredTensor
from projunn.optim.gradient.dense import DenseGradient, PlainGradients
from projunn.optim.gradient.factored import FactoredGradient
from projunn.optim.member import Member

__all__ = ["DenseGradient", "FactoredGradient", "Gradient", "PlainGradients", "gradient_of"]

Gradient = DenseGradient | FactoredGradient


def gradient_of(member: Member) -> Gradient:
    """The gradient of a parameter; one in factors if that belongs to a layer with ``sketch_rank``.

    Raises:
        TypeError: it is sparse in another way than over the matrices of a bank, or sparse though the
            parameter belongs to a layer with ``sketch_rank``, or in factors though it does not.
    """
    known: Gradient | None = member.gradient
    if known is not None and known.renew(member.grad):
        return known
    in_factors = isinstance(member.grad, FactoredTensor)
    sketch = getattr(member.parameter, "sketch", None)  # tracing puts tensors without marks there
    kind = FactoredGradient if in_factors or sketch is not None else DenseGradient
    found: Gradient = kind(member)
    member.gradient = found
    return found
