"""Norm-preserving convolutions: circular filters of full size, with a unitary matrix per frequency."""

from collections.abc import Sequence
from math import prod

import torch
from einops import rearrange
from torch import Tensor, nn

from projunn.arguments import check_numbers, check_strided, flag, per_axis, positive
from projunn.init import haar_
from projunn.manifold import UnitaryParameter, matrix_view
from projunn.nn.frequencies import energy_weights, filter_taps, full_response, resample, windowed
from projunn.nn.module import UnitaryModule, sketch_of, start_sketch
from projunn.nn.sketched import sketched_convolution
from projunn_kernels import fourier_convolution, frequencies

Size = int | Sequence[int]

# A stride cuts the pixels into cells at (z, y, x), and (i, j, k) is a position in the cell.
_POSITIONS_TO_CHANNELS = {
    1: "batch c (x i) ... -> batch (c i) x ...",
    2: "batch c (y i) (x j) ... -> batch (c i j) y x ...",
    3: "batch c (z i) (y j) (x k) ... -> batch (c i j k) z y x ...",
}
_TAPS_TO_FILTER = {
    1: "x out (c i) -> out c (x i)",
    2: "y x out (c i j) -> out c (y i) (x j)",
    3: "z y x out (c i j k) -> out c (z i) (y j) (x k)",
}


class _UnitaryConv(UnitaryModule):
    """``y = K * x + b`` with a circular convolution that preserves the norm; see `UnitaryConv2d`."""

    _reals_only = True
    keep_spectrum = True
    axes: int
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        spatial_size: Size,
        stride: Size = 1,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        sketch_rank: int | None = None,
    ) -> None:
        super().__init__(dtype)
        self.sketch_rank = sketch_rank
        self.in_channels = positive("in_channels", in_channels)
        self.out_channels = positive("out_channels", out_channels)
        self.spatial_size = per_axis("spatial_size", spatial_size, self.axes)
        self.stride = per_axis("stride", stride, self.axes)
        if any(s % r for s, r in zip(self.spatial_size, self.stride, strict=True)):
            raise ValueError(
                f"stride: got {self.stride}, wanted divisors of spatial_size {self.spatial_size}"
            )
        self.output_size = tuple(s // r for s, r in zip(self.spatial_size, self.stride, strict=True))
        self._grid = frequencies(self.output_size, real=not self.is_complex)
        shape = (out_channels, in_channels * prod(self.stride))
        self.weight = self._matrices(
            self._grid.paired, *shape, device=device, sketch_rank=sketch_rank, pairs=True
        )
        self.own_weight: UnitaryParameter | None = None
        if not self.is_complex:
            self.own_weight = self._matrices(
                len(self._grid.own), *shape, device=device, sketch_rank=sketch_rank
            )
        self.bias = self._plain(out_channels, device=device) if flag("bias", bias) else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters anew: the same Haar-random matrix at every frequency, and a zero bias.

        The filter then has a single tap ("delta-orthogonal": Xiao et al., ICML 2018).  It is as local as
        the identity filters of arXiv 2203.05483, but mixes the channels.  For other starts call
        `projunn.init` on ``weight`` and ``own_weight``: ``identity_`` gives the paper's filter,
        ``haar_`` independent matrices, whose filter fills the whole image.
        """
        with torch.no_grad():
            shape, real = self.weight.shape[1:3], self.weight.new_empty(0)
            matrix = haar_(real.new_empty(shape))
            paired = matrix_view(self.weight)
            if self.own_weight is None:
                matrix = haar_(paired.new_empty(shape))
            else:
                self.own_weight.copy_(matrix)
            paired.copy_(matrix)
            start_sketch(self.weight)
            if self.own_weight is not None:
                start_sketch(self.own_weight)
            if self.bias is not None:
                self.bias.zero_()

    def forward(self, input: Tensor) -> Tensor:
        weight, is_complex = self.weight, self.is_complex
        check_numbers("input", input, weight, is_complex, "reals" if is_complex else "nothing")
        check_strided("input", input)
        wanted = (self.in_channels, *self.spatial_size)
        unbatched = input.ndim == self.axes + 1
        if (
            input.ndim not in (self.axes + 1, self.axes + 2)
            or tuple(input.shape[-len(wanted) :]) != wanted
        ):
            raise ValueError(self._misfit(tuple(input.shape)))
        x = input.unsqueeze(0) if unbatched else input
        if is_complex:
            numbers = torch.promote_types(weight.dtype, torch.complex32)
            x = torch.view_as_real(x if x.is_complex() else x.to(numbers))
        x = self._gather_positions(x)
        size = list(self.output_size)
        arguments = x, weight, self.own_weight, self.bias, size, self.keep_spectrum
        if sketch_of(weight) is None:
            y, *_ = fourier_convolution(*arguments)
        else:
            y = sketched_convolution(*arguments)
        if self.is_complex:
            y = torch.view_as_complex(y)
        return y.squeeze(0) if unbatched else y

    def _gather_positions(self, x: Tensor) -> Tensor:
        """Space to depth: the positions of each cell of ``stride`` become channels.

        Real and imaginary parts, if there are any, stay on the last axis.
        """
        if prod(self.stride) == 1:
            return x
        return rearrange(x, _POSITIONS_TO_CHANNELS[self.axes], **self._cell())

    def _cell(self) -> dict[str, int]:
        """The size of a cell along each axis, by the name of the position in it: i, j, k."""
        return dict(zip("ijk", self.stride, strict=False))

    def _misfit(self, shape: tuple[int, ...]) -> str:
        message = (
            f"input: got shape {shape}, wanted (batch, {self.in_channels}, *{self.spatial_size})"
            f" or without batch"
        )
        spatial = shape[-self.axes :]
        if len(shape) > self.axes and shape[-self.axes - 1] == self.in_channels:
            message += f"; layer.resized({spatial}) gives a layer for that size"
        return message

    def _matrix_pair(self) -> tuple[Tensor, Tensor | None]:
        return torch.view_as_complex(self.weight), self.own_weight

    def frequency_response(self) -> Tensor:
        """W_k at every frequency k: (*output_size, out_channels, in_channels prod(stride)), complex.

        Each W_k is unitary or, if rectangular, semi-unitary; for real layers W_-k is conj(W_k).  With a
        stride, the columns are ordered (in_channels, *position in the cell).  It is differentiable.
        """
        return full_response(*self._matrix_pair(), self._grid)

    def spatial_filter(self) -> Tensor:
        """The filter K in the layout of ``nn.Conv2d``: (out_channels, in_channels, *spatial_size).

            y[o, p] = b[o] + sum over c, q of K[o, c, q] x[c, (stride p + q) mod spatial_size]

        K is real for a real layer, and differentiable.  This layer computes the same as
        ``torch.nn.functional.conv2d(padded, K, bias, stride)``, where ``padded`` is x, repeated
        circularly by ``size - 1`` pixels at the far end of every axis.  For a picture of K,
        ``K.roll((h // 2, w // 2), (-2, -1))`` moves the origin to the middle.
        """
        taps = filter_taps(*self._matrix_pair(), self._grid)
        spatial = tuple(range(self.axes))
        taps = taps.flip(spatial).roll((1,) * self.axes, spatial)  # cross-correlation: K[-q]
        return rearrange(taps, _TAPS_TO_FILTER[self.axes], **self._cell())

    def resized(self, spatial_size: Size) -> "_UnitaryConv":
        """A new layer for another size of input, with this layer's filter resampled.

        The Fourier transform of the centred filter is evaluated at the new frequencies, and each matrix
        is replaced by the nearest unitary one.  A local filter keeps its taps as far as unitarity
        allows.  Frequencies that both sizes have keep their matrices.  The new layer has new parameters,
        and so needs a new optimizer.

        Raises:
            ValueError: ``spatial_size`` is not positive, or the stride does not divide it.
        """
        dtype = self.weight.dtype.to_complex() if self.is_complex else self.weight.dtype
        layer = type(self)(
            self.in_channels,
            self.out_channels,
            spatial_size,
            self.stride,
            self.bias is not None,
            device=self.weight.device,
            dtype=dtype,
            sketch_rank=self.sketch_rank,
        )
        layer.keep_spectrum = self.keep_spectrum
        with torch.no_grad():
            taps = filter_taps(*self._matrix_pair(), self._grid)
            paired, own = resample(taps, layer._grid)
            matrix_view(layer.weight).copy_(paired)
            if layer.own_weight is not None:
                layer.own_weight.copy_(own)
            if self.bias is not None and layer.bias is not None:
                layer.bias.copy_(self.bias)
        return layer.train(self.training)

    def energy_outside(self, window: Size) -> Tensor:
        """The energy of the filter outside a window around its centre: a scalar, differentiable.

            sum over the taps q outside the window of ‖K[q]‖_F^2

        It lies between 0 and min(m, n), for matrices W_k of size m x n.  A multiple of it added to the
        loss keeps filters local.  The published regularizer (code of arXiv 2203.05483) is, but for a
        constant, ``prod(output_size)`` times as large: multiply its coefficient by that to take it over.

        Args:
            window: w, the taps to keep along each axis, or one integer for all: those at the offsets
                -((w - 1) // 2) to w // 2, in steps of ``stride``.

        Raises:
            ValueError: a window larger than the filter.
        """
        inside = windowed(self.weight, self.own_weight, self._grid, self._window(window))
        count = self._grid.paired
        outside = (self.weight - inside[:count]).square().flatten(1).sum(1)
        if self.own_weight is None:
            return outside.sum() / self._grid.points
        rest = (self.own_weight - inside[count:, ..., 0]).square().flatten(1).sum(1)
        return torch.cat([outside, rest]) @ energy_weights(self._grid, outside)

    @torch.no_grad()
    def project_gradient_(self, window: Size) -> None:
        """Replaces the weights' gradients by their part in a window, so that filters grow only there.

        Call it between ``backward`` and the optimizer's step.  Nothing happens if a weight has no
        gradient.  The retraction leaves the window again to second order in the step; `energy_outside`
        in the loss counters that.

        Args:
            window: as in `energy_outside`.

        Raises:
            ValueError: a window larger than the filter.
            TypeError: the layer has ``sketch_rank``.  Its gradients are sketched frequency by frequency,
                and the part inside a window is not known.
        """
        if self.sketch_rank is not None:
            raise TypeError(
                f"sketch_rank: got {self.sketch_rank}, wanted None for a projection of the gradient"
            )
        grads = [p.grad for p in (self.weight, self.own_weight) if p is not None]
        if any(g is None for g in grads):
            return
        grad, own = grads[0], grads[1] if len(grads) > 1 else None
        assert grad is not None
        # The gradient of a paired bin's matrix counts -k too, that of an own bin's does not.
        share = 1.0 if own is None else 0.5
        inside = windowed(grad * share, own, self._grid, self._window(window))
        grad.copy_(inside[: len(grad)] / share)
        if own is not None:
            own.copy_(inside[len(grad) :, ..., 0])

    def _window(self, window: Size) -> tuple[int, ...]:
        taps = per_axis("window", window, self.axes)
        if any(w > s for w, s in zip(taps, self.output_size, strict=True)):
            raise ValueError(f"window: got {taps}, wanted at most the filter's {self.output_size}")
        return taps

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, spatial_size={self.spatial_size}"
        if prod(self.stride) != 1:
            text += f", stride={self.stride}"
        if self.sketch_rank is not None:
            text += f", sketch_rank={self.sketch_rank}"
        kind = ", complex" if self.is_complex else ""
        return f"{text}, bias={self.bias is not None}{kind}"


class UnitaryConv1d(_UnitaryConv):
    """A norm-preserving circular convolution of sequences (batch, channels, length).

    Arguments, attributes, methods and errors are those of `UnitaryConv2d`, with sizes of one integer.
    """

    axes = 1


class UnitaryConv2d(_UnitaryConv):
    """``y = K * x + b``, a norm-preserving circular convolution with a filter as large as the image.

    The discrete Fourier transform makes it one product with a matrix W_k at each frequency k, and K * x
    preserves the norm exactly if all W_k are unitary (arXiv 2203.05483, section 3.4).  The layer stores
    these matrices.  For real images W_-k = conj(W_k), so only half of them are free, and those with k =
    -k are real.  Only free matrices are parameters, so that the layer stays orthogonal through any
    number of steps of `projunn.optim`, for every size, even or odd, square or not.

    With ``out_channels >= in_channels prod(stride)`` the W_k have orthonormal columns, and the norm is
    preserved (an isometry).  With fewer output channels they have orthonormal rows, and the layer
    projects.  A stride gathers the pixels of each cell into channels first, so that no pixel is dropped.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        spatial_size: height and width of the input, or one integer for both.
        stride: downsampling, one or two integers that divide ``spatial_size``.
        bias: whether to learn an additive bias for each channel.
        device: as in ``torch.nn.Conv2d``.
        dtype: float32, float64, complex64 or complex128; default: PyTorch's default dtype.
        sketch_rank: rank of sketched gradients, as in `projunn.nn.UnitaryLinear`, at every frequency.

    Shape:
        input (batch, in_channels, *spatial_size), output (batch, out_channels, *output_size); both also
        without the batch axis.  A complex layer takes real input too.  Under ``torch.autocast`` input of
        half precision is computed with in float32, and the output is float32: the norm is that of the
        input as it was rounded, to float32's accuracy.  ``channels_last`` input is read as it is by the
        GPU kernels, and copied elsewhere; the output is contiguous.

    Attributes:
        weight: the free complex matrices, a `projunn.UnitaryParameter` (P, out_channels, in_channels
            prod(stride), 2), with real and imaginary parts on the last axis.
        own_weight: the real matrices of the self-conjugate frequencies k = -k, the zero frequency first,
            a `projunn.UnitaryParameter` (R, out_channels, in_channels prod(stride)).  None for a complex
            layer, all of whose frequencies have a free complex matrix.
        bias: (out_channels), with a trailing axis (re, im) if complex, or None.  It starts at zero.
        output_size: spatial_size / stride.
        keep_spectrum: True, the default, keeps the spectrum of the input for the backward: as many
            numbers as the input has, in float32 or float64.  False keeps the input in its place, which
            costs no memory where its maker keeps it too (as a ReLU does), and one transform more.

    Raises:
        ValueError: a size that is not positive, a stride that does not divide ``spatial_size``, or input
            of another size (`resized` makes a layer for that).
        TypeError: another dtype, of the layer or of its input.
    """

    axes = 2


class UnitaryConv3d(_UnitaryConv):
    """A norm-preserving circular convolution of volumes (batch, channels, depth, height, width).

    Arguments, attributes, methods and errors are those of `UnitaryConv2d`, with sizes of three integers.
    """

    axes = 3
