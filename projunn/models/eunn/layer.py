"""The angles of an efficient unitary network, and the linear layer that they make."""

from collections.abc import Callable
from math import pi
from typing import Self

import torch
from torch import Tensor, nn

from projunn.arguments import check_numbers, check_strided, on_device, one_of, positive
from projunn.manifold import MATRIX_DTYPES, dtype_names
from projunn.models.eunn.rotations import PATTERNS, RotationsProduct
from projunn.nn.module import kept_real


class Angles(nn.Module):
    """The parameters of layers of rotations: angles and, of complex ones, phases.

    Args:
        features, depth, pattern, device, dtype: as in `EUNNLinear`.
    """

    def __init__(
        self,
        features: int,
        depth: int | None,
        pattern: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.features, self.pattern = (
            positive("features", features),
            one_of("pattern", pattern, PATTERNS),
        )
        if features % 2:
            raise ValueError(f"features: got {features}, wanted an even number")
        if pattern == "fft":
            levels = features.bit_length() - 1
            if features != 1 << levels:
                raise ValueError(f"features: got {features}, wanted a power of two for the fft pattern")
            if depth not in (None, levels):
                raise ValueError(f"depth: got {depth}, wanted {levels} or None for the fft pattern")
            depth = levels
        self.depth = positive("depth", 2 if depth is None else depth)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in MATRIX_DTYPES:
            raise TypeError(f"dtype: got {dtype!r}, wanted one of {dtype_names()}")
        self.is_complex, real = dtype.is_complex, dtype.to_real()

        def angles(*shape: int) -> nn.Parameter:
            return nn.Parameter(on_device(device, lambda: torch.empty(shape, device=device, dtype=real)))

        self.angles = angles(self.depth, features // 2)
        self.phases = angles(self.depth, features // 2) if self.is_complex else None
        self.output_phases = angles(features) if self.is_complex else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all angles uniformly from [-pi, pi)."""
        for angles in self.parameters():
            nn.init.uniform_(angles, -pi, pi)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(kept_real(fn), recurse)

    def coefficients(self) -> Tensor:
        """The coefficients of `projunn.models.eunn.rotations.Rotations`."""
        if self.phases is None or self.output_phases is None:
            return torch.polar(torch.ones_like(self.angles), self.angles)
        cosine, sine = self.angles.cos(), self.angles.sin()
        phase = torch.polar(torch.ones_like(self.phases), self.phases)
        c = torch.stack([phase * cosine, cosine.to(phase.dtype)], -1).flatten(-2)
        s = torch.stack([-phase * sine, sine.to(phase.dtype)], -1).flatten(-2)
        layers = torch.stack([c, s], 1)
        last = torch.polar(torch.ones_like(self.output_phases), self.output_phases)
        return torch.cat([layers[:-1], layers[-1:] * last])

    def extra_repr(self) -> str:
        kind = ", complex" if self.is_complex else ""
        return f"{self.features}, depth={self.depth}, pattern={self.pattern!r}{kind}"


class EUNNLinear(Angles):
    """``y = U x`` with U = D F_depth ... F_2 F_1, layers of rotations of pairs of coordinates.

    Each layer F rotates n / 2 pairs at once.  Of reals by one angle t, of complex numbers by an angle
    and a phase p, after which D multiplies each coordinate by a phase:

        real     [cos t, -sin t; sin t, cos t]
        complex  [e^{ip} cos t, -e^{ip} sin t; sin t, cos t]

    The pattern ``"neighbours"`` takes the pairs (0, 1), (2, 3), ... in the first, third, ... layer and
    (1, 2), (3, 4), ..., (n - 1, 0) in the others; ``depth`` n reaches every rotation or unitary matrix.
    ``"fft"`` takes pairs at the distances n/2, n/4, ..., 1 in log2(n) layers.  U is never formed: a
    product costs O(depth n), forward and backward.  The parameters are unconstrained, and any optimizer
    trains them.  Source: Jing et al., ICML 2017, sections 3 and 4, where the pair (n - 1, 0) stays out.

    Args:
        features: n, an even number; a power of two for ``"fft"``.
        depth: the number of layers; default: 2, and log2(n) for ``"fft"``.
        pattern: ``"neighbours"`` or ``"fft"``.
        device: as in ``torch.nn`` modules.
        dtype: float32, float64, complex64 or complex128; default: PyTorch's default dtype.

    Shape:
        input and output (\\*, n), of the layer's dtype.  A complex layer takes real input too.

    Attributes:
        angles: t, (depth, n / 2); pairs in the order in which their layer meets them.
        phases: p, (depth, n / 2), and ``output_phases``, (n,); None of a real layer.

    Raises:
        ValueError: a size, depth or pattern that does not fit, or input of another size.
        TypeError: another dtype.
    """

    def __init__(
        self,
        features: int,
        depth: int | None = None,
        pattern: str = "neighbours",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(features, depth, pattern, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        check_numbers("input", input, self.angles, self.is_complex)
        check_strided("input", input)
        if input.shape[-1:] != (self.features,):
            raise ValueError(f"input: got shape {tuple(input.shape)}, wanted (*, {self.features})")
        coefficients = self.coefficients()
        rows = input.reshape(-1, self.features)
        rows = (rows.to(coefficients.dtype) if self.is_complex else rows).contiguous()
        product: Tensor = RotationsProduct.apply(rows, coefficients, self.pattern)
        return product.reshape(input.shape)

    def matrix(self) -> Tensor:
        """U, (n, n), made by multiplying every unit vector."""
        dtype = self.angles.dtype.to_complex() if self.is_complex else self.angles.dtype
        return self(torch.eye(self.features, dtype=dtype, device=self.angles.device)).mT
