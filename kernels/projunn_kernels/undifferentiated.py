"""Values that no derivative goes through, and that say so where a derivative would silently be zero."""

import torch
from torch import Tensor

from projunn_kernels import private
from projunn_kernels.operation import Operation


def _clone(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _fake(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


_constant = Operation(name="constant", eager=_clone, fake=_fake, on="tensor")
private.batch(_constant.registered, _clone)


def constant(tensor: Tensor, caller: str) -> Tensor:
    """``tensor.detach()``, but an error where a transform of ``torch.func`` differentiates.

    Autograd then finds no gradient, and says so.  Transforms and forward mode would take the derivative
    for zero.

    Raises:
        NotImplementedError: a derivative of ``tensor`` is wanted; the message begins with ``caller``.
    """
    if not private.in_transform():
        return tensor.detach()
    try:
        return _constant(tensor=tensor).detach()
    except NotImplementedError as error:
        raise NotImplementedError(
            f"{caller} has no derivative: detach its argument, or write its formula in PyTorch"
        ) from error
