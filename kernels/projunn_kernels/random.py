"""Random numbers that depend on a seed and on nothing else, so that replicas and resumed runs agree."""

from collections.abc import Sequence

import torch
from torch import Tensor

from projunn_kernels import private
from projunn_kernels.operation import Operation


def _draw(like: Tensor, shape: list[int], seed: int) -> Tensor:
    if private.is_fake(like):
        return like.new_empty(shape)
    source = torch.Generator(like.device).manual_seed(seed % 2**32)
    return torch.empty(shape, dtype=like.dtype, device=like.device).normal_(generator=source)


def _fake(like: Tensor, shape: list[int], seed: int) -> Tensor:
    return like.new_empty(shape)


_seeded_normal = Operation(name="seeded_normal", eager=_draw, fake=_fake, on="like", plain=_draw)


def seeded_normal(like: Tensor, shape: Sequence[int], seed: int) -> Tensor:
    """Standard normal numbers of a ``shape``, in the dtype and on the device of ``like``.

    The same ``seed``, which counts modulo 2^32, gives the same numbers on the same kind of device.
    """
    result: Tensor = _seeded_normal(like=like, shape=list(shape), seed=seed)
    return result
