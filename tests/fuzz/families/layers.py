"""Forward and backward of the layers against plain formulas in float64.

Layers of every kind, dtype and size, with inputs of any leading shape (empty ones too) and layout, and
gradients dense or sketched.  An example that is not finite changes the output of no other one.
"""

from copy import deepcopy

import torch

from projunn import FactoredTensor, UnitaryParameter
from projunn import nn as unn
from tests.dense import precise
from tests.fuzz.checks import check, eps, same
from tests.fuzz.formulas import FORMULAS

SHARE = 10
ERROR = 1000  # of outputs and gradients, in units of eps times the largest entry
KINDS = ("linear", "linear", "block", "conv1", "conv2", "conv3", "rnn", "rnn", "modrelu", "groupsort")


def case(draw):
    dtype = draw.dtype()
    torch.manual_seed(draw.below(2**31))
    layer, shape, leading = drawn_layer(draw, dtype)
    layer.eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            if not isinstance(parameter, UnitaryParameter):  # a bias, which may start at zero
                parameter.add_(torch.randn(parameter.shape, generator=draw.generator), alpha=0.1)
    of_reals = dtype.is_complex and draw.chance("real input", 0.2)
    x = draw.randn(*shape, dtype=dtype.to_real() if of_reals else dtype)
    x = x * draw.choice("size", (1.0, 1.0, 1e-20, 1e10))
    if draw.chance("transposed", 0.3) and x.ndim >= 2:
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    if isinstance(layer, unn.GroupSort):
        x = x.real if x.is_complex() else x
    x = x.detach().requires_grad_(draw.chance("gradient of the input", 0.8))
    compare(draw, layer, x)
    if leading and shape[0] > 1 and draw.chance("a bad example", 0.3):
        check_examples(draw, layer, x.detach())


def drawn_layer(draw, dtype):
    """A layer, the shape of an input, and whether examples lie along its first axis."""
    kind = draw.choice("layer", KINDS)
    sketch = draw.choice("sketch_rank", (None, None, 1, 3, 20))
    bias, n = draw.chance("bias", 0.7), draw.integer("n", 1, 9)
    lead = draw.choice("leading", ((), (1,), (5,), (0,), (2, 3)))
    count = draw.choice("batch", (0, 1, 2, 5))
    options = {"bias": bias, "dtype": dtype, "sketch_rank": sketch}
    if kind == "linear":
        return unn.UnitaryLinear(n, draw.integer("m", 1, 9), **options), (*lead, n), bool(lead)
    if kind == "block":
        b, f = draw.integer("blocks", 1, 4), draw.integer("factors", 1, 3)
        return unn.BlockUnitaryLinear(b, n, num_factors=f, **options), (*lead, b * n), bool(lead)
    if kind == "rnn":
        names = ("modrelu", "tanh", "identity") + (() if dtype.is_complex else ("relu",))
        name, first = draw.choice("nonlinearity", names), draw.chance("batch_first", 0.5)
        layers, steps = draw.integer("layers", 1, 2), draw.integer("T", 1, 7)
        layer = unn.UnitaryRNN(
            draw.integer("features", 1, 4), n, layers, name, batch_first=first, **options
        )
        shape = (count, steps) if first else (steps, count)
        return layer, (*shape, layer.input_size), first
    if kind == "modrelu":
        return unn.ModReLU(n, dtype=dtype.to_real()), (*lead, n), bool(lead)
    if kind == "groupsort":
        g = draw.integer("group", 1, 3)
        return unn.GroupSort(g, draw.choice("dim", (1, -1))), (max(1, count), g * n), True
    axes = int(kind[-1])
    stride = tuple(draw.unnamed((1, 1, 2)) for _ in range(axes))
    size = tuple(r * (1 + draw.below((12, 5, 3)[axes - 1])) for r in stride)
    draw.said["size"], draw.said["stride"] = size, stride
    layer = getattr(unn, f"UnitaryConv{axes}d")(draw.integer("in", 1, 4), n, size, stride, **options)
    batch = () if draw.chance("unbatched", 0.2) else (count,)
    return layer, (*batch, layer.in_channels, *size), bool(batch)


def compare(draw, layer, x):
    """Compare output and gradients with those of the formula."""
    exact = deepcopy(layer).to(torch.float64)
    for parameter in exact.parameters():
        parameter.grad = None
    wide = precise(x.detach()).requires_grad_(x.requires_grad)
    output = layer(x)
    output = output[0] if isinstance(output, tuple) else output
    expected, kink = FORMULAS[type(layer) if type(layer) in FORMULAS else unn.GroupSort](exact, wide)
    check(output.shape == expected.shape, f"the output has shape {tuple(output.shape)}")
    near(output, expected, eps(output), "the output")
    if not output.requires_grad or kink < 1e3 * eps(output) * max(1.0, largest(expected)):
        return
    weights = draw.randn(*output.shape, dtype=output.dtype)
    (output * weights.conj()).real.sum().backward()
    (expected * precise(weights).conj()).real.sum().backward()
    if x.requires_grad:
        near(x.grad, wide.grad, eps(output), "the input's gradient")
    own, precise_ones = dict(layer.named_parameters()), dict(exact.named_parameters())
    for name, parameter in own.items():
        check(parameter.grad is not None, f"{name} has no gradient")
        gradient = precise_ones[name].grad
        if isinstance(parameter.grad, FactoredTensor):
            gradient = torch.view_as_complex(gradient) if parameter.pairs else gradient
            compare_sketch(parameter.grad, gradient, eps(output), name)
        else:
            near(parameter.grad, gradient, eps(output), f"the gradient of {name}")


def compare_sketch(grad, exact, roundoff, name):
    """Check that X = G Y with Y orthonormal, or zero where G has no more directions."""
    x, y = precise(grad.left), precise(grad.right)
    near(x, exact @ y, roundoff, f"the left factor of {name}", largest(exact))
    gram = y.mH @ y
    gram = gram - torch.diag_embed((gram.diagonal(dim1=-2, dim2=-1).real > 0.5).to(gram.dtype))
    check(largest(gram) < 1e4 * roundoff, f"the right factor of {name} is not orthonormal")
    if y.shape[-1] == min(exact.shape[-2:]) == exact.shape[-1]:
        near(x @ y.mH, exact, 100 * roundoff, f"the sketch of full rank of {name}")


def near(found, expected, roundoff, what, scale=None):
    """Check a tensor against float64, relative to the largest entry."""
    check(found.isfinite().all(), f"{what} is not finite")
    scale = max(largest(expected), 1e-30) if scale is None else max(scale, 1e-30)
    error = largest(precise(found) - expected) / scale
    check(error <= ERROR * roundoff, f"{what} is off by {error:.2g} of its largest entry")


def largest(tensor):
    return tensor.detach().abs().max().item() if tensor.numel() else 0.0


def check_examples(draw, layer, x):
    """Check that an example that is not finite leaves the others as they are."""
    spoiled, at = x.clone(memory_format=torch.contiguous_format), draw.below(len(x))
    spoiled[at].view(-1)[draw.below(spoiled[at].numel())] = draw.unnamed((float("nan"), float("inf")))
    before, after = layer(x), layer(spoiled)
    if isinstance(before, tuple):
        before, after = before[0], after[0]
    others = torch.arange(len(x)) != at
    near(after[others].detach(), precise(before[others].detach()), eps(before), "another example")
    check(same(x[others], spoiled[others]), "the input changed")
