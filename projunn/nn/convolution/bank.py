"""The matrices of a convolution, one for each free frequency and group, and its filter in space.

What is here does not care how pixels become channels: strides, dilations and transposed layers are the
business of `projunn.nn.convolution.layers`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from projunn.arguments import flag, per_axis, positive
from projunn.init import haar_
from projunn.layout import single
from projunn.manifold import UnitaryParameter, matrix_view
from projunn.nn.convolution.frequencies import energy_weights, full_response, resample, windowed
from projunn.nn.module import UnitaryModule, start_sketch
from projunn_kernels import frequencies
from projunn_kernels.precision import in_full_precision

Size = int | Sequence[int]


class FilterBank(UnitaryModule):
    """A matrix W_k (m, n) for every frequency k of a grid, and for every group of channels.

    Attributes:
        grid_size: the points of the grid along each axis, as many as the filter has taps.
    """

    _reals_only = True
    axes: int
    groups: int
    bias: nn.Parameter | None

    def _make(
        self,
        rows: int,
        columns: int,
        grid_size: tuple[int, ...],
        device: torch.device | str | None,
        sketch_rank: int | None,
    ) -> None:
        """Makes the parameters, without values."""
        self.grid_size = grid_size
        self.sketch_rank = sketch_rank
        self._grid = frequencies(grid_size, real=not self.is_complex)
        self.weight = self._matrices(
            self._grid.paired * self.groups,
            rows,
            columns,
            device=device,
            sketch_rank=sketch_rank,
            pairs=True,
        )
        self.own_weight: UnitaryParameter | None = None
        if not self.is_complex:
            self.own_weight = self._matrices(
                len(self._grid.own) * self.groups, rows, columns, device=device, sketch_rank=sketch_rank
            )

    def reset_parameters(self) -> None:
        """Draws the parameters anew: the same Haar-random matrix at every frequency, and a zero bias.

        The filter then has a single tap ("delta-orthogonal": Xiao et al., ICML 2018).  It is as local as
        the identity filters of arXiv 2203.05483, but mixes the channels.  For other starts call
        `projunn.init` on ``weight`` and ``own_weight``: ``identity_`` gives the paper's filter,
        ``haar_`` independent matrices, whose filter fills the whole image.
        """
        with torch.no_grad():
            banks = [matrix_view(self.weight)]
            if self.own_weight is not None:
                banks.append(self.own_weight)
            shape = (self.groups, *banks[0].shape[1:])
            matrices = haar_(banks[-1].new_empty(shape))  # real ones, if the layer is
            for bank in banks:
                bank.unflatten(0, (-1, self.groups)).copy_(matrices)
            start_sketch(self.weight)
            if self.own_weight is not None:
                start_sketch(self.own_weight)
            if self.bias is not None:
                self.bias.zero_()

    def _by_frequency(self) -> tuple[Tensor, Tensor | None]:
        """The matrices with all groups in the rows: (P, groups m, n) complex, (R, groups m, n) real."""
        paired, own = self._reals()
        return torch.view_as_complex(paired), own

    def _reals(self) -> tuple[Tensor, Tensor | None]:
        """`_by_frequency` with complex numbers as pairs of reals, as they are stored."""
        weight, own = single(self.weight), single(self.own_weight)
        return self._together(weight), None if own is None else self._together(own)

    def _together(self, matrices: Tensor) -> Tensor:
        return matrices.unflatten(0, (-1, self.groups)).flatten(1, 2)

    def frequency_response(self) -> Tensor:
        """W_k at every frequency k of the filter's grid: (*grid_size, rows, columns), complex.

        Each W_k is unitary or, if rectangular, semi-unitary; for real layers W_-k is conj(W_k).  With
        ``groups``, the rows are those of the first group's matrix, then those of the second's, and so
        on.  With a stride, the columns (of transposed layers: the rows) are ordered (channels, *position
        in the cell).  It is differentiable.
        """
        return full_response(*self._by_frequency(), self._grid)

    def _copy_filter_(self, taps: Tensor) -> None:
        """Sets the matrices to the nearest unitary ones of a filter of any size."""
        paired, own = resample(taps, self._grid, self.groups)
        matrix_view(self.weight).copy_(paired)
        if self.own_weight is not None:
            self.own_weight.copy_(own)

    @in_full_precision
    def energy_outside(self, window: Size) -> Tensor:
        """The energy of the filter outside a window around its centre: a scalar, differentiable.

            sum over the taps q outside the window of ‖K[q]‖_F^2

        It lies between 0 and ``groups`` min(m, n), for matrices W_k of size m x n.  A multiple of it
        added to the loss keeps filters local.  The published regularizer (code of arXiv 2203.05483) is,
        but for a constant, ``prod(grid_size)`` times as large: multiply its coefficient by that to take
        it over.

        Args:
            window: w, the taps to keep along each axis, or one integer for all: those that move a pixel
                by -((w - 1) // 2) to w // 2, in steps of ``stride`` or ``dilation``.  Tap q of
                ``spatial_filter()`` reads the pixel q steps ahead, so that there they lie at
                -(w // 2) to (w - 1) // 2, which is another window if w is even.  Transposed, it writes
                that pixel, and they lie at -((w - 1) // 2) to w // 2 there.

        Raises:
            ValueError: a window larger than the filter.
        """
        taps = self._window(window)
        weight, own = self._reals()
        inside = windowed(weight, own, self._grid, taps)
        count = self._grid.paired
        outside = (weight - inside[:count]).square().flatten(1).sum(1)
        if own is None:
            return outside.sum() / self._grid.points
        rest = (own - inside[count:, ..., 0]).square().flatten(1).sum(1)
        return torch.cat([outside, rest]) @ energy_weights(self._grid, outside)

    @torch.no_grad()
    @in_full_precision
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
        taps = self._window(window)
        grads = [p.grad for p in (self.weight, self.own_weight) if p is not None]
        if any(g is None for g in grads):
            return
        paired, *own = [self._together(g) for g in grads if g is not None]
        # The gradient of a paired bin's matrix counts -k too, that of an own bin's does not.
        share = 0.5 if own else 1.0
        inside = windowed(paired * share, own[0] if own else None, self._grid, taps)
        self.weight.grad.copy_((inside[: len(paired)] / share).view_as(self.weight))  # type: ignore[union-attr]
        if self.own_weight is not None:
            self.own_weight.grad.copy_(inside[len(paired) :, ..., 0].view_as(self.own_weight))  # type: ignore[union-attr]

    def _window(self, window: Size) -> tuple[int, ...]:
        taps = per_axis("window", window, self.axes)
        if any(w > s for w, s in zip(taps, self.grid_size, strict=True)):
            raise ValueError(f"window: got {taps}, wanted at most the filter's {self.grid_size}")
        return taps


def checked_bias(bias: Any) -> bool:
    """``bias``, checked to be True or False: a number is a padding, which nn.Conv2d has in its place."""
    if isinstance(bias, int | str | Sequence) and not isinstance(bias, bool):
        raise TypeError(
            f"bias: got {bias!r}, wanted True or False; a padding, as nn.Conv2d has here, cannot be"
            " chosen: the output is as large as the input, divided by the stride, and borders are"
            " circular (LocalUnitaryConv2d has padding_mode='zeros')"
        )
    return flag("bias", bias)


def checked_groups(groups: int, in_channels: int, out_channels: int) -> int:
    """``groups``, checked to divide both numbers of channels."""
    groups = positive("groups", groups)
    if in_channels % groups or out_channels % groups:
        raise ValueError(
            f"groups: got {groups}, wanted a divisor of in_channels {in_channels} and out_channels"
            f" {out_channels}"
        )
    return groups
