"""Convolutions with groups, dilations, any stride, and transposed, against PyTorch's plain ones."""

import torch

from projunn import nn as unn
from tests.fuzz.families.layers import compare

SHARE = 3


def case(draw):
    dtype, axes = draw.dtype(), draw.integer("axes", 1, 3)
    torch.manual_seed(draw.below(2**31))
    groups, pieces = draw.choice("groups", (1, 1, 2, 3)), draw.below(3)
    steps = tuple(draw.unnamed((1, 2, 3)) for _ in range(axes))
    dilated = draw.chance("dilation", 0.5)
    size = tuple(s * draw.integer(f"cells {i}", 1, (6, 3, 2)[axes - 1]) for i, s in enumerate(steps))
    name = "UnitaryConvTranspose" if draw.chance("transposed", 0.5) else "UnitaryConv"
    if not dilated and name == "UnitaryConv":
        size = tuple(max(1, s - draw.below(2)) for s in size)
    draw.said["size"], draw.said["steps"] = size, steps
    options = {"dilation": steps} if dilated else {"stride": steps}
    layer = getattr(unn, f"{name}{axes}d")(
        groups * draw.integer("in", 1, 3),
        groups * (1 + pieces),
        size,
        bias=draw.chance("bias", 0.7),
        groups=groups,
        dtype=dtype,
        sketch_rank=draw.choice("sketch_rank", (None, None, 1, 3, 20)),
        **options,
    )
    with torch.no_grad():
        if layer.bias is not None:
            layer.bias.add_(torch.randn(layer.bias.shape, generator=draw.generator), alpha=0.1)
    count = draw.choice("batch", (1, 2, 5))
    x = draw.randn(count, layer.in_channels, *size, dtype=dtype)
    x = x * draw.choice("scale", (1.0, 1.0, 1e-20, 1e10))
    compare(draw, layer.eval(), x.detach().requires_grad_(draw.chance("gradient of the input", 0.8)))
