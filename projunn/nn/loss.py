"""Losses that ask a classifier for a margin."""

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional

from projunn.arguments import number, one_of, tensor

_LARGEST = 1e30


class OffsetCrossEntropyLoss(nn.Module):
    """Cross-entropy of logits whose right one is lowered, so that right answers must win by a margin.

        loss = -T (1 - p_y)^gamma log p_y        p = softmax((input - offset e_y) / T)

    The answers of a 1-Lipschitz network with orthonormal last rows hold within a distance d if their
    margin is above sqrt(2) d: an offset of sqrt(2) d asks for that.  With a small temperature T inputs
    that have the margin hardly count, so that the network, whose slopes are bounded, uses them for the
    other inputs.  Without ``annealing`` it is the loss of Prach and Lampert (ECCV 2022), whose offset
    and temperature are the defaults here.  Annealing weakens the pull on inputs that have most of the
    margin; with offset 2 sqrt(2), T = 0.75 and gamma = 5 it is the logit annealing loss of Lai, Huang,
    Kung and Chen (ICML 2025).

    Args:
        offset: what is taken from the logit of the right class, at least 0.
        temperature: T, above 0.
        annealing: gamma, at least 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, as in ``torch.nn.CrossEntropyLoss``.

    Shape:
        input (batch, classes, *), real; target (batch, *), int64, from 0 to classes - 1; output a
        scalar, or (batch, *) without reduction.

    Raises:
        ValueError: an option out of its range, or input and target that do not fit.
        TypeError: input or target is no tensor, or of another kind of numbers.
    """

    def __init__(
        self,
        offset: float = sqrt(2),
        temperature: float = 0.25,
        annealing: float = 0.0,
        *,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.offset = number("offset", offset, 0, _LARGEST)
        self.temperature = number("temperature", temperature, 1 / _LARGEST, _LARGEST)
        self.annealing = number("annealing", annealing, 0, _LARGEST)
        self.reduction = one_of("reduction", reduction, ("mean", "sum", "none"))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        _check(input, target)
        right = target.unsqueeze(1)
        offset = torch.full_like(right, -self.offset, dtype=input.dtype)
        try:
            lowered = input.scatter_add(1, right, offset)
        except RuntimeError as error:  # a CPU tells at once, a GPU when it is read
            classes = input.shape[1]
            raise ValueError(f"target: wanted classes from 0 to {classes - 1} ({error})") from error
        losses = functional.cross_entropy(lowered / self.temperature, target, reduction="none")
        if self.annealing:
            missing = (-torch.expm1(-losses)).clamp_min(torch.finfo(losses.dtype).tiny)
            losses = losses * missing**self.annealing
        losses = losses * self.temperature
        if self.reduction == "none":
            return losses
        return losses.mean() if self.reduction == "mean" else losses.sum()

    def extra_repr(self) -> str:
        text = f"offset={self.offset:.4g}, temperature={self.temperature:.4g}"
        return text + (f", annealing={self.annealing:.4g}" if self.annealing else "")


def _check(input: Tensor, target: Tensor) -> None:
    if not tensor("input", input).is_floating_point():
        raise TypeError(f"input: got {input.dtype}, wanted real floating-point numbers")
    if tensor("target", target).dtype != torch.int64:
        raise TypeError(f"target: got {target.dtype}, wanted torch.int64")
    if input.ndim < 2 or target.shape != (len(input), *input.shape[2:]):
        raise ValueError(
            f"target: got shape {tuple(target.shape)} for input of shape {tuple(input.shape)}, wanted"
            " (batch, *) for (batch, classes, *)"
        )
