"""The spectral product: at every frequency, the channels times that frequency's matrix.

    y_k = W_k x_k            adjoint:  x_k = W_k^H y_k            gradient:  G_k = sum_b y_k conj(x_k)^T

x (batch, n, *grid, 2) is a spectrum as ``torch.fft`` lays it out, complex numbers as real pairs; y is
(batch, m, *grid, 2).  W holds the free matrices only (`projunn_kernels.frequencies`): ``weight``
(paired, m, n, 2) and, for spectra of real signals, ``own_weight`` (own, m, n), real.  Such spectra
are read at the paired and own bins; the result's mirrored bins are filled in by conjugation, its own
bins are real.

On the CPU the products are batched complex GEMMs, and the copies to and from the FFT's layout, where
the frequency is the fast axis, cost a tenth of them.  Conjugates are taken on the small operands.
On a GPU one Triton launch reads and writes that layout (`projunn_kernels.jit.spectral`), in the
precision that ``torch.set_float32_matmul_precision`` asks for: float32's own by default.
"""

from functools import lru_cache

import torch
from torch import Tensor

from projunn_kernels.backends import operator, uses_triton
from projunn_kernels.frequencies import Frequencies, frequencies
from projunn_kernels.sketch import sketch


def spectral_product_reference(
    spectrum: Tensor, weight: Tensor, own_weight: Tensor | None, size: list[int]
) -> Tensor:
    """Bin by bin, complex tensors: (batch, n, *grid) to (batch, m, *grid)."""
    grid = frequencies(tuple(size), own_weight is not None)
    matrices = weight if own_weight is None else torch.cat([weight, own_weight.to(weight.dtype)])
    result = spectrum.new_zeros(spectrum.shape[0], weight.shape[1], *grid.shape)
    for k, matrix in zip(grid.wavenumbers().tolist(), matrices, strict=True):
        result[:, :, *k] = spectrum[:, :, *k] @ matrix.mT
    flat = result.flatten(2)
    flat[..., list(grid.mirrored)] = flat[..., list(grid.plane)].conj()
    return result


@operator("projunn::spectral_product", mutates_args=())
def spectral_product(
    spectrum: Tensor, weight: Tensor, own_weight: Tensor | None, size: list[int], adjoint: bool
) -> Tensor:
    """W x, or W^H x if ``adjoint``, at every frequency; shapes as on this page."""
    if uses_triton(spectrum):
        from projunn_kernels.jit import launch_spectral

        tensors = (spectrum.contiguous(), weight.contiguous())
        own_weight = None if own_weight is None else own_weight.contiguous()
        return launch_spectral.spectral_product(*tensors, own_weight, size, adjoint)
    grid = frequencies(tuple(size), own_weight is not None)
    x, w = torch.view_as_complex(spectrum.contiguous()), torch.view_as_complex(weight.contiguous())
    # W^H y = conj(W^T conj(y)): so W itself is never conjugated.
    paired, own = gather_bins(x, grid, conjugate=adjoint)
    channels = w.shape[2 if adjoint else 1]
    values = paired.new_empty(*paired.shape[:2], channels)
    torch.bmm(paired, w if adjoint else w.mT, out=values)
    if adjoint:
        values.conj_physical_()
    if own_weight is not None:
        own = own @ (own_weight if adjoint else own_weight.mT)
    return torch.view_as_real(_scatter_bins(values, own, grid))


@spectral_product.register_fake
def _(spectrum, weight, own_weight, size, adjoint):  # type: ignore[no-untyped-def]
    batch, _, *rest = spectrum.shape
    return spectrum.new_empty(batch, weight.shape[2 if adjoint else 1], *rest)


@operator("projunn::spectral_gradient", mutates_args=())
def spectral_gradient(
    grad: Tensor, spectrum: Tensor, size: list[int], real: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """``scale`` times sum_b grad_k conj(x_k)^T, twice that at paired bins of ``real`` signals.

    Returns the gradients of ``weight``, (paired, m, n, 2), and of ``own_weight``, (own, m, n).
    """
    if uses_triton(grad):
        from projunn_kernels.jit import launch_spectral

        tensors = (grad.contiguous(), spectrum.contiguous())
        return launch_spectral.spectral_gradient(*tensors, size, real, scale)
    grid = frequencies(tuple(size), real)
    g, x = torch.view_as_complex(grad.contiguous()), torch.view_as_complex(spectrum.contiguous())
    g_paired, g_own = gather_bins(g, grid)
    x_paired, x_own = gather_bins(x, grid, conjugate=True)
    result = g.new_empty(grid.paired, g.shape[1], x.shape[1])
    alpha = 2 * scale if real else scale
    torch.baddbmm(result, g_paired.mT, x_paired, beta=0, alpha=alpha, out=result)
    return torch.view_as_real(result), (g_own.mT @ x_own).mul_(scale)


@spectral_gradient.register_fake
def _(grad, spectrum, size, real, scale):  # type: ignore[no-untyped-def]
    grid = frequencies(tuple(size), real)
    m, n = grad.shape[1], spectrum.shape[1]
    return grad.new_empty(grid.paired, m, n, 2), grad.new_empty(len(grid.own), m, n)


def counts(spectrum: Tensor, size: list[int], real: bool, scale: float) -> Tensor:
    """How often the weights' gradient counts each frequency, (*grid, 1).

    ``scale``, twice that at paired bins of ``real`` signals, 0 at mirrored ones.
    """
    grid = frequencies(tuple(size), real)
    result = spectrum.new_full((grid.bins,), 2 * scale if real else scale)
    if grid.own:
        _, mirrored, own = _index(grid.size, True, spectrum.device)
        result[own], result[mirrored] = scale, 0
    return result.view(*grid.shape, 1)


def _folded(cotangent: Tensor, size: list[int], real: bool) -> Tensor:
    """A cotangent of a product, the parts of the mirrored bins conjugated and added to their partners'.

    Mirrored bins keep what they had, which nothing reads.
    """
    grid = frequencies(tuple(size), real)
    if not grid.mirrored:
        return cotangent
    plane, mirrored, _ = _index(grid.size, True, cotangent.device)
    flat = cotangent.flatten(2, -2)
    turned = flat[:, :, mirrored] * flat.new_tensor([1.0, -1.0])
    return flat.index_add(2, plane, turned).view_as(cotangent)


def _setup_product(ctx, inputs, output):  # type: ignore[no-untyped-def]
    spectrum, weight, own_weight, ctx.size, ctx.adjoint = inputs
    ctx.save_for_backward(spectrum, weight, own_weight)


def _product_backward(ctx, cotangent):  # type: ignore[no-untyped-def]
    spectrum, weight, own_weight = ctx.saved_tensors
    size, real = ctx.size, own_weight is not None
    folded = _folded(cotangent, size, real)
    back = spectral_product(folded, weight, own_weight, size, not ctx.adjoint)
    by_spectrum = back * counts(back, size, real, 1.0).clamp(max=1.0)
    # What the operator doubles at paired bins is halved here, and made up for at own ones.
    pair = (spectrum, folded) if ctx.adjoint else (folded, spectrum)
    by_weight, by_own = spectral_gradient(*pair, size, real, 0.5 if real else 1.0)
    return by_spectrum, by_weight, 2 * by_own if real else None, None, None


def _setup_gradient(ctx, inputs, output):  # type: ignore[no-untyped-def]
    grad, spectrum, ctx.size, ctx.real, ctx.scale = inputs
    ctx.save_for_backward(grad, spectrum)


def _gradient_backward(ctx, turn, turn_own):  # type: ignore[no-untyped-def]
    grad, spectrum = ctx.saved_tensors
    own = turn_own if ctx.real else None
    share = counts(grad, ctx.size, ctx.real, ctx.scale)
    by_grad = spectral_product(spectrum, turn, own, ctx.size, False) * share
    by_spectrum = spectral_product(grad, turn, own, ctx.size, True) * share
    return by_grad, by_spectrum, None, None, None


spectral_product.register_autograd(_product_backward, setup_context=_setup_product)
spectral_gradient.register_autograd(_gradient_backward, setup_context=_setup_gradient)


def spectral_sketch(
    grad: Tensor,
    spectrum: Tensor,
    basis: Tensor,
    own_basis: Tensor | None,
    size: list[int],
    scale: float,
) -> list[Tensor]:
    """`spectral_gradient` as factors, of rank k at every bin: `projunn_kernels.sketch`.

    From the bases (paired, m, k, 2) and, for spectra of real signals, (own, m, k).  Returns X and Y of
    the paired bins, as pairs, and of the own ones.
    """
    real = own_basis is not None
    grid = frequencies(tuple(size), real)
    g_paired, g_own = gather_bins(torch.view_as_complex(grad.contiguous()), grid)
    x_paired, x_own = gather_bins(torch.view_as_complex(spectrum.contiguous()), grid)
    left, right = sketch([x_paired], [g_paired], basis, pairs=True)
    factors = [left.mul_(2 * scale if real else scale), right]
    if own_basis is not None:
        left, right = sketch([x_own], [g_own], own_basis)
        factors += [left.mul_(scale), right]
    return factors


def gather_bins(x: Tensor, grid: Frequencies, *, conjugate: bool = False) -> tuple[Tensor, Tensor]:
    """Paired bins (paired, batch, n), complex, and own bins (own, batch, n), real, of a spectrum."""
    batch, n = x.shape[:2]
    paired = x.new_empty(grid.paired, batch, n)
    inner = x[..., grid.inner]
    axes = (*range(2, x.ndim), 0, 1)
    source = inner.conj() if conjugate else inner
    count = grid.paired - len(grid.plane)
    paired[:count].view(*grid.inner_shape, batch, n).copy_(source.permute(axes))
    plane, _, own = _index(grid.size, bool(grid.own), x.device)
    flat = x.flatten(2)
    if len(grid.plane):
        chosen = flat[..., plane]
        paired[count:].copy_((chosen.conj_physical() if conjugate else chosen).permute(2, 0, 1))
    return paired, flat[..., own].real.permute(2, 0, 1).contiguous()


def _scatter_bins(paired: Tensor, own: Tensor, grid: Frequencies) -> Tensor:
    """The inverse of `gather_bins`, mirrored bins filled in."""
    _, batch, m = paired.shape
    result = paired.new_empty(batch, m, *grid.shape)
    axes = (-2, -1, *range(len(grid.shape)))
    count = grid.paired - len(grid.plane)
    result[..., grid.inner].copy_(paired[:count].view(*grid.inner_shape, batch, m).permute(axes))
    if grid.own:
        plane, mirrored, selves = _index(grid.size, True, paired.device)
        flat, values = result.flatten(2), paired[count:].permute(1, 2, 0)
        flat[..., plane] = values
        flat[..., mirrored] = values.conj_physical()
        flat[..., selves] = own.permute(1, 2, 0).to(paired.dtype)
    return result


@lru_cache(maxsize=256)
def _index(size: tuple[int, ...], real: bool, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    grid = frequencies(size, real)
    bins = (grid.plane, grid.mirrored, grid.own)
    plane, mirrored, own = (torch.tensor(b, dtype=torch.long, device=device) for b in bins)
    return plane, mirrored, own
