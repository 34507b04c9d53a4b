"""Which rows of a sequence belong to which time step, and which of them start anew there."""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from projunn_kernels.keeping import sent

_PANEL = 512  # rows


class Steps:
    """The time steps of a sequence whose tensors hold all of its rows, one time step after the other.

    Padded tensors are (T, batch, ...), and every time step has ``batch`` rows.  Packed ones are
    (rows, ...): time step t has the first ``sizes[t]`` rows of the batch, and ``sizes`` never grow.

    Args:
        leading: the shape of all states; its first two axes, or its first one if they are packed, count.
        batch_sizes: the rows of each time step of packed tensors; None for padded ones.
        resets: True for each row whose state is zero before its time step, (T, batch) or (rows,); or
            None.

    Attributes:
        sizes: the rows of each time step.
        offsets: the first row of each time step among all rows, and at the end the number of all rows.
        even: True if all time steps are alike.
    """

    def __init__(
        self, leading: Sequence[int], batch_sizes: list[int] | None, resets: Tensor | None
    ) -> None:
        self.packed = batch_sizes is not None
        self.sizes: list[int]
        self.offsets: Sequence[int]
        if batch_sizes is None:
            count, batch = leading[:2]
            self.sizes = [batch] * count
            self.offsets = range(0, (count + 1) * batch, batch) if batch else [0] * (count + 1)
        else:
            self.sizes = batch_sizes
            self.offsets = [0, *accumulate(batch_sizes)]
        self.even = batch_sizes is None and resets is None
        self._mask = None if resets is None else resets.reshape(-1, 1)

    @cached_property
    def resets(self) -> list[Tensor | None]:
        """For each time step (size, 1) booleans, or None where no row is known to start anew."""
        if self._mask is None:
            return [None] * len(self.sizes)
        masks = self._mask.split(self.sizes)
        return [mask if some else None for mask, some in zip(masks, self._some, strict=True)]

    @cached_property
    def _some(self) -> list[bool]:
        """Whether each time step has a reset.  Looking would wait for a device other than the CPU."""
        mask = self._mask
        if mask is None or mask.device.type != "cpu":
            return [mask is not None] * len(self.sizes)
        total = torch.cat([mask.new_zeros(1, dtype=torch.int64), mask.squeeze(1).cumsum(0)])
        some: list[bool] = (total[torch.tensor(self.offsets, device="cpu")].diff() > 0).tolist()
        return some

    def panels(self) -> list[tuple[int, int]]:
        """Time steps in groups of a few hundred rows: the first of each, and the one after its last."""
        steps = len(self.sizes)
        if not self.packed:
            length = min(steps, max(1, _PANEL // max(1, self.sizes[0])))
            return [(begin, min(begin + length, steps)) for begin in range(0, steps, length)]
        begins = [0]
        for t in range(1, steps):
            if self.offsets[t + 1] - self.offsets[begins[-1]] > _PANEL:
                begins.append(t)
        return list(zip(begins, [*begins[1:], steps], strict=True))

    def scratch(self, like: Tensor, columns: int, panels: list[tuple[int, int]]) -> Tensor:
        """Memory for the largest panel of a tensor like ``like`` with so many columns."""
        if not self.packed:
            return like.new_empty(panels[0][1], self.sizes[0], columns)
        most = max(self.offsets[end] - self.offsets[begin] for begin, end in panels)
        return like.new_empty(most, columns)

    def part(self, tensor: Tensor, begin: int, end: int) -> Tensor:
        """The time steps ``begin`` to ``end - 1`` of a tensor that has all of them."""
        if not self.packed:
            return tensor[begin:end]
        return tensor[self.offsets[begin] : self.offsets[end]]

    def rows(self, tensor: Tensor, begin: int, end: int) -> Tensor:
        """The rows of `part`, on one axis."""
        part = self.part(tensor, begin, end)
        return part if self.packed else part.flatten(0, 1)

    def each(self, part: Tensor, begin: int, end: int) -> tuple[Tensor, ...]:
        """The rows of each time step from ``begin`` to ``end``, of what `part` returned for those."""
        return part.split(self.sizes[begin:end]) if self.packed else part.unbind()

    def last(self, states: Tensor) -> Tensor:
        """The last state of each sequence, (batch, ...): a copy."""
        if not self.packed:
            return states[-1].clone()
        ends = torch.tensor(self.ends(), device="cpu")
        return states.index_select(0, sent(ends, states.device))

    def ends(self) -> list[int]:
        """The last row of each sequence among all rows of packed tensors."""
        found: list[int] = []
        for size, offset in zip(reversed(self.sizes), reversed(self.offsets[:-1]), strict=True):
            found += range(offset + len(found), offset + size)
        return found

    def before(self, initial: Tensor, states: Tensor, begin: int, end: int) -> Tensor:
        """h_{t-1} as the time steps ``begin`` to ``end - 1`` saw it, (rows, n)."""
        found = self._before(initial, states, begin, end)
        if self._mask is None or not any(self._some[begin:end]):
            return found
        return found.masked_fill(self._mask[self.offsets[begin] : self.offsets[end]], 0)

    def _before(self, initial: Tensor, states: Tensor, begin: int, end: int) -> Tensor:
        sizes = self.sizes
        if end == begin + 1:
            return (self.rows(states, begin - 1, begin) if begin else initial)[: sizes[begin]]
        if begin and sizes[begin - 1] == sizes[end - 1]:
            return self.rows(states, begin - 1, end - 1)
        earlier = [initial] if begin == 0 else [self.rows(states, begin - 1, begin)]
        inner = self.rows(states, begin, end - 1)
        if not self.packed:
            return torch.cat([*earlier, inner])
        earlier += self.each(inner, begin, end - 1)
        return torch.cat([rows[:size] for rows, size in zip(earlier, sizes[begin:end], strict=True)])
