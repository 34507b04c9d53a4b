"""Where the sketch of a gradient starts: a factored tensor, whose left factor is the basis."""

import torch
from torch import Tensor

from projunn.factored import FactoredTensor
from projunn_kernels import orthonormalize, seeded_normal


def following(sketch: FactoredTensor, parameter: Tensor) -> FactoredTensor:
    """A sketch on the device and in the dtype of its parameter; one without numbers starts anew."""
    device, dtype = parameter.device, parameter.dtype
    if (sketch.device, sketch.dtype) == (device, dtype):
        return sketch
    factors = sketch.stored_left, sketch.stored_right
    if not sketch.is_meta:
        left, right = (f.to(device, dtype) for f in factors)
        return sketch.with_factors(left, right)
    left, right = (torch.empty_like(f, device=device, dtype=dtype) for f in factors)
    new = sketch.with_factors(left, right)
    start(new)
    return new


@torch.no_grad()
def start(sketch: FactoredTensor) -> None:
    """Gives a sketch a random basis to start from, in place; one for each shape."""
    left = sketch.left
    left.copy_(orthonormalize(seeded_normal(left, left.shape, 0)))
    sketch.right.zero_()
