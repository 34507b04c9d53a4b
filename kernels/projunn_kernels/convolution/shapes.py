"""The shapes of what the convolution's operators return, for programs that are traced, and their flops.

Counted are the products of matrices at the frequencies, as PyTorch counts no Fourier transform.
"""

from typing import Any

from torch import Tensor

from projunn_kernels.convolution.grid import frequencies


def groups_of(signal: Tensor, channels: int) -> int:
    """The groups of a signal (batch, groups channels, *size)."""
    return signal.shape[1] // channels if channels else 1


def convolution(
    input: Tensor,
    weight: Tensor,
    own_weight: Tensor | None,
    bias: Tensor | None,
    size: list[int],
    keep: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    (batch, _, *rest), (m, n) = input.shape, weight.shape[1:3]
    grid, groups = frequencies(tuple(size), own_weight is not None), groups_of(input, n)
    counts = grid.paired * groups, len(grid.own) * groups
    shapes = ((counts[0], batch, n, 2), (counts[1], batch, n)) if keep else ((0,), (0,))
    output = input.new_empty(batch, groups * m, *rest)
    return output, input.new_empty(shapes[0]), input.new_empty(shapes[1])


def gradients(
    grad: Tensor,
    paired: Tensor,
    own: Tensor,
    weight: Tensor,
    own_weight: Tensor | None,
    size: list[int],
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (batch, n), (count, m, *_) = paired.shape[1:3], weight.shape
    real, (channels, *points) = own_weight is not None, grad.shape[1:]
    return (
        grad.new_empty((batch, groups_of(grad, m) * n, *points) if wanted[0] else 0),
        grad.new_empty((count, m, n, 2) if wanted[1] else 0),
        grad.new_empty((own.shape[0], m, n) if wanted[1] else 0),
        grad.new_empty(((channels,) if real else (channels, 2)) if wanted[2] else 0),
    )


def sketched_gradients(
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
) -> tuple[Tensor, ...]:
    (batch, n), real, (channels, *points) = (
        spectrum[0].shape[1:3],
        own_weight is not None,
        grad.shape[1:],
    )
    shapes: list[tuple[int, ...]] = [(0,)] * 6
    if wanted[0]:
        shapes[0] = (batch, groups_of(grad, weight.shape[1]) * n, *points)
    if wanted[1]:
        shapes[1], shapes[2] = basis.shape, (basis.shape[0], n, *basis.shape[2:])
        if own_basis is not None:
            shapes[3], shapes[4] = own_basis.shape, (own_basis.shape[0], n, own_basis.shape[2])
    if wanted[2]:
        shapes[5] = (channels,) if real else (channels, 2)
    return tuple(grad.new_empty(shape) for shape in shapes)


def convolution_flops(input: Tensor, weight: Tensor, own_weight: Tensor | None, **_: Any) -> int:
    return 2 * input.shape[0] * _products(weight, own_weight)


def gradients_flops(
    grad: Tensor, weight: Tensor, own_weight: Tensor | None, wanted: list[bool], **_: Any
) -> int:
    return 2 * grad.shape[0] * _products(weight, own_weight) * (wanted[0] + wanted[1])


def sketched_gradients_flops(
    grad: Tensor,
    weight: Tensor,
    own_weight: Tensor | None,
    basis: Tensor,
    own_basis: Tensor | None,
    wanted: list[bool],
    **_: Any,
) -> int:
    products = _products(weight, own_weight) if wanted[0] else 0
    if wanted[1]:  # two products each way, with k columns
        m, n = weight.shape[1:3]
        products += 2 * (m + n) * _products(basis, own_basis) // m
    return 2 * grad.shape[0] * products


def _products(paired: Tensor, own: Tensor | None) -> int:
    """Multiplications of real numbers where all matrices are applied to a vector each."""
    return 2 * paired.numel() + (0 if own is None else own.numel())
