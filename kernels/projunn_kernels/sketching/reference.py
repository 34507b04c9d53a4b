"""The factors of a linear layer's gradient, with the gradient formed."""

import torch
from torch import Tensor


def sketch(inputs: Tensor, grads: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """The formula for one x and g, with G formed."""
    gradient = grads.mT @ inputs.conj()
    right = torch.linalg.qr(gradient.mH @ basis)[0]
    return gradient @ right, right
