"""The spectral product: at every frequency, the vector of channels is multiplied by a matrix.

    y_k = W_k x_k            adjoint:  x_k = W_k^H y_k            gradient:  G_k = sum_b y_k conj(x_k)^T

x (batch, n, *grid, 2) is a spectrum in the layout of ``torch.fft``, with complex numbers as real pairs;
y is (batch, m, *grid, 2).  Only the free matrices are stored (`projunn_kernels.frequencies`): ``weight``
(paired, m, n, 2) and, for spectra of real signals, ``own_weight`` (own, m, n), real.  Of such spectra
only the paired and own bins are read.  In the result, mirrored bins are filled in by conjugation, and
own bins are real.

In PyTorch the products are batched complex GEMMs (`eager`).  On a GPU one Triton launch reads and
writes that layout (`kernels`), in the precision that ``torch.set_float32_matmul_precision`` asks for.
"""

from typing import Any

import torch
from torch import Tensor

from projunn_kernels.convolution import eager, plain
from projunn_kernels.convolution.eager import counts, gather_bins, index
from projunn_kernels.convolution.grid import frequencies
from projunn_kernels.convolution.tiles import SPECTRAL_GRADIENT, SPECTRAL_PRODUCT
from projunn_kernels.operation import Derivative, Operation
from projunn_kernels.sketching import sketch


def spectral_product(
    spectrum: Tensor, weight: Tensor, own_weight: Tensor | None, size: list[int], adjoint: bool
) -> Tensor:
    """``W_k x_k``, or ``W_k^H x_k`` if ``adjoint``, at every frequency k.

    Args:
        spectrum: x, (batch, n, *grid, 2), complex numbers as pairs of reals in the layout of
            ``torch.fft``; (batch, m, *grid, 2) if ``adjoint``.
        weight: the matrices of the paired bins, (paired, m, n, 2): `Frequencies`.
        own_weight: those of the self-conjugate bins, (own, m, n), or None for complex signals.
        size: the points along each axis of the signal.

    Returns:
        (batch, m, *grid, 2), or (batch, n, *grid, 2) if ``adjoint``.
    """
    result: Tensor = _spectral_product(
        spectrum=spectrum, weight=weight, own_weight=own_weight, size=size, adjoint=adjoint
    )
    return result


def spectral_gradient(
    grad: Tensor, spectrum: Tensor, size: list[int], real: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """``scale`` times sum_b g_k conj(x_k)^T, and twice that at the paired bins of ``real`` signals.

    The spectra are g = ``grad`` (batch, m, *grid, 2) and x = ``spectrum`` (batch, n, *grid, 2), of
    signals with ``size`` points.  Returns the gradients of ``weight``, (paired, m, n, 2), and of
    ``own_weight``, (own, m, n).
    """
    paired, own = _spectral_gradient(grad=grad, spectrum=spectrum, size=size, real=real, scale=scale)
    return paired, own


def spectral_sketch(
    grad: Tensor,
    spectrum: Tensor,
    basis: Tensor,
    own_basis: Tensor | None,
    size: list[int],
    scale: float,
    group: str = "",
) -> list[Tensor]:
    """`spectral_gradient` as factors X Y^H of rank k at every bin, by `projunn_kernels.sketch`.

    Args:
        grad, spectrum, size, scale: as in `spectral_gradient`.
        basis: what the sketches of the paired bins start from, (paired, m, k, 2).
        own_basis: the same for the own bins, (own, m, k), or None for spectra of complex signals.
        group: as in `projunn_kernels.sketch`.

    Returns:
        X and Y of the paired bins, as real pairs, and then of the own bins, if there are any.
    """
    real = own_basis is not None
    grid = frequencies(tuple(size), real)
    g_paired, g_own = gather_bins(torch.view_as_complex(grad.contiguous()), grid)
    x_paired, x_own = gather_bins(torch.view_as_complex(spectrum.contiguous()), grid)
    left, right = sketch([x_paired], [g_paired], basis, True, group)
    factors = [left.mul_(2 * scale if real else scale), right]
    if own_basis is not None:
        left, right = sketch([x_own], [g_own], own_basis, False, group)
        factors += [left.mul_(scale), right]
    return factors


def _fake_product(
    spectrum: Tensor, weight: Tensor, own_weight: Tensor | None, size: list[int], adjoint: bool
) -> Tensor:
    batch, _, *rest = spectrum.shape
    return spectrum.new_empty(batch, weight.shape[2 if adjoint else 1], *rest)


def _fake_gradient(
    grad: Tensor, spectrum: Tensor, size: list[int], real: bool, scale: float
) -> tuple[Tensor, Tensor]:
    grid = frequencies(tuple(size), real)
    m, n = grad.shape[1], spectrum.shape[1]
    return grad.new_empty(grid.paired, m, n, 2), grad.new_empty(len(grid.own), m, n)


def _folded(cotangent: Tensor, size: list[int], real: bool) -> Tensor:
    """A cotangent of a product, with that of each mirrored bin conjugated and added to its partner's.

    The mirrored bins keep their values, which nothing reads.
    """
    grid = frequencies(tuple(size), real)
    if not grid.mirrored:
        return cotangent
    boundary, mirrored, _ = index(grid.size, True, cotangent.device)
    flat = cotangent.flatten(2, -2)
    conjugated = flat[:, :, mirrored] * flat.new_tensor([1.0, -1.0])
    return flat.index_add(2, boundary, conjugated).view_as(cotangent)


def _setup_product(ctx: Any, inputs: Any, output: Any) -> None:
    spectrum, weight, own_weight, ctx.size, ctx.adjoint = inputs
    ctx.save_for_backward(spectrum, weight, own_weight)


def _product_backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
    spectrum, weight, own_weight = ctx.saved_tensors
    size, real = ctx.size, own_weight is not None
    folded = _folded(cotangent, size, real)
    back = spectral_product(folded, weight, own_weight, size, not ctx.adjoint)
    by_spectrum = back * counts(back, size, real, 1.0).clamp(max=1.0)
    # What the operator doubles at paired bins is halved here, and made up for at own ones.
    g, x = (spectrum, folded) if ctx.adjoint else (folded, spectrum)
    by_weight, by_own = spectral_gradient(g, x, size, real, 0.5 if real else 1.0)
    return by_spectrum, by_weight, 2 * by_own if real else None, None, None


def _setup_gradient(ctx: Any, inputs: Any, output: Any) -> None:
    grad, spectrum, ctx.size, ctx.real, ctx.scale = inputs
    ctx.save_for_backward(grad, spectrum)


def _gradient_backward(ctx: Any, tangent: Tensor, tangent_own: Tensor) -> tuple[Any, ...]:
    grad, spectrum = ctx.saved_tensors
    own = tangent_own if ctx.real else None
    share = counts(grad, ctx.size, ctx.real, ctx.scale)
    by_grad = spectral_product(spectrum, tangent, own, ctx.size, False) * share
    by_spectrum = spectral_product(grad, tangent, own, ctx.size, True) * share
    return by_grad, by_spectrum, None, None, None


_spectral_product = Operation(
    name="spectral_product",
    eager=eager.spectral_product,
    launches="projunn_kernels.convolution.launch:spectral_product",
    fake=_fake_product,
    on="spectrum",
    kernels=(SPECTRAL_PRODUCT,),
    derivative=Derivative(_setup_product, _product_backward),
    plain=plain.spectral_product,
)
_spectral_gradient = Operation(
    name="spectral_gradient",
    eager=eager.spectral_gradient,
    launches="projunn_kernels.convolution.launch:spectral_gradient",
    fake=_fake_gradient,
    on="grad",
    kernels=(SPECTRAL_GRADIENT,),
    derivative=Derivative(_setup_gradient, _gradient_backward),
    plain=plain.spectral_gradient,
)
