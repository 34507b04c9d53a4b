"""Lipschitz bounds of chains of layers, and how far from an input a classifier's answer holds."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from projunn.models.cayley import CayleyConv2d
from projunn.nn import BlockUnitaryLinear, GroupSort, UnitaryLinear
from projunn.nn.conv import _UnitaryConv

_CONTRACTIONS = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.Tanh,
    nn.Identity,
    nn.Flatten,
    nn.Dropout,  # the identity in evaluation
    nn.PixelUnshuffle,
    nn.AdaptiveAvgPool2d,
    GroupSort,
)


@torch.no_grad()
def operator_norm(layer: nn.Module) -> float:
    """The largest factor by which a layer can stretch the 2-norm of a difference of inputs.

    For ``nn.Linear`` and the unitary layers it is the largest singular value of the weight and, for
    unitary and Cayley convolutions, of the matrices at all frequencies, computed in float64.  It is
    taken as 1 for ``nn.ReLU``, ``LeakyReLU``, ``Tanh``, ``Identity``, ``Flatten``, ``Dropout``,
    ``PixelUnshuffle``, ``AdaptiveAvgPool2d`` and `projunn.nn.GroupSort`.  That is right for dropout in
    evaluation mode, slopes from -1 to 1, and pooling to no more pixels than there were.

    Raises:
        TypeError: a kind of layer with no known bound, such as batch normalisation or a residual sum.
    """
    if isinstance(layer, (_UnitaryConv, CayleyConv2d)):
        matrices = layer.frequency_response()
    elif isinstance(layer, UnitaryLinear):
        matrices = layer.matrix
    elif isinstance(layer, BlockUnitaryLinear):
        weight = layer._numbers(layer.weight)
        per_factor = torch.linalg.matrix_norm(_precise(weight), 2).amax(-1)
        return float(per_factor.prod())
    elif isinstance(layer, nn.Linear):
        matrices = layer.weight
    elif isinstance(layer, _CONTRACTIONS):
        return 1.0
    else:
        raise TypeError(f"layer: no bound is known for {type(layer).__name__}")
    return float(torch.linalg.matrix_norm(_precise(matrices), 2).max())


def lipschitz_bound(model: nn.Module) -> float:
    """A Lipschitz constant of a chain of layers: the product of their measured norms.

    Args:
        model: an ``nn.Sequential``, nested or not, or a single layer, in evaluation mode.  The layers
            that can be bounded are those of `projunn.lipschitz.operator_norm`.

    Raises:
        TypeError: a layer with no known bound.
    """
    if isinstance(model, nn.Sequential):
        bound = 1.0
        for layer in model:
            bound *= lipschitz_bound(layer)
        return bound
    return operator_norm(model)


@torch.no_grad()
def certified_accuracy(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    radii: Sequence[float],
    lipschitz: float | None = None,
) -> list[float]:
    """The share of inputs with a right answer that no change of 2-norm up to a radius can make wrong.

        margin = (logit of the right class) - (largest other logit) > sqrt(2) L radius

    An answer holds within the radius if its margin is that large, because the difference of two logits
    of an L-Lipschitz model is sqrt(2) L-Lipschitz (Tsuzuku, Sato, Sugiyama, NeurIPS 2018).  L is
    measured on the weights as they are, so that rounding drift and layers that are not orthogonal count.

    Args:
        model: maps inputs to logits (batch, classes).  It is used in the mode that it is in: call
            ``eval()`` first.
        batches: pairs of inputs, on the model's device, and labels (batch,), int64.
        radii: the radii; 0 gives the plain accuracy.
        lipschitz: L; by default the `lipschitz_bound` of ``model``.

    Returns:
        One share, from 0 to 1, for each radius.

    Raises:
        ValueError: a radius below 0, or no input.
        TypeError: ``lipschitz`` is not given, and a layer has no known bound.
    """
    if any(r < 0 for r in radii):
        raise ValueError(f"radii: got {list(radii)}, wanted none below 0")
    constant = lipschitz_bound(model) if lipschitz is None else lipschitz
    margins = []
    for inputs, labels in batches:
        logits = model(inputs).double()
        right = logits.gather(1, labels[:, None])
        others = logits.scatter(1, labels[:, None], -torch.inf)
        margins.append(right.squeeze(1) - others.amax(1))
    if not margins or not sum(len(m) for m in margins):
        raise ValueError("batches: got no input, wanted at least one")
    margin = torch.cat(margins)
    return [float((margin > 2**0.5 * constant * r).double().mean()) for r in radii]


def _precise(matrices: Tensor) -> Tensor:
    return matrices.to(torch.complex128 if matrices.is_complex() else torch.float64)
