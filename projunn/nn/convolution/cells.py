"""Pixels as channels, and as images: how strides and dilations become plain convolutions.

A stride cuts an image into cells of that size, and (i, j, k) is a position in the cell at (z, y, x).  A
dilation takes apart the images whose pixels lie as far from each other, and (i, j, k) says which: a
dilated filter sees one of them at a time.  Neither changes a number, so that norms stay.
"""

from collections.abc import Sequence
from math import prod

import torch
from einops import rearrange
from torch import Tensor, nn

_POSITIONS_TO_CHANNELS = {
    1: ("batch c (x i) ...", "batch (c i) x ..."),
    2: ("batch c (y i) (x j) ...", "batch (c i j) y x ..."),
    3: ("batch c (z i) (y j) (x k) ...", "batch (c i j k) z y x ..."),
}
_POSITIONS_TO_BATCH = {
    1: ("batch c (x i) ...", "(batch i) c x ..."),
    2: ("batch c (y i) (x j) ...", "(batch i j) c y x ..."),
    3: ("batch c (z i) (y j) (x k) ...", "(batch i j k) c z y x ..."),
}
_TAPS_TO_FILTER = {
    1: "x out (c i) -> out c (x i)",
    2: "y x out (c i j) -> out c (y i) (x j)",
    3: "z y x out (c i j k) -> out c (z i) (y j) (x k)",
}


def _positions(sizes: tuple[int, ...]) -> dict[str, int]:
    return dict(zip("ijk", sizes, strict=False))


def cells_to_channels(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Space to depth: (batch, c, *size, ...) to (batch, c prod(stride), *size / stride, ...)."""
    if prod(stride) == 1:
        return x
    apart, together = _POSITIONS_TO_CHANNELS[len(stride)]
    return rearrange(x, f"{apart} -> {together}", **_positions(stride))


def channels_to_cells(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """The inverse of `cells_to_channels`."""
    if prod(stride) == 1:
        return x
    apart, together = _POSITIONS_TO_CHANNELS[len(stride)]
    return rearrange(x, f"{together} -> {apart}", **_positions(stride))


def images_apart(x: Tensor, dilation: tuple[int, ...]) -> Tensor:
    """(batch, c, *size, ...) to (batch prod(dilation), c, *size / dilation, ...)."""
    if prod(dilation) == 1:
        return x
    apart, together = _POSITIONS_TO_BATCH[len(dilation)]
    return rearrange(x, f"{apart} -> {together}", **_positions(dilation))


def images_together(x: Tensor, dilation: tuple[int, ...]) -> Tensor:
    """The inverse of `images_apart`."""
    if prod(dilation) == 1:
        return x
    apart, together = _POSITIONS_TO_BATCH[len(dilation)]
    return rearrange(x, f"{together} -> {apart}", **_positions(dilation))


def filter_of_taps(taps: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Taps (*cells, out, in prod(stride)) of cells as those of pixels, (out, in, *cells stride)."""
    return rearrange(taps, _TAPS_TO_FILTER[len(stride)], **_positions(stride))


def filled_up(x: Tensor, missing: tuple[int, ...]) -> Tensor:
    """x (batch, c, *size, ...), with so many zeros at the far end of every axis."""
    after = x.ndim - 2 - len(missing)  # real and imaginary parts
    widths = [0, 0] * after + [w for m in reversed(missing) for w in (0, m)]
    return nn.functional.pad(x, widths)


def wrapped_around(x: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """x (batch, c, *size) as periodic, with so many more entries at both ends of every axis.

    It is `torch.nn.functional.pad` with "circular", which copies into memory that it has not written
    yet: `torch.func.linearize` makes constants of that, and its tangents are wrong.
    """
    for axis, (ahead, behind) in enumerate(zip(before, after, strict=True), 2):
        if ahead or behind:
            size = x.shape[axis]
            parts = (x.narrow(axis, size - ahead, ahead), x, x.narrow(axis, 0, behind))
            x = torch.cat(parts, axis)
    return x
