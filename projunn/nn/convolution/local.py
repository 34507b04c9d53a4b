"""Norm-preserving convolutions with a small kernel, for images of any size."""

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from projunn.arguments import check_numbers, check_strided, one_of, per_axis, positive
from projunn.init import haar_
from projunn.manifold import matrix_view
from projunn.nn.convolution.bank import Size, checked_bias
from projunn.nn.convolution.cells import cells_to_channels, filled_up, wrapped_around
from projunn.nn.convolution.plain import plain_local_convolution
from projunn.nn.module import UnitaryModule
from projunn_kernels.precision import exact_product

_CONVOLVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
PADDINGS = ("circular", "zeros")
_FEW = 6  # factors, whose rounding errors have products far from the smallest normal number


class LocalUnitaryConvolution(UnitaryModule):
    """``y = K * x + b`` with a small kernel K; see `LocalUnitaryConv2d`."""

    _reals_only = True
    axes: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        bias: bool = True,
        padding_mode: str = "circular",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dtype)
        self.in_channels = positive("in_channels", in_channels)
        self.out_channels = positive("out_channels", out_channels)
        self.kernel_size = per_axis("kernel_size", kernel_size, self.axes)
        self.stride = per_axis("stride", stride, self.axes)
        self.padding_mode = one_of("padding_mode", padding_mode, PADDINGS)
        columns = self.in_channels * prod(self.stride)
        width, factors = max(self.out_channels, columns), sum(k - 1 for k in self.kernel_size)
        self.weight = self._matrices(self.out_channels, columns, device=device)
        self.directions = self._matrices(factors, width, (width + 1) // 2, device=device)
        self.bias = self._plain(self.out_channels, device=device) if checked_bias(bias) else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters anew: a kernel that mixes channels and, if odd, has a single tap.

        The subspaces of each second factor are those that the factor before it lets pass, so that both
        together shift all channels by one pixel (nearly, if the wider side has an odd number of them).
        """
        with torch.no_grad():
            haar_(matrix_view(self.weight))
            directions = matrix_view(self.directions)
            width, rank = directions.shape[1:]
            basis = haar_(directions.new_empty(len(directions), width, width))
            directions[0::2] = basis[0::2, :, :rank]
            directions[1::2] = basis[0::2, :, width - rank :][: len(directions) // 2]
            if self.bias is not None:
                self.bias.zero_()

    def forward(self, input: Tensor) -> Tensor:
        weight, is_complex = self.weight, self.is_complex
        check_numbers("input", input, weight, is_complex, "all numbers" if is_complex else "nothing")
        check_strided("input", input)
        unbatched = input.ndim == self.axes + 1
        channels = input.shape[-self.axes - 1] if unbatched or input.ndim == self.axes + 2 else None
        if channels != self.in_channels:
            raise ValueError(
                f"input: got shape {tuple(input.shape)}, wanted (batch, {self.in_channels}, *size) with"
                f" {self.axes} sizes, or without batch"
            )
        x = input.unsqueeze(0) if unbatched else input
        if is_complex and not x.is_complex():
            x = x.to(self._numbers(weight).dtype)
        missing = tuple(-s % r for s, r in zip(x.shape[2:], self.stride, strict=True))
        x = cells_to_channels(filled_up(x, missing) if any(missing) else x, self.stride)
        if any(k > s + 1 for k, s in zip(self.kernel_size, x.shape[2:], strict=True)):
            raise ValueError(
                f"input: got shape {tuple(input.shape)}, smaller than the kernel {self.kernel_size} in"
                f" steps of the stride {self.stride}"
            )
        before, after = [(k - 1) // 2 for k in self.kernel_size], [k // 2 for k in self.kernel_size]
        if self.padding_mode == "circular":
            x = wrapped_around(x, before, after)
        else:
            pairs = zip(reversed(before), reversed(after), strict=True)
            x = functional.pad(x, [width for pair in pairs for width in pair])
        bias = None if self.bias is None else self._numbers(self.bias)
        y = _CONVOLVE[self.axes](x, self.kernel(), bias)
        return y.squeeze(0) if unbatched else y

    def kernel(self) -> Tensor:
        """K, (out_channels, in_channels prod(stride), *kernel_size), differentiable.

        It is a cross-correlation of cells of ``stride`` pixels with the origin at (k - 1) // 2:
        y[p] = sum_q K[q] x[p + q - (k - 1) // 2].
        """
        return kernel_of(self._numbers(self.weight), self._numbers(self.directions), self.kernel_size)

    def to_plain(self) -> nn.Sequential:
        """Modules of ``torch.nn`` that compute the same, for programs that do not know this library.

        A padding and an ``nn.Conv2d`` with this kernel, which is then not made anew at each call; with a
        stride ``nn.PixelUnshuffle`` before them, which takes only images that the stride divides.

        Raises:
            ValueError: a stride of sequences or volumes, or one that differs from axis to axis.
        """
        return plain_local_convolution(
            self.kernel(),
            None if self.bias is None else self._numbers(self.bias),
            stride=self.stride,
            padding_mode=self.padding_mode,
        ).train(self.training)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        if prod(self.stride) != 1:
            text += f", stride={self.stride}"
        text += f", bias={self.bias is not None}"
        if self.padding_mode != "circular":
            text += f", padding_mode={self.padding_mode}"
        return f"{text}, complex" if self.is_complex else text


def kernel_of(weight: Tensor, directions: Tensor, kernel_size: tuple[int, ...]) -> Tensor:
    """The kernel of a mixing matrix and of the subspaces of all factors; see `LocalUnitaryConv2d`.

    The mixing matrix comes first in the products, because its other side may be much smaller.
    """
    tall = weight.shape[0] >= weight.shape[1]
    several = sum(kernel_size) - len(kernel_size)
    lines = [_line(factors, several) for factors in directions.split([k - 1 for k in kernel_size])]
    taps = weight
    for axis, line in enumerate(reversed(lines) if tall else lines):
        if tall:
            taps = exact_product(line.view(-1, *(1,) * axis, *line.shape[1:]), taps.unsqueeze(0))
        else:
            taps = exact_product(taps.unsqueeze(axis), line.view(*(1,) * axis, *line.shape))
        taps = _without_specks(taps, several)
    return taps.movedim((-2, -1), (0, 1))


def _line(directions: Tensor, several: int) -> Tensor:
    """The taps (k, w, w) of a product of k - 1 factors P + (I - P) z, P = V V^H, along one axis.

    Args:
        directions: the V, (k - 1, w, r).
        several: the number of factors of the whole kernel.
    """
    width = directions.shape[1]
    identity = torch.eye(width, dtype=directions.dtype, device=directions.device)
    taps = identity[None]
    for v in directions:
        kept = exact_product(exact_product(taps, v), v.mH)
        nothing = torch.zeros_like(taps[:1])
        taps = torch.cat([kept, nothing]) + torch.cat([nothing, taps - kept])
        taps = _without_specks(taps, several)
    return taps


def _without_specks(taps: Tensor, factors: int) -> Tensor:
    """The taps, without entries below 1e-19 (1e-154 in float64), and with the derivatives of all.

    A new layer has one tap, and in the place of each other one a product of as many rounding errors as
    it is pixels away.  In a kernel of many factors these are subnormal numbers, with which a CPU takes
    up to 70 times as long.
    """
    if factors <= _FEW or taps.is_cuda:
        return taps
    known = taps.detach()
    smallest = torch.finfo(known.dtype).tiny ** 0.5
    return taps - torch.where(known.abs() < smallest, known, torch.zeros_like(known))


class LocalUnitaryConv1d(LocalUnitaryConvolution):
    """A norm-preserving convolution of sequences (batch, channels, length) with a small kernel.

    Arguments, attributes, methods and errors are those of `LocalUnitaryConv2d`, with sizes of one
    integer.
    """

    axes = 1


class LocalUnitaryConv2d(LocalUnitaryConvolution):
    """``y = K * x + b`` with a kernel of a few taps, unitary for images of every size.

    Its transfer function, with z for a shift by one pixel along an axis, is a product of one matrix that
    mixes the channels and of factors that shift some of their directions by a pixel,

        K(z) = prod_i (P_i + (I - P_i) z) Q,        P_i = V_i V_i^H,

    which is unitary for every |z| = 1 since each factor is (Vaidyanathan, Multirate Systems and Filter
    Banks, 1993, section 14.4; Li, Haque, Anil, Lucas, Grosse, Jacobsen, NeurIPS 2019, for images).  Q
    and the V_i, with half as many columns as rows, are what is trained.  An axis with k taps has k - 1
    factors; those of the rows come first, then those of the columns.  Not every orthogonal convolution
    of that size is such a product, and training may end in a local minimum of the products: with
    `UnitaryConv2d` neither holds, but it has as many parameters as its image has pixels.

    The kernel is made anew at each forward, k - 1 products of matrices an axis, and goes through
    ``torch.nn.functional.conv2d``.  With many more pixels in a batch than channels the layer takes the
    time of a plain convolution; `to_plain` makes the kernel once and for all.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.  With at least in_channels prod(stride) the norm is
            preserved, with fewer the layer projects.
        kernel_size: taps along each axis, one or two integers.
        stride: downsampling.  The pixels of each cell become channels first, and the taps are cells;
            zeros fill the last cells where it does not divide the image.
        bias: whether to learn an additive bias for each channel.
        padding_mode: ``"circular"``, or ``"zeros"``: then the norm does not grow, but what the kernel
            shifts beyond the border is lost.
        device: as in ``torch.nn.Conv2d``.
        dtype: float32, float64, complex64 or complex128; default: PyTorch's default dtype.

    Shape:
        input (batch, in_channels, *size), output (batch, out_channels, *ceil(size / stride)); both also
        without the batch axis.

    Attributes:
        weight: Q, a `projunn.UnitaryParameter` (out_channels, in_channels prod(stride)).
        directions: the V_i, a `projunn.UnitaryParameter` (sum of kernel_size - 1, w, (w + 1) / 2), w the
            larger side of Q.  Complex ones of both are stored as pairs of reals, on a last axis.
        bias: (out_channels), or None.  It starts at zero.

    Raises:
        ValueError: a size that is not positive, another padding, or input of another shape or smaller
            than the kernel.
        TypeError: another dtype, of the layer or of its input.
    """

    axes = 2


class LocalUnitaryConv3d(LocalUnitaryConvolution):
    """A norm-preserving convolution of volumes (batch, channels, *size) with a small kernel.

    Arguments, attributes, methods and errors are those of `LocalUnitaryConv2d`, with sizes of three
    integers.
    """

    axes = 3
