"""A circular convolution as modules of ``torch.nn``: circular padding and one plain convolution."""

from typing import Any

import torch
from torch import Tensor, nn

Sizes = tuple[int, ...]

_ZEROS: dict[int, Any] = {1: nn.ConstantPad1d, 2: nn.ConstantPad2d, 3: nn.ConstantPad3d}
_CIRCULAR: dict[int, Any] = {1: nn.CircularPad1d, 2: nn.CircularPad2d, 3: nn.CircularPad3d}
_CONVOLUTION: dict[bool, dict[int, Any]] = {
    False: {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d},
    True: {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d},
}


@torch.no_grad()
def plain_convolution(
    weight: Tensor,
    bias: Tensor | None,
    *,
    transposed: bool,
    stride: Sizes,
    dilation: Sizes,
    groups: int,
    missing: Sizes,
) -> nn.Sequential:
    """The modules of a circular convolution whose filter is as large as the image.

    A filter of k taps looks d (k - 1) pixels ahead, and the last cell has all but r of those beyond the
    image.  Transposed, an output gets something from as many pixels before it, and what the first pixels
    of the padded image write outside is cut away again.

    Args:
        weight: K, as ``nn.Conv2d`` or ``nn.ConvTranspose2d`` have it.
        bias: (out_channels), or None.
        transposed, stride, dilation, groups: as of those.
        missing: zeros to fill up the image with, at the far end of each axis.
    """
    taps, axes = tuple(weight.shape[2:]), weight.ndim - 2
    ahead = [d * (k - 1) for d, k in zip(dilation, taps, strict=True)]
    modules: list[nn.Module] = []
    cut: Sizes = (0,) * axes
    if transposed:
        before = [a // r for a, r in zip(ahead, stride, strict=True)]
        circular = [(b, 0) for b in before]
        cut = tuple(b * r for b, r in zip(before, stride, strict=True))
    else:
        circular = [(0, a + 1 - r) for a, r in zip(ahead, stride, strict=True)]
        if any(missing):
            modules.append(_ZEROS[axes](_last_axis_first([(0, m) for m in missing]), 0.0))
    if any(map(any, circular)):
        modules.append(_CIRCULAR[axes](_last_axis_first(circular)))
    channels = weight.shape[0], weight.shape[1] * groups
    plain = _CONVOLUTION[transposed][axes](
        *(channels if transposed else reversed(channels)),
        taps,
        stride=stride,
        padding=cut,
        dilation=dilation,
        groups=groups,
        bias=bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    plain.weight.copy_(weight)
    if bias is not None:
        plain.bias.copy_(bias)
    return nn.Sequential(*modules, plain)


@torch.no_grad()
def plain_local_convolution(
    kernel: Tensor, bias: Tensor | None, *, stride: Sizes, padding_mode: str
) -> nn.Sequential:
    """The modules of a convolution with a small kernel of cells of ``stride`` pixels.

    Raises:
        ValueError: ``torch.nn`` has no module that makes channels of such cells.
    """
    axes, taps = kernel.ndim - 2, tuple(kernel.shape[2:])
    modules: list[nn.Module] = []
    if set(stride) != {1}:
        if axes != 2 or len(set(stride)) > 1:
            raise ValueError(f"stride: got {stride}, wanted 1, or for images one for both axes")
        modules.append(nn.PixelUnshuffle(stride[0]))
    around = _last_axis_first([((k - 1) // 2, k // 2) for k in taps])
    if any(around):
        pad = _CIRCULAR[axes](around) if padding_mode == "circular" else _ZEROS[axes](around, 0.0)
        modules.append(pad)
    kind = {"device": kernel.device, "dtype": kernel.dtype}
    plain = _CONVOLUTION[False][axes](
        kernel.shape[1], kernel.shape[0], taps, bias=bias is not None, **kind
    )
    plain.weight.copy_(kernel)
    if bias is not None:
        plain.bias.copy_(bias)
    return nn.Sequential(*modules, plain)


def _last_axis_first(widths: list[tuple[int, int]]) -> Sizes:
    return tuple(w for pair in reversed(widths) for w in pair)
