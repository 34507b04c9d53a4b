"""Products with layers of rotations of pairs of coordinates, and the gradients of their coefficients.

A layer first permutes the coordinates and then rotates each pair (2j, 2j + 1), all pairs at once:

    neighbours   before layer 1, 3, 5, ... x -> (x_1, ..., x_{n-1}, x_0); before layer 2, 4, ... back
    fft          before every layer x -> (x_0, x_{n/2}, x_1, x_{n/2 + 1}, ...), so that after log2(n)
                 layers every coordinate has met every other one, at distances n/2, n/4, ..., 1

A rotation of two reals is one product of complex numbers, (y_0 + i y_1) = w (x_0 + i x_1).  That of two
complex numbers is ``y = c * x + s * swap(x)``, where swap exchanges the partners of each pair.

Nothing is stored on the way forward.  The backward takes the gradient back through the layers by their
inverses, which are their adjoints, and then goes forward once more for the inputs of the layers.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

PATTERNS = ("neighbours", "fft")
_CHUNK = 1 << 22  # numbers that the backward keeps of the gradients between layers


@dataclass(frozen=True)
class Rotations:
    """Layers of rotations in one order of the pairs.

    Args:
        pattern: one of `PATTERNS`.
        coefficients: w, complex (depth, n / 2), for rotations of reals; c and s, (depth, 2, n), for
            those of complex numbers.
    """

    pattern: str
    coefficients: Tensor

    @property
    def depth(self) -> int:
        return self.coefficients.shape[0]

    @cached_property
    def _forward(self) -> tuple[Tensor, ...]:
        return self.coefficients.unbind()

    @cached_property
    def _adjoint(self) -> tuple[Tensor, ...]:
        conjugate = self.coefficients.conj().resolve_conj()
        if conjugate.ndim == 3:  # s of the partner
            conjugate = torch.stack([conjugate[:, 0], _swapped(conjugate[:, 1])], 1)
        return conjugate.unbind()

    def product(self, x: Tensor) -> Tensor:
        """U x for each row x of ``x`` (\\*, n)."""
        for layer, coefficients in enumerate(self._forward):
            x = _rotated(self._permuted(x, layer), coefficients)
        return self._restored(x)

    def back(self, gradient: Tensor) -> tuple[Tensor, list[Tensor]]:
        """U^H g for each row g, and for each layer the gradient of what it put out."""
        found = []
        if self.pattern == "neighbours" and self.depth % 2 == 0:
            gradient = gradient.roll(-1, -1)
        for layer in reversed(range(self.depth)):
            found.append(gradient)
            gradient = self._unpermuted(_rotated(gradient, self._adjoint[layer]), layer)
        return gradient, found[::-1]

    def coefficient_gradients(self, x: Tensor, gradients: list[Tensor]) -> Tensor:
        """The gradient of ``coefficients``, summed over rows.

        Args:
            x: inputs (\\*, n).
            gradients: what `back` has found for these inputs.
        """
        sums = torch.empty_like(self.coefficients)
        for layer, coefficients in enumerate(self._forward):
            x = self._permuted(x, layer)
            g = gradients[layer]
            if self.coefficients.ndim == 2:
                sums[layer] = (_as_pairs(g) * _as_pairs(x).conj()).flatten(0, -2).sum(0)
            else:
                g = g.conj()
                sums[layer, 0] = (g * x).flatten(0, -2).sum(0)
                sums[layer, 1] = (g * _swapped(x)).flatten(0, -2).sum(0)
            if layer + 1 < self.depth:
                x = _rotated(x, coefficients)
        return sums if self.coefficients.ndim == 2 else sums.conj().resolve_conj()

    def rows_at_once(self, size: int) -> int:
        """How many rows of so many numbers the backward takes at a time."""
        return max(1, _CHUNK // max(1, self.depth * size))

    def _permuted(self, x: Tensor, layer: int) -> Tensor:
        if self.pattern == "fft":
            return x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
        return x.roll(-1 if layer % 2 else 1, -1) if layer else x

    def _unpermuted(self, x: Tensor, layer: int) -> Tensor:
        if self.pattern == "fft":
            return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
        return x.roll(1 if layer % 2 else -1, -1) if layer else x

    def _restored(self, x: Tensor) -> Tensor:
        return x.roll(1, -1) if self.pattern == "neighbours" and self.depth % 2 == 0 else x


class RotationsProduct(torch.autograd.Function):
    """``product(x, coefficients, pattern)``: U x for each row of x (rows, n)."""

    @staticmethod
    def forward(ctx, x: Tensor, coefficients: Tensor, pattern: str) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, coefficients)
        ctx.pattern = pattern
        return Rotations(pattern, coefficients).product(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        x, coefficients = ctx.saved_tensors
        rotations = Rotations(ctx.pattern, coefficients)
        of_x, sums = torch.empty_like(x), torch.zeros_like(coefficients)
        size = rotations.rows_at_once(x.shape[-1])
        for begin in range(0, len(x), size):
            rows = slice(begin, begin + size)
            of_x[rows], between = rotations.back(gradient[rows])
            sums += rotations.coefficient_gradients(x[rows], between)
        return of_x, sums, None


def _as_pairs(x: Tensor) -> Tensor:
    """Real pairs (2j, 2j + 1) as complex numbers."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def _swapped(x: Tensor) -> Tensor:
    """The partners of each pair (2j, 2j + 1) exchanged."""
    return x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


def _rotated(x: Tensor, coefficients: Tensor) -> Tensor:
    if coefficients.ndim == 1:
        return torch.view_as_real(_as_pairs(x) * coefficients).flatten(-2)
    return torch.addcmul(x * coefficients[0], _swapped(x), coefficients[1])
