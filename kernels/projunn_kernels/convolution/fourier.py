"""Circular convolution by a full-size filter held in the Fourier domain, forward and backward.

    y = F^-1 (W F x) + b        F the orthonormal discrete Fourier transform over the spatial axes

x (batch, n, *size) and y (batch, m, *size) are real, and W consists of ``weight`` (paired, m, n, 2) and
``own_weight`` (own, m, n), as in `Frequencies`.  Complex signals have no ``own_weight``, and are stored
as real pairs, with a trailing axis of size 2.  The backward is

    dx = F^-1 (W^H F dy)        dW_k = sum_b (F dy)_k conj(F x)_k^T        db = sum_b,p dy

where paired bins of real signals count twice, because W_-k = conj(W_k) changes with W_k: the spectra
have that in them (`projunn_kernels.fourier_transform`).  Data goes from signals to spectra, frequency by
frequency (`transform`), through batched GEMMs (`products`), and back.  All of it is one operator on real
tensors, so that ``torch.compile`` sees no complex number.

With groups, matrices and spectra have ``paired groups`` and ``own groups`` entries, frequency by
frequency, of m and n channels each, while x has ``groups n`` channels and y has ``groups m``.
"""

from collections.abc import Callable
from functools import partial
from math import sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from projunn_kernels.convolution import plain, products, shapes
from projunn_kernels.convolution.grid import frequencies
from projunn_kernels.convolution.products import Spectrum
from projunn_kernels.convolution.shapes import groups_of
from projunn_kernels.convolution.transform import fourier_inverse, fourier_transform
from projunn_kernels.operation import Derivative, Operation
from projunn_kernels.sketching import sketch


def fourier_convolution(
    input: Tensor,
    weight: Tensor,
    own_weight: Tensor | None,
    bias: Tensor | None,
    size: list[int],
    keep: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """``y = F^-1 (W F x) + b``, and the spectrum of x.

    Args:
        input: x, (batch, groups n, *size), real, or (batch, groups n, *size, 2) for complex signals.
        weight: the complex matrices of the paired bins, (paired groups, m, n, 2): `Frequencies`.
        own_weight: the real matrices of the self-conjugate bins, (own groups, m, n); None for complex
            signals.
        bias: b, (groups m,), or (groups m, 2) for complex signals, or None.
        size: the points along each spatial axis.
        keep: whether the backward has the spectrum from here, N numbers for N points.  If not, it keeps
            x, and transforms it again.

    Returns:
        y, (batch, groups m, *size) or (batch, groups m, *size, 2), and the spectrum: that of
        `fourier_transform`, group by group, or two empty tensors if it is not to be kept.
    """
    output, paired, own = _convolution(
        input=input, weight=weight, own_weight=own_weight, bias=bias, size=size, keep=keep
    )
    return output, paired, own


def fourier_convolution_backward(
    grad: Tensor,
    paired: Tensor,
    own: Tensor,
    weight: Tensor,
    own_weight: Tensor | None,
    size: list[int],
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of input, weight, own_weight and bias.  Those that are not ``wanted`` are empty.

    ``grad`` is the gradient of y, and ``paired`` and ``own`` the spectrum of x.  ``wanted`` has three
    entries: for the input, for both weights, and for the bias.
    """
    by_input, by_weight, by_own, by_bias = _convolution_backward(
        grad=grad,
        paired=paired,
        own=own,
        weight=weight,
        own_weight=own_weight,
        size=size,
        wanted=wanted,
    )
    return by_input, by_weight, by_own, by_bias


def fourier_convolution_sketch(
    grad: Tensor,
    spectrum: Spectrum,
    weight: Tensor,
    own_weight: Tensor | None,
    bases: tuple[Tensor, Tensor | None],
    size: list[int],
    wanted: list[bool],
    *,
    group: str = "",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`fourier_convolution_backward` with low-rank factors X Y^H in place of the weights' gradients.

    The factors start from the ``bases``, (paired, m, k, 2) for ``weight`` and (own, m, k) or None for
    ``own_weight``, and are averaged over the processes of ``group``: `projunn_kernels.sketch`.
    Returns the gradient of the input; X (paired, m, k, 2) and Y (paired, n, k, 2) for ``weight``; X
    (own, m, k) and Y (own, n, k) for ``own_weight``; and the gradient of the bias.  What is not wanted,
    or does not exist, is an empty tensor.
    """
    by_input, left, right, own_left, own_right, by_bias = _convolution_sketch(
        grad=grad,
        spectrum=list(spectrum),
        weight=weight,
        own_weight=own_weight,
        basis=bases[0],
        own_basis=bases[1],
        size=size,
        wanted=wanted,
        group=group,
    )
    return by_input, left, right, own_left, own_right, by_bias


class _Parts(NamedTuple):
    """What the convolution and its gradients are made of: `plain` operations, or faster ones."""

    transform: Callable[..., Spectrum]
    inverse: Callable[..., Tensor]
    product: Callable[..., Spectrum]
    adjoint: Callable[..., Spectrum]
    gradient: Callable[..., Spectrum]


_FAST = _Parts(fourier_transform, fourier_inverse, products.product, products.adjoint, products.gradient)
_PLAIN = _Parts(plain.transform, plain.inverse, plain.product, plain.adjoint, plain.gradient)


def _convolve(
    by: _Parts,
    input: Tensor,
    weight: Tensor,
    own_weight: Tensor | None,
    bias: Tensor | None,
    size: list[int],
    keep: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    real, groups = own_weight is not None, groups_of(input, weight.shape[2])
    spectrum = products.split(by.transform(input, size, real), groups)
    moved = products.merge(by.product(spectrum, weight, own_weight), groups)
    output = by.inverse(*moved, bias, size, real)
    paired, own = spectrum if keep else (input.new_empty(0), input.new_empty(0))
    return output, paired, own


def _gradients(
    by: _Parts,
    grad: Tensor,
    paired: Tensor,
    own: Tensor,
    weight: Tensor,
    own_weight: Tensor | None,
    size: list[int],
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    real = own_weight is not None
    results = [grad.new_empty(0) for _ in range(4)]
    whole, groups = by.transform(grad, size, real), groups_of(grad, weight.shape[1])
    g = products.split(whole, groups)
    if wanted[0]:
        moved = products.merge(by.adjoint(g, weight, own_weight), groups)
        results[0] = by.inverse(*moved, None, size, real)
    if wanted[1]:
        results[1:3] = by.gradient(g, (paired, own))
    if wanted[2]:
        results[3] = _sum_of_points(whole, size, real)
    return results[0], results[1], results[2], results[3]


def _sketched_gradients(
    grad: Tensor,
    spectrum: list[Tensor],
    weight: Tensor,
    own_weight: Tensor | None,
    basis: Tensor,
    own_basis: Tensor | None,
    size: list[int],
    wanted: list[bool],
    *,
    group: str = "",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    real = own_weight is not None
    results = [grad.new_empty(0) for _ in range(6)]
    whole, groups = fourier_transform(grad, size, real), groups_of(grad, weight.shape[1])
    g, g_own = products.split(whole, groups)
    if wanted[0]:
        moved = products.merge(products.adjoint((g, g_own), weight, own_weight), groups)
        results[0] = fourier_inverse(*moved, None, size, real)
    if wanted[1]:
        # Of conjugated spectra it is the conjugate of the gradient that is sketched.
        factors = sketch(spectrum[:1], [g], _conjugate(basis), True, group)
        results[1:3] = map(_conjugate, factors)
        if own_basis is not None:
            results[3:5] = sketch(spectrum[1:], [g_own], own_basis, False, group)
    if wanted[2]:
        results[5] = _sum_of_points(whole, size, real)
    return results[0], results[1], results[2], results[3], results[4], results[5]


def _sum_of_points(spectrum: Spectrum, size: list[int], real: bool) -> Tensor:
    """The sum over images and points, from the zero frequency: (channels,), or (channels, 2)."""
    paired, own = spectrum
    points = sqrt(frequencies(tuple(size), real).points)
    return own[0].sum(0) * points if real else _conjugate(paired[0].sum(0) * points)


def _conjugate(pairs: Tensor) -> Tensor:
    real, imaginary = pairs.unbind(-1)
    return torch.stack([real, -imaginary], -1)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    input, weight, own_weight, _, ctx.size, ctx.keep = inputs
    _, paired, own = output  # differentiable: a second backward comes back through them
    ctx.set_materialize_grads(False)
    kept = (paired, own) if ctx.keep else (input, None)
    ctx.save_for_backward(*kept, weight, own_weight)


def _backward(ctx: Any, grad: Tensor | None, *by_spectrum: Tensor | None) -> tuple[Any, ...]:
    first, second, weight, own_weight = ctx.saved_tensors
    size, real, needs = ctx.size, own_weight is not None, ctx.needs_input_grad
    wanted = [needs[0], needs[1] or needs[2], needs[3]]
    kept: list[Tensor | None] = [None] * 4
    if grad is not None:
        paired, own = (first, second) if ctx.keep else spectrum_of(first, weight, size, real)
        grads = fourier_convolution_backward(grad, paired, own, weight, own_weight, size, wanted)
        kept = [g if need else None for g, need in zip(grads, needs, strict=False)]
    if ctx.keep and needs[0]:
        kept[0] = through_transform(kept[0], (first, second), by_spectrum, size, real)
    return *kept, None, None


def spectrum_of(input: Tensor, weight: Tensor, size: list[int], real: bool) -> Spectrum:
    """The spectrum that `fourier_convolution` returns, of an input by itself."""
    return products.split(fourier_transform(input, size, real), groups_of(input, weight.shape[2]))


def through_transform(
    total: Tensor | None,
    spectrum: Spectrum,
    grads: tuple[Tensor | None, ...],
    size: list[int],
    real: bool,
) -> Tensor | None:
    """``total``, the gradient of x so far, and what comes back through the spectrum of x."""
    if all(grad is None for grad in grads):
        return total
    paired, own = (torch.zeros_like(s) if g is None else g for s, g in zip(spectrum, grads, strict=True))
    grid = frequencies(tuple(size), real)
    groups = (len(paired) + len(own)) // (grid.paired + len(grid.own))
    through = fourier_inverse(*products.merge((paired, own), groups), None, size, real)
    return through if total is None else total + through


def _setup_second(ctx: Any, inputs: Any, output: Any) -> None:
    grad, paired, own, weight, own_weight, ctx.size, ctx.wanted = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad, paired, own, weight, own_weight)


def _second_backward(
    ctx: Any,
    tangent_input: Tensor | None,
    tangent_weight: Tensor | None,
    tangent_own: Tensor | None,
    tangent_bias: Tensor | None,
) -> tuple[Any, ...]:
    """Gradients of <u, dx> + <V, dW> + <v, db>, which is linear in dy, in F x, and in W.

    By dy:  W * u + F^-1 (V F x) + v        by W:  as if u were the input        by F x:  V^H F dy

    Made of operators that are differentiable again.
    """
    grad, paired, own, weight, own_weight = ctx.saved_tensors
    size, real = ctx.size, own_weight is not None
    by_grad, by_paired, by_own_bins, by_weight, by_own = None, None, None, None, None
    if tangent_input is not None and ctx.wanted[0]:
        by_grad, u, u_own = fourier_convolution(tangent_input, weight, own_weight, None, size)
        only_weights = [False, True, False]
        _, by_weight, for_own, _ = fourier_convolution_backward(
            grad, u, u_own, weight, own_weight, size, only_weights
        )
        by_own = for_own if real else None
    if ctx.wanted[1] and (tangent_weight is not None or tangent_own is not None):
        v = torch.zeros_like(weight) if tangent_weight is None else tangent_weight
        v_own = None
        if own_weight is not None:
            v_own = torch.zeros_like(own_weight) if tangent_own is None else tangent_own
        groups = groups_of(grad, weight.shape[1])
        moved = products.merge(products.product((paired, own), v, v_own), groups)
        along = fourier_inverse(*moved, None, size, real)
        by_grad = along if by_grad is None else by_grad + along
        g = products.split(fourier_transform(grad, size, real), groups)
        by_paired, by_own_bins = products.adjoint(g, v, v_own)
    if tangent_bias is not None and ctx.wanted[2]:
        every = tangent_bias.view(-1, *(1 for _ in size), *tangent_bias.shape[1:]).expand_as(grad)
        by_grad = every if by_grad is None else by_grad + every
    return by_grad, by_paired, by_own_bins, by_weight, by_own, None, None


_convolution = Operation(
    name="fourier_convolution",
    eager=partial(_convolve, _FAST),
    fake=shapes.convolution,
    on="input",
    derivative=Derivative(_setup_context, _backward),
    plain=partial(_convolve, _PLAIN),
    flops=shapes.convolution_flops,
    autocast=True,
    tf32=True,
)
_convolution_backward = Operation(
    name="fourier_convolution_backward",
    eager=partial(_gradients, _FAST),
    fake=shapes.gradients,
    on="grad",
    derivative=Derivative(_setup_second, _second_backward),
    plain=partial(_gradients, _PLAIN),
    flops=shapes.gradients_flops,
    autocast=True,
    tf32=True,
)
_convolution_sketch = Operation(
    name="fourier_convolution_sketch",
    eager=_sketched_gradients,
    fake=shapes.sketched_gradients,
    flops=shapes.sketched_gradients_flops,
    on="grad",
    autocast=True,
    tf32=True,
)
