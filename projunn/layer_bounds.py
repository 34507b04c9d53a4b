"""What is known of layers as functions: how far they stretch, and how they round.

Layers are recognised narrowly: by the ``forward`` that they run and by their options, and only if
nothing is hooked into them.  Others are refused by name.
"""

from collections.abc import Callable, Iterator
from functools import partial
from math import gcd, inf, log2, prod, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from projunn.models.cayley import CayleyConv2d
from projunn.models.lipschitz import Center
from projunn.nn import BlockUnitaryLinear, GroupSort, UnitaryLinear
from projunn.nn.convolution import UnitaryConvolution
from projunn.nn.convolution.local import LocalUnitaryConvolution, kernel_of


class Bound(NamedTuple):
    """What is known of a layer f, in 2-norms.

    ‖f(x) - f(x')‖ <= norm ‖x - x'‖
    ‖computed f(x) - f(x)‖ <= u (rounding ‖x‖ + constant + sqrt(pixels) each)

    Here u is the unit roundoff, and ``pixels`` the number of positions of the output: along all of its
    axes but the batch and that of the features.
    """

    norm: float
    rounding: float = 0.0
    constant: float = 0.0
    each: float = 0.0


def bounds_of(model: nn.Module, path: str = "") -> Iterator[tuple[nn.Module, Bound]]:
    """The layers of a chain and their bounds.

    Raises:
        TypeError: a layer has none; it is named by its path.
    """
    try:
        if isinstance(model, nn.Sequential):
            _check_runs(model, nn.Sequential)
        else:
            yield model, bound_of(model)
    except TypeError as error:
        where = f"layer {path}" if path else "layer"
        raise TypeError(f"{where}{str(error).removeprefix('layer')}; {_way_on()}") from None
    if isinstance(model, nn.Sequential):
        for name, layer in zip(model._modules, model, strict=True):
            yield from bounds_of(layer, f"{path}.{name}" if path else name)


def _way_on() -> str:
    known = ", ".join(kind.__name__ for kind in _BOUNDS)
    return f"known are {known}; else give certified_accuracy the model's constant, lipschitz="


def bound_of(layer: nn.Module) -> Bound:
    """What is known of a layer.

    Raises:
        TypeError: it is of a kind, or has options, with no known bound.
    """
    for kind, bound in _BOUNDS.items():
        if isinstance(layer, kind):
            _check_runs(layer, kind)
            return bound(layer)
    raise TypeError(f"layer: no bound is known for {type(layer).__name__}")


def _check_runs(module: nn.Module, kind: type[nn.Module]) -> None:
    """Make sure that calling ``module`` runs the ``forward`` of ``kind`` and nothing else."""
    name = type(module).__name__
    unchanged = type(module).__call__ is nn.Module.__call__
    for method in ("forward", "_conv_forward"):  # what ``forward`` of PyTorch's convolutions calls
        unchanged &= getattr(type(module), method, None) is getattr(kind, method, None)
        unchanged &= method not in vars(module)
    if not unchanged:
        raise TypeError(f"layer: no bound is known for {name}, which changes {kind.__name__}.forward")
    everywhere = nn.modules.module
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    if any(hooks) or everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        raise TypeError(f"layer: no bound is known for {name} with forward hooks")
    if module.training and parametrize.is_parametrized(module):
        raise TypeError(f"layer: no bound is known for {name} with a parametrization in training mode")


def described(layer: nn.Module) -> str:
    """A layer with its options, in a message."""
    return f"{type(layer).__name__}({layer.extra_repr()})"


def _unknown(layer: nn.Module, why: str) -> TypeError:
    return TypeError(f"layer: no bound is known for {described(layer)}{why}")


def _exact(layer: nn.Module) -> Bound:
    return Bound(1.0)


def _of_flatten(layer: nn.Flatten) -> Bound:
    if layer.start_dim == 0:
        raise _unknown(layer, ", which mixes the inputs of a batch")
    return Bound(1.0)


def _of_group_sort(layer: GroupSort) -> Bound:
    if layer.dim == 0:
        raise _unknown(layer, ", which sorts along the batch")
    return Bound(1.0)


def _of_dropout(layer: nn.Dropout) -> Bound:
    if layer.training and layer.p > 0:
        raise _unknown(layer, " in training mode")
    return Bound(1.0)


def _of_leaky_relu(layer: nn.LeakyReLU) -> Bound:
    slope = abs(layer.negative_slope)
    return Bound(max(1.0, slope), rounding=2 * slope)  # that of the slope, and that of the product


def _of_adaptive_average(layer: Any) -> Bound:
    """A mean of n numbers has norm 1 / sqrt(n), and rounds as about min(n, 6 sqrt(n)) times that."""
    size = layer.output_size
    if any(s not in (1, None) for s in (size if isinstance(size, tuple) else (size,))):
        raise _unknown(layer, ": it depends on the size of the input")
    return Bound(1.0, rounding=8.0)


def _of_max_pool(layer: Any, axes: int) -> Bound:
    """sqrt(c), where c windows hold the number that most of them hold.

    max x - max x' over a window is at most the largest |x_i - x'_i| in it, so that the squares add up to
    at most c ‖x - x'‖^2.  A single number that is larger than all others attains it.
    """
    if layer.return_indices:
        raise _unknown(layer, ", which returns indices too")
    most = 1
    for kernel, stride, dilation in _by_axis(axes, layer.kernel_size, layer.stride, layer.dilation):
        most *= -(-kernel * gcd(stride, dilation) // stride)
    return Bound(sqrt(most) * (1 + 1e-12))


def _of_average_pool(layer: Any, axes: int) -> Bound:
    """The product of the norms along the axes, since the divisor of a window is that of its lengths.

    A single divisor for all windows, ``divisor_override``, scales the means of whole windows.
    """
    divisor = getattr(layer, "divisor_override", None)
    norm, count = 1.0, 1
    for kernel, stride, padding in _by_axis(axes, layer.kernel_size, layer.stride, layer.padding):
        padded = divisor is not None or layer.count_include_pad or not padding
        if padded and (divisor is not None or not layer.ceil_mode):
            norm *= _norm_of_means(kernel, stride)
        else:
            norm *= _norm_of_unequal_means(kernel, stride, padding, layer.ceil_mode, padded)
        count *= kernel
    norm *= (1 if divisor is None else count / abs(divisor)) * (1 + 1e-9)
    return Bound(norm, _roundings(count, is_complex=False) * norm)


def _by_axis(axes: int, *options: int | tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The options of a pooling layer, axis by axis."""
    return zip(*(o if isinstance(o, tuple) else (o,) * axes for o in options), strict=True)


def _norm_of_means(kernel: int, stride: int) -> float:
    """The norm of A, the means over windows of k numbers, on an axis without ends.

        (A A^T)_pq = |window p and window q| / k^2 = (k - s |p - q|) / k^2 where that is positive

    A A^T has no negative entry and the same sum in each row, which is its norm.  On an axis with ends,
    and zeros beyond them, A is a part of this one, and its norm no larger.
    """
    shifts = range(-((kernel - 1) // stride), (kernel - 1) // stride + 1)
    return sqrt(sum(kernel - stride * abs(shift) for shift in shifts)) / kernel


def _norm_of_unequal_means(
    kernel: int, stride: int, padding: int, ceil_mode: bool, padded: bool
) -> float:
    """A bound of the norm of A where windows at the ends have other divisors, for axes of any length.

        ‖A‖^2 = ‖A A^T‖ <= the largest sum of a row of A A^T

    No window of an axis of 3k numbers or more overlaps others at both ends, and what happens at the far
    end repeats with the length after s.  So lengths up to 3k + s have all the rows that there are.

    Args:
        padded: whether the padding counts in the divisors.
    """
    largest = 0.0
    for length in range(1, 3 * kernel + stride + 1):
        beyond = length + padding - kernel  # of the start of the last whole window
        stop = min(length, beyond + stride) if ceil_mode else beyond + 1
        if stop <= -padding:
            continue
        starts = torch.arange(-padding, stop, stride, device="cpu")
        ends = (starts + kernel).clamp(max=length + padding)
        first, last = starts.clamp(min=0), ends.clamp(max=length)
        weights = 1 / (ends - starts if padded else last - first).double()
        edges = weights.new_zeros(length + 1)
        edges.index_add_(0, first, weights).index_add_(0, last, -weights)
        sums = torch.cat(
            [weights.new_zeros(1), edges.cumsum(0).cumsum(0)]
        )  # of columns of A before each
        rows = weights * (sums[last] - sums[first])
        largest = max(largest, float(rows.max()))
    return sqrt(largest)


def _of_pointwise(layer: nn.modules.conv._ConvNd) -> Bound:
    """A convolution whose filter is 1 x 1: a product with a matrix, at each position that is taken."""
    if set(layer.kernel_size) != {1}:
        raise _unknown(layer, ", whose filter is larger than 1")
    if layer.padding_mode != "zeros" and any(layer._reversed_padding_repeated_twice):
        raise _unknown(layer, ", which reads numbers several times")
    matrices = layer.weight.flatten(1).unflatten(0, (layer.groups, -1))
    norm, rounding, _, each = _of_product(matrices, _norm_of(layer.bias))
    return Bound(norm, _TRANSFORMED * rounding, each=_TRANSFORMED * each)


def _of_linear(layer: nn.Linear | UnitaryLinear) -> Bound:
    return _of_product(matrix_of(layer), _norm_of(layer.bias))


def _norm_of(bias: Tensor | None) -> float:
    return 0.0 if bias is None else float(torch.linalg.vector_norm(bias))


def matrix_of(layer: nn.Linear | UnitaryLinear) -> Tensor:
    """W of x W^T, real or complex."""
    return layer.matrix if isinstance(layer, UnitaryLinear) else layer.weight


def _of_center(layer: Center) -> Bound:
    return Bound(1.0, rounding=1.0, constant=float(torch.linalg.vector_norm(layer.mean)))


def _of_blocks(layer: BlockUnitaryLinear) -> Bound:
    norm, rounding = 1.0, 0.0
    for factor in layer._numbers(layer.weight):
        own = _of_product(factor, 0.0)
        rounding = own.norm * rounding + own.rounding * norm
        norm *= own.norm
    return Bound(norm, rounding + norm, each=_norm_of(layer.bias))


def _of_convolution(layer: UnitaryConvolution | CayleyConv2d) -> Bound:
    """The transforms and their inverses are unitary, once scaled, and round as products do."""
    matrices = layer.frequency_response()
    if isinstance(layer, UnitaryConvolution):
        matrices = matrices.unflatten(-2, (layer.groups, -1))
    product = _of_product(matrices, 0.0)
    pixels = prod(layer.output_size)
    transform = 16 * (1 + log2(pixels))  # each; with room for sizes that are not powers of two
    bias = sqrt(pixels) * _norm_of(layer.bias)
    return Bound(product.norm, product.rounding + 2 * transform * product.norm, bias * (2 + transform))


def _of_local_convolution(layer: LocalUnitaryConvolution) -> Bound:
    """The norm for images of every size, by the factors that the kernel is the product of.

    A factor P + (I - P) z with P = V V^H and |z| = 1 has norm max(1, |s^2| + |1 - s^2|), s the largest
    singular value of V.  The kernel as it is computed is off by taps D_q, and these add at most the sum
    of their norms.  Whether zeros or the other border are read beyond the border makes no difference.
    """
    weight, directions = (
        layer._numbers(p).to(torch.complex128 if layer.is_complex else torch.float64)
        for p in (layer.weight, layer.directions)
    )
    stretch = torch.linalg.matrix_norm(directions, 2).square()
    norm = float(torch.linalg.matrix_norm(weight, 2) * (stretch + (1 - stretch).abs()).clamp(1).prod())
    kernel, wanted = layer.kernel(), kernel_of(weight, directions, layer.kernel_size)
    off = (kernel.to(wanted.dtype) - wanted).flatten(2).movedim(2, 0)
    sizes = kernel.abs().double().flatten(2).movedim(2, 0)
    largest = torch.linalg.matrix_norm(sizes, 1) * torch.linalg.matrix_norm(sizes, inf)
    roundings = _TRANSFORMED * _roundings(len(sizes) * sizes.shape[-1], layer.is_complex)
    return Bound(
        norm * (1 + 1e-12) + float(torch.linalg.matrix_norm(off, 2).sum()),
        roundings * float(largest.sqrt().sum()),
        each=roundings * _norm_of(layer.bias),
    )


def _of_product(matrices: Tensor, bias: float) -> Bound:
    """A product with a matrix, or with one of many, and the addition of a bias of that norm."""
    precise = matrices.to(torch.complex128 if matrices.is_complex() else torch.float64)
    norm = float(torch.linalg.matrix_norm(precise, 2).max())
    sizes = precise.abs()  # the 2-norm of this is at most sqrt(1-norm x infinity-norm)
    largest = torch.linalg.matrix_norm(sizes, 1) * torch.linalg.matrix_norm(sizes, inf)
    roundings = _roundings(sizes.shape[-1], matrices.is_complex())
    rounding = roundings * sqrt(float(largest.max()))
    return Bound(norm * (1 + 1e-12), rounding, each=roundings * bias)


def _roundings(products: int, is_complex: bool) -> float:
    """Unit roundoffs of a sum of products and a bias."""
    terms = products * (2 if is_complex else 1) + 1
    return min(terms, 6 * sqrt(terms)) * (sqrt(2) if is_complex else 1)


_TRANSFORMED = 16.0  # with room for the transforms of libraries that save multiplications (Winograd's)

_BOUNDS: dict[type[nn.Module], Callable[[Any], Bound]] = {
    nn.Linear: _of_linear,
    UnitaryLinear: _of_linear,
    BlockUnitaryLinear: _of_blocks,
    UnitaryConvolution: _of_convolution,
    CayleyConv2d: _of_convolution,
    LocalUnitaryConvolution: _of_local_convolution,
    Center: _of_center,
    GroupSort: _of_group_sort,
    nn.ReLU: _exact,
    nn.LeakyReLU: _of_leaky_relu,
    nn.Tanh: lambda layer: Bound(1.0, rounding=4.0),
    nn.Identity: _exact,
    nn.Flatten: _of_flatten,
    nn.Dropout: _of_dropout,
    nn.PixelUnshuffle: _exact,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _of_pointwise),
    nn.AvgPool1d: partial(_of_average_pool, axes=1),
    nn.AvgPool2d: partial(_of_average_pool, axes=2),
    nn.AvgPool3d: partial(_of_average_pool, axes=3),
    nn.MaxPool1d: partial(_of_max_pool, axes=1),
    nn.MaxPool2d: partial(_of_max_pool, axes=2),
    nn.MaxPool3d: partial(_of_max_pool, axes=3),
    **dict.fromkeys(
        (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), _of_adaptive_average
    ),
}
