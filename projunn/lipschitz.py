"""Lipschitz bounds of chains of layers, and how far from an input a classifier's answer holds.

Both are claims that an attacker may test, so only layers with a proven bound are taken
(`projunn.layer_bounds`).
"""

from collections.abc import Iterable, Sequence
from math import inf, prod, sqrt
from sys import float_info
from typing import Any

import torch
from torch import Tensor, nn

from projunn.arguments import number, tensor
from projunn.layer_bounds import Bound, bound_of, bounds_of, described, matrix_of
from projunn.models.cayley import CayleyConv2d
from projunn.nn import BlockUnitaryLinear, GroupSort, UnitaryLinear
from projunn.nn.convolution import UnitaryConvolution
from projunn.nn.convolution.local import LocalUnitaryConvolution
from projunn_kernels.precision import setting_of

_PRODUCTS = nn.Linear, UnitaryLinear, BlockUnitaryLinear
_LOCAL = LocalUnitaryConvolution, nn.Conv1d, nn.Conv2d, nn.Conv3d


@torch.no_grad()
def operator_norm(layer: nn.Module) -> float:
    """The largest factor by which a layer can stretch the 2-norm of a difference of inputs.

    For ``nn.Linear`` and the unitary layers it is the largest singular value of the weight and, for
    unitary and Cayley convolutions, of the matrices at all frequencies, computed in float64; for
    `projunn.nn.LocalUnitaryConv2d` a bound of these at all frequencies of images of any size.  For
    ``nn.Conv2d`` with a 1 x 1 filter it is the norm of that matrix.  For ``AvgPool2d`` and ``MaxPool2d``
    it is that of images of any size (1/2 for means of 2 x 2, 1 for windows that do not overlap), and for
    means with unequal divisors, at borders, a bound of it.  These hold with 1 and 3 axes too.  It is
    taken as 1 for ``nn.ReLU``, ``Tanh``, ``Identity``, ``Flatten``, ``PixelUnshuffle``, `GroupSort` and
    `projunn.models.Center`, for ``Dropout`` in evaluation mode and ``AdaptiveAvgPool2d`` to one pixel;
    and as the larger of 1 and the size of its slope for ``LeakyReLU``.

    Raises:
        TypeError: a layer with no known bound: another kind, such as batch normalisation or a residual
            sum; a class with a ``forward`` of its own; one with forward hooks; one that mixes the inputs
            of a batch; dropout or a parametrization in training mode; adaptive pooling to more than one
            pixel, whose norm depends on the size of the input.
    """
    return bound_of(layer).norm


@torch.no_grad()
def lipschitz_bound(model: nn.Module) -> float:
    """A Lipschitz constant of a chain of layers: the product of their measured norms.

    Args:
        model: an ``nn.Sequential``, nested or not, or a single layer, in evaluation mode.  The layers
            that can be bounded are those of `projunn.lipschitz.operator_norm`.

    Raises:
        TypeError: a layer with no known bound.
    """
    return prod(bound.norm for _, bound in bounds_of(model))


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
            dtype or of other classes, logits of another shape or complex ones, or no input.
        TypeError: ``lipschitz`` is not given, and a layer has no known bound; or ``batches`` is not of
            pairs.
    """
    given = radii if isinstance(radii, Iterable) else [radii]
    radii = [number("radii", radius, 0, float_info.max) for radius in given]
    lipschitz = None if lipschitz is None else number("lipschitz", lipschitz, 0, float_info.max)
    layers = list(bounds_of(model)) if lipschitz is None else []
    distances = torch.tensor(list(radii), dtype=torch.float64, device="cpu")
    slopes = (
        distances.new_full((1, 1), sqrt(2) * lipschitz) if lipschitz is not None else _slopes(layers)
    )
    held = []
    for inputs, labels in map(_checked, batches):
        if lipschitz is None:
            logits, error = _logits(layers, inputs, distances)
        else:
            logits, error = model(inputs), distances.new_zeros(len(inputs), len(radii))
        logits = _checked_logits(logits, labels)
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


def _checked_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits in float64, checked to be real ones of the classes that the labels name."""
    shape = tuple(logits.shape)
    if logits.is_complex() or logits.ndim != 2 or len(logits) != len(labels):
        raise ValueError(
            f"model: got logits of shape {shape} and {logits.dtype}, wanted real ones,"
            f" ({len(labels)}, classes)"
        )
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= shape[1]):
        raise ValueError(
            f"batches: got labels from {int(labels.min())} to {int(labels.max())}, wanted those of the"
            f" model's {shape[1]} classes, from 0"
        )
    return logits.double()


def _slopes(layers: Sequence[tuple[nn.Module, Bound]]) -> Tensor:
    """Lipschitz constants of the differences of two logits: (classes, classes), or (1, 1) for all."""
    norms = [bound.norm for _, bound in layers]
    last = layers[-1][0] if layers else None
    if not isinstance(last, nn.Linear | UnitaryLinear):
        return torch.full((1, 1), sqrt(2) * prod(norms), dtype=torch.float64, device="cpu")
    rows = matrix_of(last).cpu()
    rows = (torch.view_as_real(rows).flatten(1) if rows.is_complex() else rows).double()
    # Not by products of rows, which cancel where two rows are nearly equal.
    apart = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    return apart * (prod(norms[:-1]) * (1 + 1e-12 + rows.shape[1] * float_info.epsilon))


def _logits(
    layers: Sequence[tuple[nn.Module, Bound]], inputs: Tensor, radii: Tensor
) -> tuple[Tensor, Tensor]:
    """The logits (batch, classes), and bounds of their rounding within each radius (batch, radii)."""
    x, stretch = inputs, 1.0
    error = radii.new_zeros(len(inputs), len(radii))
    for layer, bound in layers:
        if (axes := _axes(layer)) and x.ndim != axes + 2:
            raise TypeError(f"model: {type(layer).__name__} gets {x.ndim} axes, not those of a batch")
        if isinstance(layer, GroupSort) and layer.dim % x.ndim == 0:
            raise TypeError(f"model: {described(layer)} sorts along the batch")
        size = torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=torch.float64).cpu()
        x = layer(x)
        if len(x) != len(inputs):
            raise TypeError(f"model: {described(layer)} mixes the inputs of a batch")
        largest = size[:, None] + stretch * radii + 2 * error  # computed -> exact -> exact -> computed
        places = x.shape[1:-1] if isinstance(layer, _PRODUCTS) else x.shape[2:]
        constant = bound.constant + sqrt(prod(places)) * bound.each
        rounded = _unit_roundoff(x, layer) * (bound.rounding * largest + constant)
        error = bound.norm * error + rounded
        stretch *= bound.norm
    return x, error


def _axes(layer: nn.Module) -> int:
    """The spatial axes of a convolution, which takes images without a batch too; 0 for other layers."""
    if isinstance(layer, nn.modules.conv._ConvNd):
        return len(layer.kernel_size)
    is_ours = isinstance(layer, UnitaryConvolution | LocalUnitaryConvolution | CayleyConv2d)
    return getattr(layer, "axes", 2) if is_ours else 0


def _unit_roundoff(computed: Tensor, layer: nn.Module) -> float:
    """u of the arithmetic that computed a tensor, of products in a lower precision too."""
    kind = computed.device.type
    if torch.is_autocast_enabled(kind):
        return torch.finfo(torch.get_autocast_dtype(kind)).eps / 2
    own: float = torch.finfo(computed.dtype).eps / 2
    if computed.dtype not in (torch.float32, torch.complex64):
        return own
    if isinstance(layer, _LOCAL):
        library = torch.backends.cudnn if computed.is_cuda else torch.backends.mkldnn
        return {"tf32": 2.0**-11, "bf16": 2.0**-9}.get(library.conv.fp32_precision, own)
    return {"tf32": 2.0**-11, "bf16": 2.0**-9}.get(setting_of(kind), own)
