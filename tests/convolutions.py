"""Circular convolutions by PyTorch's plain ones, from the filter in space."""

from torch.nn import functional

_PLAIN = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def by_filter(layer, x):
    """What a unitary convolution is to compute of a batch, bias included; differentiable.

    A convolution sees the image repeated; a transposed one writes beyond the image, and what it writes
    there is added where it belongs.
    """
    taps, axes = layer.spatial_filter(), layer.axes
    x = x.to(taps.dtype)
    options = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
    if layer.transposed:
        y = _TRANSPOSED[axes](x, taps, **options)
        for axis, points in zip(range(2, 2 + axes), layer.output_size, strict=True):
            y = folded(y, axis, points)
    else:
        for axis, (points, r) in enumerate(zip(layer.spatial_size, layer.stride, strict=True), 2):
            x = functional.pad(x.movedim(axis, -1), (0, -points % r)).movedim(-1, axis)
            x = x.tile([2 if a == axis else 1 for a in range(x.ndim)])
        y = _PLAIN[axes](x, taps, **options)
        y = y[(..., *(slice(points) for points in layer.output_size))]
    if layer.bias is None:
        return y
    return y + layer._numbers(layer.bias).view(-1, *(1,) * axes)


def folded(y, axis, points):
    """The sum of the pieces of ``points`` along an axis."""
    y = y.movedim(axis, -1)
    y = functional.pad(y, (0, -y.shape[-1] % points)).unflatten(-1, (-1, points)).sum(-2)
    return y.movedim(-1, axis)
