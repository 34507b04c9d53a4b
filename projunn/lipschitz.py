"""Lipschitz bounds of chains of layers, and how far from an input a classifier's answer holds.

Both are claims that an attacker may test, so layers are recognised narrowly: by the ``forward`` that
they run and by their options, and only if nothing is hooked into them.  Others are refused by name.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf, log2, prod, sqrt
from sys import float_info
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from projunn.arguments import number, tensor
from projunn.models.cayley import CayleyConv2d
from projunn.models.lipschitz import Center
from projunn.nn import BlockUnitaryLinear, GroupSort, UnitaryLinear
from projunn.nn.convolution import UnitaryConvolution
from projunn.nn.convolution.local import LocalUnitaryConvolution, kernel_of
from projunn_kernels.precision import setting_of


class _Bound(NamedTuple):
    """What is known of a layer f, in 2-norms.

    ‖f(x) - f(x')‖ <= norm ‖x - x'‖
    ‖computed f(x) - f(x)‖ <= u (rounding ‖x‖ + constant + sqrt(pixels) each)

    Here u is the unit roundoff, and ``pixels`` the number of positions of the output.
    """

    norm: float
    rounding: float = 0.0
    constant: float = 0.0
    each: float = 0.0


@torch.no_grad()
def operator_norm(layer: nn.Module) -> float:
    """The largest factor by which a layer can stretch the 2-norm of a difference of inputs.

    For ``nn.Linear`` and the unitary layers it is the largest singular value of the weight and, for
    unitary and Cayley convolutions, of the matrices at all frequencies, computed in float64; for
    `projunn.nn.LocalUnitaryConv2d` a bound of these at all frequencies of images of any size.  It is
    taken as 1 for ``nn.ReLU``, ``Tanh``, ``Identity``, ``Flatten``, ``PixelUnshuffle``, `GroupSort` and
    `projunn.models.Center`, for ``Dropout`` in evaluation mode and ``AdaptiveAvgPool2d`` to one pixel;
    and as the larger of 1 and the size of its slope for ``LeakyReLU``.

    Raises:
        TypeError: a layer with no known bound: another kind, such as batch normalisation or a residual
            sum; a class with a ``forward`` of its own; one with forward hooks; one that mixes the inputs
            of a batch; dropout or a parametrization in training mode; pooling to more than one pixel,
            whose norm depends on the size of the input.
    """
    return _bound(layer).norm


@torch.no_grad()
def lipschitz_bound(model: nn.Module) -> float:
    """A Lipschitz constant of a chain of layers: the product of their measured norms.

    Args:
        model: an ``nn.Sequential``, nested or not, or a single layer, in evaluation mode.  The layers
            that can be bounded are those of `projunn.lipschitz.operator_norm`.

    Raises:
        TypeError: a layer with no known bound.
    """
    return prod(bound.norm for _, bound in _bounds(model))


@torch.no_grad()
def certified_accuracy(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    radii: float | Sequence[float],
    lipschitz: float | None = None,
) -> list[float]:
    """The share of inputs with a right answer that no change of 2-norm up to a radius can make wrong.

        y_r - y_j > L_rj radius + 2 sqrt(2) error        for the right class r and every other class j

    Here L_rj is a Lipschitz constant of the difference of two logits.  Where the last layer is linear
    with rows w_j, behind layers of norm L, it is L ‖w_r - w_j‖ (Singla, Singla, Feizi, ICLR 2022, which
    normalise these rows); else it is sqrt(2) times the model's (Tsuzuku, Sato, Sugiyama, NeurIPS 2018).
    All norms are measured on the weights as they are, so that rounding drift and layers that are not
    orthogonal count.

    ``error`` bounds the rounding of the logits, here and at every input within the radius.  It is found
    layer by layer from the norms of the weights and activations, for sums of n products as min(n, 6
    sqrt(n)) unit roundoffs: rounding errors of a long sum are taken as independent (Higham, Mary, SIAM
    J. Sci. Comput. 41, 2019).

    Args:
        model: maps inputs to logits (batch, classes), in evaluation mode.
        batches: pairs of inputs (batch, *), on the model's device, and labels (batch,), int64.
        radii: the radii, or a single one; 0 gives the plain accuracy.
        lipschitz: a constant of the whole model, where its layers are not known; then ``error`` is 0,
            and the certificate is one of exact arithmetic.  By default the layers are measured.

    Returns:
        One share, from 0 to 1, for each radius.

    Raises:
        ValueError: a radius or a constant that is negative or not finite, labels of another shape or
            dtype, or no input.
        TypeError: ``lipschitz`` is not given, and a layer has no known bound; or ``batches`` is not of
            pairs.
    """
    given = radii if isinstance(radii, Iterable) else [radii]
    radii = [number("radii", radius, 0, float_info.max) for radius in given]
    lipschitz = None if lipschitz is None else number("lipschitz", lipschitz, 0, float_info.max)
    layers = list(_bounds(model)) if lipschitz is None else []
    distances = torch.tensor(list(radii), dtype=torch.float64, device="cpu")
    slopes = (
        distances.new_full((1, 1), sqrt(2) * lipschitz) if lipschitz is not None else _slopes(layers)
    )
    held = []
    for inputs, labels in map(_checked, batches):
        if lipschitz is None:
            logits, error = _logits(layers, inputs, distances)
        else:
            logits, error = model(inputs).double(), distances.new_zeros(len(inputs), len(radii))
        classes = logits.shape[1]
        margins = logits.gather(1, labels[:, None]) - logits
        margins = margins.scatter(1, labels[:, None], inf).cpu()
        slope = slopes.expand(classes, classes)[labels.cpu()]
        needed = slope[:, None] * distances[:, None] + 2 * sqrt(2) * error[..., None]
        enough = margins[:, None] > torch.where(distances[:, None] > 0, needed, 0.0)
        held.append(enough.all(2))  # (batch, radii)
    if not sum(len(h) for h in held):
        raise ValueError("batches: got no input, wanted at least one")
    return [float(share) for share in torch.cat(held).double().mean(0)]


def _checked(batch: Any) -> tuple[Tensor, Tensor]:
    """A batch, checked to be inputs and a class for each."""
    if isinstance(batch, Tensor) or not isinstance(batch, Sequence) or len(batch) != 2:
        raise TypeError(f"batches: got one of {type(batch).__name__}, wanted pairs (inputs, labels)")
    inputs, labels = (tensor("batches", each) for each in batch)
    if labels.dtype is not torch.int64 or labels.shape != inputs.shape[:1]:
        raise ValueError(
            f"batches: got labels of shape {tuple(labels.shape)} and {labels.dtype}, wanted one class"
            f" for each input, ({len(inputs)},) and torch.int64"
        )
    return inputs, labels


def _slopes(layers: Sequence[tuple[nn.Module, _Bound]]) -> Tensor:
    """Lipschitz constants of the differences of two logits: (classes, classes), or (1, 1) for all."""
    norms = [bound.norm for _, bound in layers]
    last = layers[-1][0] if layers else None
    if not isinstance(last, nn.Linear | UnitaryLinear):
        return torch.full((1, 1), sqrt(2) * prod(norms), dtype=torch.float64, device="cpu")
    rows = _matrix(last).cpu()
    rows = (torch.view_as_real(rows).flatten(1) if rows.is_complex() else rows).double()
    # Not by products of rows, which cancel where two rows are nearly equal.
    apart = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    return apart * (prod(norms[:-1]) * (1 + 1e-12 + rows.shape[1] * float_info.epsilon))


def _logits(
    layers: Sequence[tuple[nn.Module, _Bound]], inputs: Tensor, radii: Tensor
) -> tuple[Tensor, Tensor]:
    """The logits (batch, classes), and bounds of their rounding within each radius (batch, radii)."""
    x, stretch = inputs, 1.0
    error = radii.new_zeros(len(inputs), len(radii))
    for layer, bound in layers:
        if (
            isinstance(layer, UnitaryConvolution | LocalUnitaryConvolution | CayleyConv2d)
            and x.ndim != getattr(layer, "axes", 2) + 2
        ):
            raise TypeError(f"model: {type(layer).__name__} gets {x.ndim} axes, not those of a batch")
        if isinstance(layer, GroupSort) and layer.dim % x.ndim == 0:
            raise TypeError(f"model: {_name(layer)} sorts along the batch")
        size = torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=torch.float64).cpu()
        x = layer(x)
        if len(x) != len(inputs):
            raise TypeError(f"model: {_name(layer)} mixes the inputs of a batch")
        largest = size[:, None] + stretch * radii + error
        constant = bound.constant + sqrt(prod(x.shape[2:])) * bound.each
        rounded = _unit_roundoff(x, layer) * (bound.rounding * largest + constant)
        error = bound.norm * error + rounded
        stretch *= bound.norm
    return x.double(), error


def _unit_roundoff(computed: Tensor, layer: nn.Module) -> float:
    """u of the arithmetic that computed a tensor, of products in a lower precision too."""
    kind = computed.device.type
    if torch.is_autocast_enabled(kind):
        return torch.finfo(torch.get_autocast_dtype(kind)).eps / 2
    own: float = torch.finfo(computed.dtype).eps / 2
    if computed.dtype not in (torch.float32, torch.complex64):
        return own
    if isinstance(layer, LocalUnitaryConvolution):
        library = torch.backends.cudnn if computed.is_cuda else torch.backends.mkldnn
        return {"tf32": 2.0**-11, "bf16": 2.0**-9}.get(library.conv.fp32_precision, own)
    return {"tf32": 2.0**-11, "bf16": 2.0**-9}.get(setting_of(kind), own)


def _bounds(model: nn.Module, path: str = "") -> Iterator[tuple[nn.Module, _Bound]]:
    """The layers of a chain and their bounds; what has no bound is refused by its path."""
    try:
        if isinstance(model, nn.Sequential):
            _check_runs(model, nn.Sequential)
        else:
            yield model, _bound(model)
    except TypeError as error:
        where = f"layer {path}" if path else "layer"
        raise TypeError(f"{where}{str(error).removeprefix('layer')}; {_way_on()}") from None
    if isinstance(model, nn.Sequential):
        for name, layer in zip(model._modules, model, strict=True):
            yield from _bounds(layer, f"{path}.{name}" if path else name)


def _way_on() -> str:
    known = ", ".join(kind.__name__ for kind in _BOUNDS)
    return f"known are {known}; else give certified_accuracy the model's constant, lipschitz="


def _bound(layer: nn.Module) -> _Bound:
    for kind, bound in _BOUNDS.items():
        if isinstance(layer, kind):
            _check_runs(layer, kind)
            return bound(layer)
    raise TypeError(f"layer: no bound is known for {type(layer).__name__}")


def _check_runs(module: nn.Module, kind: type[nn.Module]) -> None:
    """Make sure that calling ``module`` runs the ``forward`` of ``kind`` and nothing else."""
    name = type(module).__name__
    unchanged = type(module).forward is kind.forward and type(module).__call__ is nn.Module.__call__
    if not unchanged or "forward" in vars(module):
        raise TypeError(f"layer: no bound is known for {name}, which changes {kind.__name__}.forward")
    everywhere = nn.modules.module
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    if any(hooks) or everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        raise TypeError(f"layer: no bound is known for {name} with forward hooks")
    if module.training and parametrize.is_parametrized(module):
        raise TypeError(f"layer: no bound is known for {name} with a parametrization in training mode")


def _name(layer: nn.Module) -> str:
    return f"{type(layer).__name__}({layer.extra_repr()})"


def _unknown(layer: nn.Module, why: str) -> TypeError:
    return TypeError(f"layer: no bound is known for {_name(layer)}{why}")


def _exact(layer: nn.Module) -> _Bound:
    return _Bound(1.0)


def _of_flatten(layer: nn.Flatten) -> _Bound:
    if layer.start_dim == 0:
        raise _unknown(layer, ", which mixes the inputs of a batch")
    return _Bound(1.0)


def _of_group_sort(layer: GroupSort) -> _Bound:
    if layer.dim == 0:
        raise _unknown(layer, ", which sorts along the batch")
    return _Bound(1.0)


def _of_dropout(layer: nn.Dropout) -> _Bound:
    if layer.training and layer.p > 0:
        raise _unknown(layer, " in training mode")
    return _Bound(1.0)


def _of_leaky_relu(layer: nn.LeakyReLU) -> _Bound:
    slope = abs(layer.negative_slope)
    return _Bound(max(1.0, slope), rounding=slope)


def _of_average(layer: nn.AdaptiveAvgPool2d) -> _Bound:
    size = layer.output_size
    if any(s not in (1, None) for s in (size if isinstance(size, tuple) else (size,))):
        raise _unknown(layer, ": it depends on the size of the input")
    return _Bound(1.0, rounding=_LONGEST_MEAN)


def _of_linear(layer: nn.Linear | UnitaryLinear) -> _Bound:
    bias = layer.bias
    return _of_product(_matrix(layer), 0.0 if bias is None else float(torch.linalg.vector_norm(bias)))


def _matrix(layer: nn.Linear | UnitaryLinear) -> Tensor:
    return layer.matrix if isinstance(layer, UnitaryLinear) else layer.weight


def _of_center(layer: Center) -> _Bound:
    return _Bound(1.0, rounding=1.0, constant=float(torch.linalg.vector_norm(layer.mean)))


def _of_blocks(layer: BlockUnitaryLinear) -> _Bound:
    norm, rounding = 1.0, 0.0
    for factor in layer._numbers(layer.weight):
        own = _of_product(factor, 0.0)
        rounding = own.norm * rounding + own.rounding * norm
        norm *= own.norm
    bias = 0.0 if layer.bias is None else float(torch.linalg.vector_norm(layer.bias))
    return _Bound(norm, rounding + norm, bias)


def _of_convolution(layer: UnitaryConvolution | CayleyConv2d) -> _Bound:
    """The transforms and their inverses are unitary, once scaled, and round as products do."""
    matrices = layer.frequency_response()
    if isinstance(layer, UnitaryConvolution):
        matrices = matrices.unflatten(-2, (layer.groups, -1))
    product = _of_product(matrices, 0.0)
    pixels = prod(layer.output_size)
    transform = 16 * (1 + log2(pixels))  # each; with room for sizes that are not powers of two
    bias = 0.0 if layer.bias is None else sqrt(pixels) * float(torch.linalg.vector_norm(layer.bias))
    return _Bound(product.norm, product.rounding + 2 * transform * product.norm, bias * (2 + transform))


def _of_local_convolution(layer: LocalUnitaryConvolution) -> _Bound:
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
    bias = 0.0 if layer.bias is None else float(torch.linalg.vector_norm(layer.bias))
    return _Bound(
        norm * (1 + 1e-12) + float(torch.linalg.matrix_norm(off, 2).sum()),
        roundings * float(largest.sqrt().sum()),
        each=roundings * bias,
    )


def _of_product(matrices: Tensor, bias: float) -> _Bound:
    """A product with a matrix, or with one of many, and the addition of a bias of that norm."""
    precise = matrices.to(torch.complex128 if matrices.is_complex() else torch.float64)
    norm = float(torch.linalg.matrix_norm(precise, 2).max())
    sizes = precise.abs()  # the 2-norm of this is at most sqrt(1-norm x infinity-norm)
    largest = torch.linalg.matrix_norm(sizes, 1) * torch.linalg.matrix_norm(sizes, inf)
    roundings = _roundings(sizes.shape[-1], matrices.is_complex())
    return _Bound(norm * (1 + 1e-12), roundings * sqrt(float(largest.max())), roundings * bias)


def _roundings(products: int, is_complex: bool) -> float:
    """Unit roundoffs of a sum of products and a bias."""
    terms = products * (2 if is_complex else 1) + 1
    return min(terms, 6 * sqrt(terms)) * (sqrt(2) if is_complex else 1)


_LONGEST_MEAN = 6.0 * 2**10  # roundings, of a mean of a million pixels
_TRANSFORMED = 16.0  # with room for the transforms of libraries that save multiplications (Winograd's)

_BOUNDS: dict[type[nn.Module], Callable[[Any], _Bound]] = {
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
    nn.Tanh: lambda layer: _Bound(1.0, rounding=4.0),
    nn.Identity: _exact,
    nn.Flatten: _of_flatten,
    nn.Dropout: _of_dropout,
    nn.PixelUnshuffle: _exact,
    nn.AdaptiveAvgPool2d: _of_average,
}
