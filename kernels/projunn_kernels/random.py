"""Random numbers that depend on a seed and nothing else: the same on resume and on every replica."""

from collections.abc import Sequence

import torch
from torch import Tensor

from projunn_kernels.backends import operator


def seeded_normal(like: Tensor, shape: Sequence[int], seed: int) -> Tensor:
    """Standard normal numbers of the dtype and on the device of ``like``."""
    draw = _operator if torch.compiler.is_compiling() else _draw
    return draw(like, list(shape), seed)


def _draw(like: Tensor, shape: list[int], seed: int) -> Tensor:
    if like.is_meta or isinstance(like, torch._subclasses.FakeTensor):
        return like.new_empty(shape)
    source = torch.Generator(like.device).manual_seed(seed % 2**32)
    return torch.empty(shape, dtype=like.dtype, device=like.device).normal_(generator=source)


@operator("projunn::seeded_normal", mutates_args=())
def _operator(like: Tensor, shape: list[int], seed: int) -> Tensor:
    return _draw(like, shape, seed)


@_operator.register_fake
def _(like, shape, seed):  # type: ignore[no-untyped-def]
    return like.new_empty(shape)
