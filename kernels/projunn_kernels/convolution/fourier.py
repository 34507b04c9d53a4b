"""Circular convolution by a full-size filter held in the Fourier domain, forward and backward.

    y = F^-1 (W F x) + b        F the discrete Fourier transform over the spatial axes

x (batch, n, *size) and y (batch, m, *size) are real, and W consists of ``weight`` (paired, m, n, 2) and
``own_weight`` (own, m, n), as in `spectral`.  Complex signals have no ``own_weight``, and are stored as
real pairs, with a trailing axis of size 2.  The bias b, (m) or (m, 2), adds N b at the zero frequency.
With F F^H = N the backward is

    dx = F^-1 (W^H F dy)        dW_k = c/N sum_b (F dy)_k conj(F x)_k^T        db = sum_b (F dy)_0

with c = 1, but c = 2 at paired bins of real signals, because W_-k = conj(W_k) changes with W_k.  All of
it is one operator on real tensors, so that ``torch.compile`` sees no complex number.
"""

from typing import Any

import torch
from torch import Tensor

from projunn_kernels.convolution.eager import counts
from projunn_kernels.convolution.grid import frequencies
from projunn_kernels.convolution.spectral import spectral_gradient, spectral_product, spectral_sketch
from projunn_kernels.operation import Derivative, Operation


def fourier_convolution(
    input: Tensor, weight: Tensor, own_weight: Tensor | None, bias: Tensor | None, size: list[int]
) -> tuple[Tensor, Tensor]:
    """``y = F^-1 (W F x) + b``, and the spectrum F x, which the backward needs.

    Args:
        input: x, (batch, n, *size), real, or (batch, n, *size, 2) for complex signals.
        weight: the complex matrices of the paired bins, (paired, m, n, 2): `Frequencies`.
        own_weight: the real matrices of the self-conjugate bins, (own, m, n); None for complex signals.
        bias: b, (m,), or (m, 2) for complex signals, or None.
        size: the points along each spatial axis.

    Returns:
        y, (batch, m, *size) or (batch, m, *size, 2), and the spectrum (batch, n, *grid, 2) in the layout
        of ``torch.fft.rfftn`` or, for complex signals, ``fftn``.
    """
    output, spectrum = _convolution(
        input=input, weight=weight, own_weight=own_weight, bias=bias, size=size
    )
    return output, spectrum


def fourier_convolution_backward(
    grad: Tensor,
    spectrum: Tensor,
    weight: Tensor,
    own_weight: Tensor | None,
    size: list[int],
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of input, weight, own_weight and bias.  Those that are not ``wanted`` are empty.

    ``grad`` is the gradient of y, and ``spectrum`` what `fourier_convolution` returned.  ``wanted`` has
    three entries: for the input, for both weights, and for the bias.
    """
    by_input, by_weight, by_own, by_bias = _convolution_backward(
        grad=grad, spectrum=spectrum, weight=weight, own_weight=own_weight, size=size, wanted=wanted
    )
    return by_input, by_weight, by_own, by_bias


def fourier_convolution_sketch(
    grad: Tensor,
    spectrum: Tensor,
    weight: Tensor,
    own_weight: Tensor | None,
    basis: Tensor,
    own_basis: Tensor | None,
    size: list[int],
    wanted: list[bool],
    *,
    group: str = "",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`fourier_convolution_backward` with low-rank factors X Y^H in place of the weights' gradients.

    The factors start from ``basis`` and ``own_basis``, and are averaged over the processes of ``group``:
    `projunn_kernels.convolution.spectral_sketch`.
    Returns the gradient of the input; X (paired, m, k, 2) and Y (paired, n, k, 2) for ``weight``; X
    (own, m, k) and Y (own, n, k) for ``own_weight``; and the gradient of the bias.  What is not wanted,
    or does not exist, is an empty tensor.
    """
    by_input, left, right, own_left, own_right, by_bias = _convolution_sketch(
        grad=grad,
        spectrum=spectrum,
        weight=weight,
        own_weight=own_weight,
        basis=basis,
        own_basis=own_basis,
        size=size,
        wanted=wanted,
        group=group,
    )
    return by_input, left, right, own_left, own_right, by_bias


def _convolve(
    input: Tensor, weight: Tensor, own_weight: Tensor | None, bias: Tensor | None, size: list[int]
) -> tuple[Tensor, Tensor]:
    spectrum = _transform(input, size, own_weight is not None)
    product = spectral_product(spectrum, weight, own_weight, size, False)
    if bias is not None:
        points = frequencies(tuple(size), own_weight is not None).points
        _zero_bin(product, own_weight is not None).add_(bias, alpha=points)
    return _inverse(product, size, own_weight is not None), spectrum


def _plainly(
    input: Tensor, weight: Tensor, own_weight: Tensor | None, bias: Tensor | None, size: list[int]
) -> tuple[Tensor, Tensor]:
    """`_convolve` without a change in place."""
    real = own_weight is not None
    spectrum = _transform(input, size, real)
    output = _inverse(spectral_product(spectrum, weight, own_weight, size, False), size, real)
    if bias is not None:
        output = output + bias.view(-1, *(1 for _ in size), *bias.shape[1:])
    return output, spectrum


def _fake_convolve(
    input: Tensor, weight: Tensor, own_weight: Tensor | None, bias: Tensor | None, size: list[int]
) -> tuple[Tensor, Tensor]:
    real = own_weight is not None
    batch, n, *rest = input.shape
    shape = frequencies(tuple(size), real).shape
    return input.new_empty(batch, weight.shape[1], *rest), input.new_empty(batch, n, *shape, 2)


def _gradients(
    grad: Tensor,
    spectrum: Tensor,
    weight: Tensor,
    own_weight: Tensor | None,
    size: list[int],
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    real = own_weight is not None
    g = _transform(grad, size, real)
    grad_input = grad_weight = grad_own = grad_bias = None
    if wanted[0]:
        grad_input = _inverse(spectral_product(g, weight, own_weight, size, True), size, real)
    if wanted[1]:
        scale = 1 / frequencies(tuple(size), real).points
        grad_weight, grad_own = spectral_gradient(g, spectrum, size, real, scale)
    if wanted[2]:
        grad_bias = _zero_bin(g, real).sum(0)
    empty = [grad.new_empty(0) for _ in range(4)]
    results = (grad_input, grad_weight, grad_own, grad_bias)
    first, second, third, fourth = (e if r is None else r for r, e in zip(results, empty, strict=True))
    return first, second, third, fourth


def _fake_gradients(
    grad: Tensor,
    spectrum: Tensor,
    weight: Tensor,
    own_weight: Tensor | None,
    size: list[int],
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, n = spectrum.shape[:2]
    m = weight.shape[1]
    real = own_weight is not None
    own = len(frequencies(tuple(size), real).own)
    return (
        grad.new_empty((batch, n, *grad.shape[2:]) if wanted[0] else 0),
        grad.new_empty(weight.shape if wanted[1] else 0),
        grad.new_empty((own, *weight.shape[1:3]) if wanted[1] else 0),
        grad.new_empty(((m,) if real else (m, 2)) if wanted[2] else 0),
    )


def _sketched_gradients(
    grad: Tensor,
    spectrum: Tensor,
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
    g = _transform(grad, size, real)
    results = [grad.new_empty(0) for _ in range(6)]
    if wanted[0]:
        results[0] = _inverse(spectral_product(g, weight, own_weight, size, True), size, real)
    if wanted[1]:
        scale = 1 / frequencies(tuple(size), real).points
        found = spectral_sketch(g, spectrum, basis, own_basis, size, scale, group)
        results[1 : 1 + len(found)] = found
    if wanted[2]:
        results[5] = _zero_bin(g, real).sum(0)
    first, second, third, fourth, fifth, sixth = results
    return first, second, third, fourth, fifth, sixth


def _fake_sketched_gradients(
    grad: Tensor,
    spectrum: Tensor,
    weight: Tensor,
    own_weight: Tensor | None,
    basis: Tensor,
    own_basis: Tensor | None,
    size: list[int],
    wanted: list[bool],
    *,
    group: str = "",
) -> tuple[Tensor, ...]:
    (batch, n), m, real = spectrum.shape[:2], weight.shape[1], own_weight is not None
    shapes: list[tuple[int, ...]] = [(0,)] * 6
    if wanted[0]:
        shapes[0] = (batch, n, *grad.shape[2:])
    if wanted[1]:
        shapes[1], shapes[2] = basis.shape, (basis.shape[0], n, *basis.shape[2:])
        if own_basis is not None:
            shapes[3], shapes[4] = own_basis.shape, (own_basis.shape[0], n, own_basis.shape[2])
    if wanted[2]:
        shapes[5] = (m,) if real else (m, 2)
    return tuple(grad.new_empty(shape) for shape in shapes)


def _transform(signal: Tensor, size: list[int], real: bool) -> Tensor:
    dims = tuple(range(2, 2 + len(size)))
    if signal.numel() == 0:  # MKL refuses empty batches
        return signal.new_zeros(*signal.shape[:2], *frequencies(tuple(size), real).shape, 2)
    if real:
        return torch.view_as_real(torch.fft.rfftn(signal, dim=dims)).contiguous()
    numbers = torch.view_as_complex(signal.contiguous())
    return torch.view_as_real(torch.fft.fftn(numbers, dim=dims)).contiguous()


def _inverse(spectrum: Tensor, size: list[int], real: bool) -> Tensor:
    dims = tuple(range(2, 2 + len(size)))
    if spectrum.numel() == 0:
        return spectrum.new_zeros(*spectrum.shape[:2], *size, *(() if real else (2,)))
    numbers = torch.view_as_complex(spectrum)
    if real:
        return torch.fft.irfftn(numbers, s=size, dim=dims).contiguous()
    return torch.view_as_real(torch.fft.ifftn(numbers, dim=dims)).contiguous()


def _zero_bin(spectrum: Tensor, real: bool) -> Tensor:
    """The zero frequency, (batch, channels) or, of complex signals, (batch, channels, 2); a view."""
    first = spectrum.flatten(2, -2)[:, :, 0]
    return first[..., 0] if real else first


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    _, weight, own_weight, _, ctx.size = inputs
    _, spectrum = output  # differentiable: a second backward comes back through it
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(spectrum, weight, own_weight)


def _backward(ctx: Any, grad: Tensor | None, grad_spectrum: Tensor | None) -> tuple[Any, ...]:
    spectrum, weight, own_weight = ctx.saved_tensors
    needs = ctx.needs_input_grad
    wanted = [needs[0], needs[1] or needs[2], needs[3]]
    kept: list[Tensor | None] = [None] * 4
    if grad is not None:
        grads = fourier_convolution_backward(grad, spectrum, weight, own_weight, ctx.size, wanted)
        kept = [g if need else None for g, need in zip(grads, needs, strict=False)]
    if grad_spectrum is not None and needs[0]:
        through = transform_adjoint(grad_spectrum, ctx.size, own_weight is not None)
        kept[0] = through if kept[0] is None else kept[0] + through
    return *kept, None


def _setup_second(ctx: Any, inputs: Any, output: Any) -> None:
    grad, spectrum, weight, own_weight, ctx.size, ctx.wanted = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad, spectrum, weight, own_weight)


def _second_backward(
    ctx: Any,
    tangent_input: Tensor | None,
    tangent_weight: Tensor | None,
    tangent_own: Tensor | None,
    tangent_bias: Tensor | None,
) -> tuple[Any, ...]:
    """Gradients of <u, dx> + <V, dW> + <v, db>, which is linear in dy, in x, and in W.

    By dy:  W * u + V * x + v        by W:  as if u were the input        by F x:  c/N V^H F dy

    Made of operators that are differentiable again.
    """
    grad, spectrum, weight, own_weight = ctx.saved_tensors
    size, real = ctx.size, own_weight is not None
    by_grad, by_spectrum, by_weight, by_own = None, None, None, None
    if tangent_input is not None and ctx.wanted[0]:
        by_grad, transformed = fourier_convolution(tangent_input, weight, own_weight, None, size)
        only_weights = [False, True, False]
        _, by_weight, own, _ = fourier_convolution_backward(
            grad, transformed, weight, own_weight, size, only_weights
        )
        by_own = own if real else None
    if ctx.wanted[1] and (tangent_weight is not None or tangent_own is not None):
        v = torch.zeros_like(weight) if tangent_weight is None else tangent_weight
        v_own = None
        if own_weight is not None:
            v_own = torch.zeros_like(own_weight) if tangent_own is None else tangent_own
        along = _inverse(spectral_product(spectrum, v, v_own, size, False), size, real)
        by_grad = along if by_grad is None else by_grad + along
        product = spectral_product(_transform(grad, size, real), v, v_own, size, True)
        points = frequencies(tuple(size), real).points
        by_spectrum = product * counts(product, size, real, 1 / points)
    if tangent_bias is not None and ctx.wanted[2]:
        every = tangent_bias.view(-1, *(1 for _ in size), *tangent_bias.shape[1:]).expand_as(grad)
        by_grad = every if by_grad is None else by_grad + every
    return by_grad, by_spectrum, by_weight, by_own, None, None


def transform_adjoint(spectrum: Tensor, size: list[int], real: bool) -> Tensor:
    """The adjoint of F: sum_k s_k exp(2 pi i k p / N), of real signals its real part."""
    numbers = torch.view_as_complex(spectrum.contiguous())
    dims = tuple(range(2, 2 + len(size)))
    if real:  # the stored half of the grid, zeros for the other
        full = numbers.new_zeros(*numbers.shape[:-1], size[-1])
        full[..., : numbers.shape[-1]] = numbers
        numbers = full
    if numbers.numel() == 0:
        return spectrum.new_zeros(*spectrum.shape[:2], *size, *(() if real else (2,)))
    signal = torch.fft.ifftn(numbers, dim=dims, norm="forward")
    return signal.real.contiguous() if real else torch.view_as_real(signal).contiguous()


_convolution = Operation(
    name="fourier_convolution",
    eager=_convolve,
    fake=_fake_convolve,
    on="input",
    derivative=Derivative(_setup_context, _backward),
    plain=_plainly,
    autocast=True,
)
_convolution_backward = Operation(
    name="fourier_convolution_backward",
    eager=_gradients,
    fake=_fake_gradients,
    on="grad",
    derivative=Derivative(_setup_second, _second_backward),
    plain=_gradients,
)
_convolution_sketch = Operation(
    name="fourier_convolution_sketch",
    eager=_sketched_gradients,
    fake=_fake_sketched_gradients,
    on="grad",
)
