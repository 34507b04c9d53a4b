"""Norm-preserving convolutions: circular filters of full size, with a unitary matrix per frequency."""

from math import prod
from typing import ClassVar

import torch
from torch import Tensor, nn

from projunn.arguments import check_numbers, check_strided, per_axis, positive
from projunn.layout import HALVES, single
from projunn.manifold import matrix_view
from projunn.nn.convolution.bank import FilterBank, Size, checked_bias, checked_groups
from projunn.nn.convolution.cells import (
    cells_to_channels,
    channels_to_cells,
    filled_up,
    filter_of_taps,
    images_apart,
    images_together,
)
from projunn.nn.convolution.frequencies import filter_taps
from projunn.nn.convolution.plain import plain_convolution
from projunn.nn.module import sketch_of
from projunn.nn.sketched import sketched_convolution
from projunn_kernels import fourier_convolution

_KERNEL = 11  # images no larger may have been meant as kernels


class UnitaryConvolution(FilterBank):
    """``y = K * x + b`` with a circular convolution that preserves the norm; see `UnitaryConv2d`."""

    keep_spectrum = True
    transposed: ClassVar[bool] = False
    other: ClassVar[type["UnitaryConvolution"]]  # convolutions of transposed ones, and the reverse

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        spatial_size: Size,
        stride: Size = 1,
        bias: bool = True,
        *,
        dilation: Size = 1,
        groups: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        sketch_rank: int | None = None,
        padding: None = None,
    ) -> None:
        if padding is not None:
            raise TypeError(
                f"padding: got {padding!r}, wanted None, the only choice: the filter is as large as the"
                " input and goes round at its borders (LocalUnitaryConv2d has a small kernel and a"
                " padding_mode)"
            )
        super().__init__(dtype)
        self.in_channels = positive("in_channels", in_channels)
        self.out_channels = positive("out_channels", out_channels)
        self.spatial_size = per_axis("spatial_size", spatial_size, self.axes)
        self.stride = per_axis("stride", stride, self.axes)
        self.dilation = per_axis("dilation", dilation, self.axes)
        self.groups = checked_groups(groups, self.in_channels, self.out_channels)
        self._check_dilation()
        cells = self.spatial_size
        if not self.transposed:  # a last cell that the image does not fill is filled up with zeros
            cells = tuple(-(-s // r) for s, r in zip(cells, self.stride, strict=True))
        self.output_size = cells
        if self.transposed:
            self.output_size = tuple(s * r for s, r in zip(cells, self.stride, strict=True))
        grid_size = tuple(s // d for s, d in zip(cells, self.dilation, strict=True))
        rows, columns = self.out_channels // self.groups, self.in_channels // self.groups
        positions = prod(self.stride)
        rows, columns = (rows * positions, columns) if self.transposed else (rows, columns * positions)
        self._make(rows, columns, grid_size, device, sketch_rank)
        self.bias = self._plain(out_channels, device=device) if checked_bias(bias) else None
        self.reset_parameters()

    def _check_dilation(self) -> None:
        if prod(self.dilation) == 1:
            return
        if prod(self.stride) != 1:
            raise ValueError(
                f"dilation: got {self.dilation} with stride {self.stride}, wanted 1 for one of them: a"
                " dilated filter sees one pixel of each cell, and would drop the others"
            )
        if any(s % d for s, d in zip(self.spatial_size, self.dilation, strict=True)):
            raise ValueError(
                f"dilation: got {self.dilation}, wanted divisors of spatial_size {self.spatial_size}"
            )

    @property
    def _missing(self) -> tuple[int, ...]:
        """Pixels of the last cells that the image lacks, along each axis."""
        if self.transposed:
            return (0,) * self.axes
        return tuple(-s % r for s, r in zip(self.spatial_size, self.stride, strict=True))

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
            x = torch.view_as_real(x.resolve_conj() if x.is_complex() else x.to(numbers))
        y = self._of_images(x)
        if is_complex:
            y = torch.view_as_complex(y.contiguous())
        return y.squeeze(0) if unbatched else y

    def _of_images(self, x: Tensor) -> Tensor:
        """The convolution of a batch; complex numbers have their parts on the last axis."""
        bias: Tensor | None = self.bias
        stride = self.stride
        if self.transposed:
            if bias is not None and prod(stride) != 1:
                bias = bias.repeat_interleave(prod(stride), 0)
        else:
            if any(self._missing):
                x = filled_up(x, self._missing)
            x = cells_to_channels(x, stride)
        x = images_apart(x, self.dilation)
        weight, own, grid = self.weight, self.own_weight, (list(self.grid_size), self.keep_spectrum)
        if weight.dtype in HALVES:  # which have no Fourier transforms
            y, *_ = fourier_convolution(single(x), single(weight), single(own), single(bias), *grid)
            y = y.to(weight.dtype)
        elif sketch_of(weight) is None:
            y, *_ = fourier_convolution(x, weight, own, bias, *grid)
        else:
            y = sketched_convolution(x, weight, own, bias, *grid)
        y = images_together(y, self.dilation)
        return channels_to_cells(y, stride) if self.transposed else y

    def _misfit(self, shape: tuple[int, ...]) -> str:
        wanted = ", ".join(map(str, (self.in_channels, *self.spatial_size)))
        message = f"input: got shape {shape}, wanted (batch, {wanted}) or without batch"
        spatial = shape[-self.axes :]
        if len(shape) > self.axes and shape[-self.axes - 1] == self.in_channels:
            message += f"; layer.resized({spatial}) gives a layer for that size"
            if not self.transposed and max(self.spatial_size) <= _KERNEL:
                kernel = " x ".join(map(str, self.spatial_size))
                message += (
                    "; the third argument, spatial_size, is the size of the image: for a kernel of"
                    f" {kernel} take LocalUnitaryConv{self.axes}d"
                )
        return message

    def spatial_filter(self) -> Tensor:
        """The filter K in the layout of the weight of ``nn.Conv2d``, or of ``nn.ConvTranspose2d``.

            y[o, p] = b[o] + sum over c, q of K[o, c, q] x[c, (stride p + dilation q) mod size]
            y[o, (stride p + dilation q) mod size] += K[c, o, q] x[c, p]            (transposed)

        It is (out_channels, in_channels / groups, *grid_size stride), or transposed (in_channels,
        out_channels / groups, *grid_size stride), real for a real layer, and differentiable.  For a
        picture of K, ``K.roll((h // 2, w // 2), (-2, -1))`` moves the origin to the middle.
        """
        taps = filter_taps(*self._as_convolution(), self._grid)
        spatial = tuple(range(self.axes))
        taps = taps.flip(spatial).roll((1,) * self.axes, spatial)  # cross-correlation: K[-q]
        found = filter_of_taps(taps, self.stride)
        return found.conj().resolve_conj() if self.transposed else found

    def _as_convolution(self) -> tuple[Tensor, Tensor | None]:
        """The matrices by frequency; of a transposed layer, those of the layer that it transposes."""
        paired, own = self._by_frequency()
        if not self.transposed:
            return paired, own
        return self._adjoint(paired), None if own is None else self._adjoint(own)

    def _adjoint(self, matrices: Tensor) -> Tensor:
        """(bins, groups m, n) to (bins, groups n, m)."""
        return matrices.unflatten(1, (self.groups, -1)).mH.flatten(1, 2)

    def to_plain(self) -> nn.Sequential:
        """Modules of ``torch.nn`` that compute the same, for programs that do not know this library.

        A circular padding and an ``nn.Conv2d``, or an ``nn.ConvTranspose2d``, with a kernel as large as
        the image: ``spatial_filter()``, an ordinary weight that nothing keeps unitary.  It is slower,
        and if it is complex it takes complex input alone.
        """
        modules = plain_convolution(
            self.spatial_filter(),
            None if self.bias is None else self._numbers(self.bias),
            transposed=self.transposed,
            stride=self.stride,
            dilation=self.dilation,
            groups=self.groups,
            missing=self._missing,
        )
        if self.weight.dtype in HALVES:
            modules.to(self.weight.dtype)
        return modules.train(self.training)

    def resized(self, spatial_size: Size) -> "UnitaryConvolution":
        """A new layer for another size of input, with this layer's filter resampled.

        The Fourier transform of the centred filter is evaluated at the new frequencies, and each matrix
        is replaced by the nearest unitary one.  A local filter keeps its taps as far as unitarity
        allows.  Frequencies that both sizes have keep their matrices.  The new layer has new parameters,
        fixed where those of this one are, and so needs a new optimizer.

        Raises:
            ValueError: ``spatial_size`` is not positive, or the dilation does not divide it.
        """
        layer = self._like(type(self), spatial_size, self.bias is not None)
        with torch.no_grad():
            layer._copy_filter_(filter_taps(*self._by_frequency(), self._grid))
            if self.bias is not None and layer.bias is not None:
                layer.bias.copy_(self.bias)
        return layer

    def _like(
        self, kind: type["UnitaryConvolution"], spatial_size: Size, bias: bool
    ) -> "UnitaryConvolution":
        """A layer with the options of this one; of the other kind, from its outputs to its inputs."""
        channels = [self.in_channels, self.out_channels]
        if kind.transposed != self.transposed:
            channels.reverse()
        dtype = self.weight.dtype.to_complex() if self.is_complex else self.weight.dtype
        layer = kind(
            channels[0],
            channels[1],
            spatial_size,
            self.stride,
            bias,
            dilation=self.dilation,
            groups=self.groups,
            device=self.weight.device,
            dtype=dtype,
            sketch_rank=self.sketch_rank,
        )
        layer.keep_spectrum = self.keep_spectrum
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(getattr(self, name).requires_grad)
        return layer.train(self.training)

    def adjoint(self) -> "UnitaryConvolution":
        """A new layer, without bias, of the adjoint: of W_k^H at every frequency.

        That of `UnitaryConv2d` is a `UnitaryConvTranspose2d`, and the reverse.  Where the matrices are
        square it undoes the convolution.  Its parameters are copies: a loss of its output has no
        gradient for this layer.  ``torch.func.vjp`` of a real layer is its adjoint too, with gradients.

        Raises:
            ValueError: the stride does not divide ``spatial_size``.
        """
        if any(self._missing):
            raise ValueError(
                f"stride: got {self.stride}, wanted divisors of spatial_size {self.spatial_size} for an"
                " adjoint: the zeros that fill the last cells have no place in its output"
            )
        layer = self._like(self.other, self.output_size, bias=False)
        with torch.no_grad():
            matrix_view(layer.weight).copy_(matrix_view(self.weight).mH)
            if layer.own_weight is not None and self.own_weight is not None:
                layer.own_weight.copy_(self.own_weight.mT)
        return layer

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, spatial_size={self.spatial_size}"
        for name in ("stride", "dilation"):
            if prod(getattr(self, name)) != 1:
                text += f", {name}={getattr(self, name)}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.sketch_rank is not None:
            text += f", sketch_rank={self.sketch_rank}"
        kind = ", complex" if self.is_complex else ""
        return f"{text}, bias={self.bias is not None}{kind}"
