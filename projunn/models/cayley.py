"""The Cayley convolution of Trockman and Kolter (ICLR 2021): a baseline to compare with."""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from projunn.arguments import check_numbers, check_strided, flag, per_axis, positive
from projunn_kernels.precision import exact_product


class CayleyConv2d(nn.Module):
    """An orthogonal circular convolution by a Cayley transform at every frequency, from a small filter.

    The filter is scaled to norm g.  Its discrete Fourier transform at each frequency of the half grid of
    real images is a matrix W = [U; V] with U square, and the layer multiplies by Q:

        A = U - U^H + V^H V        Q = [(I - A) (I + A)^-1; -2 V (I + A)^-1]

    Q has orthonormal columns or, where there are fewer outputs than inputs, orthonormal rows, by
    transposition.  The parameters are unconstrained: every forward pass makes the matrices anew, in
    O(C^3) for each frequency, and autograd goes through the inverse.  Source: Trockman, Kolter, ICLR
    2021, sections 3 and 4.

    Args:
        in_channels, out_channels, spatial_size, bias: as in `projunn.nn.UnitaryConv2d`.
        stride: downsampling along both axes, one integer that divides them.
        kernel_size: taps of the filter along each axis, at most as many as there are pixels.

    Shape:
        input (batch, in_channels, *spatial_size), output (batch, out_channels, *output_size), real.

    Raises:
        ValueError: a size that is not positive, a stride that does not divide ``spatial_size``, or input
            of another size.
        TypeError: input of another dtype.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        spatial_size: int | tuple[int, int],
        stride: int = 1,
        bias: bool = True,
        *,
        kernel_size: int = 3,
    ) -> None:
        super().__init__()
        size = per_axis("spatial_size", spatial_size, 2)
        if any(s % positive("stride", stride) for s in size):
            raise ValueError(f"stride: got {stride}, wanted a divisor of spatial_size {size}")
        self._shape = positive("in_channels", in_channels), *size
        self.stride = stride
        self.output_size = (size[0] // stride, size[1] // stride)
        self.kernel_size = tuple(min(positive("kernel_size", kernel_size), s) for s in self.output_size)
        shape = (positive("out_channels", out_channels), in_channels * stride**2, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape))
        self.gain = nn.Parameter(torch.empty(()))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if flag("bias", bias) else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the filter anew as ``nn.Conv2d`` does, and sets g to its norm."""
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        with torch.no_grad():
            self.gain.copy_(self.weight.norm())

    def frequency_response(self) -> Tensor:
        """Q at the frequencies of the half grid: (h, w // 2 + 1, out_channels, in_channels stride^2).

        h and w are those of the output.
        """
        weight = self.weight * (self.gain / self.weight.norm())
        height, width = self.output_size
        pad = (0, width - self.kernel_size[1], 0, height - self.kernel_size[0])
        centre = [-(k // 2) for k in self.kernel_size]
        taps = functional.pad(weight, pad).roll(centre, (-2, -1))
        return _cayley(rearrange(torch.fft.rfft2(taps), "out c h w -> h w out c"))

    def forward(self, input: Tensor) -> Tensor:
        check_numbers("input", input, self.weight, False)
        check_strided("input", input)
        if input.shape[1:] != self._shape:
            wanted = ", ".join(map(str, self._shape))
            raise ValueError(f"input: got shape {tuple(input.shape)}, wanted (batch, {wanted})")
        x = functional.pixel_unshuffle(input, self.stride) if self.stride > 1 else input
        spectrum = rearrange(torch.fft.rfft2(x), "batch c h w -> h w batch c")
        product = rearrange(spectrum @ self.frequency_response().mT, "h w batch out -> batch out h w")
        y = torch.fft.irfft2(product, s=self.output_size)
        return y if self.bias is None else y + self.bias[:, None, None]


def _cayley(w: Tensor) -> Tensor:
    m, n = w.shape[-2:]
    if m < n:
        return _cayley(w.mT).mT
    u, v = w[..., :n, :], w[..., n:, :]
    identity = torch.eye(n, dtype=w.dtype, device=w.device)
    a = u - u.mH + exact_product(v.mH, v)
    inverse = torch.linalg.inv(identity + a)
    parts = [exact_product(part, inverse) for part in (identity - a, -2 * v)]
    return torch.cat(parts, dim=-2)
