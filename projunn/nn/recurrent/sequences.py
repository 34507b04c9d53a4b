"""Which rows of a recurrent layer's input are which time steps of which sequence."""

from collections.abc import Iterator

import torch
from torch import Tensor

from projunn_kernels.keeping import sent


class Sequences:
    """The lengths of a batch of sequences, and where their states are reset.

    Args:
        steps: T, the number of time steps of the longest.
        batch_sizes: of packed sequences, whose tensors are (rows, features), how many sequences each
            time step has, as in `torch.nn.utils.rnn.PackedSequence`; None for tensors
            (T, batch, features).
        resets: booleans, (T, batch) or (rows,), or None: where one is True, the state before that time
            step becomes zero.
    """

    def __init__(
        self, steps: int, batch_sizes: list[int] | None = None, resets: Tensor | None = None
    ) -> None:
        self.steps, self.batch_sizes, self.resets = steps, batch_sizes, resets
        self._mirror: Tensor | None = None

    def flip(self, rows: Tensor) -> Tensor:
        """Each sequence from its end to its beginning, within its length."""
        if self.batch_sizes is None:
            return rows.flip(0)
        if self._mirror is None:
            self._mirror = sent(_mirror(self.batch_sizes), rows.device)
        return rows.index_select(0, self._mirror)

    def flipped(self) -> "Sequences":
        """The same sequences from their ends to their beginnings.

        A reset before time step t cuts between t - 1 and t, and so it does seen from the end.
        """
        resets = self.resets
        if resets is not None:
            later = self.flip(resets)
            if self.batch_sizes is None:
                # No slice of T - 1 steps: `torch.export` would ask whether that is 1.
                inner = torch.arange(later.shape[0], device=later.device) > 0
                resets = later.roll(1, 0) & inner.unsqueeze(1)
            else:
                sizes, first = torch.tensor(self.batch_sizes, device="cpu"), self.batch_sizes[0]
                earlier = sizes[:-1].repeat_interleave(sizes[1:])  # how far off the last step's row is
                before = torch.arange(first, len(later), device="cpu") - earlier
                moved = later.index_select(0, sent(before, later.device))
                resets = torch.cat([torch.zeros_like(later[:first]), moved])
        found = Sequences(self.steps, self.batch_sizes, resets)
        found._mirror = self._mirror
        return found

    def chunks(self, rows: Tensor, every: int) -> Iterator[tuple[Tensor, "Sequences"]]:
        """The rows of so many time steps at a time, as views, each with its `Sequences`."""
        begins = range(0, self.steps, every)
        lengths = [min(every, self.steps - begin) for begin in begins]
        sizes: list[list[int] | None] = [None] * len(begins)
        counts = lengths
        if self.batch_sizes is not None:
            parts = [self.batch_sizes[begin : begin + every] for begin in begins]
            sizes, counts = list(parts), [sum(part) for part in parts]
        masks = [None] * len(begins) if self.resets is None else self.resets.split(counts)
        for part, length, batch_sizes, mask in zip(
            rows.split(counts), lengths, sizes, masks, strict=True
        ):
            yield part, Sequences(length, batch_sizes, mask)


def _mirror(batch_sizes: list[int]) -> Tensor:
    """For each packed row, the row of the same sequence that is as far from its other end."""
    sizes = torch.tensor(batch_sizes, device="cpu")
    offsets = sizes.cumsum(0) - sizes
    lengths = (torch.arange(batch_sizes[0], device="cpu") < sizes.unsqueeze(1)).sum(0)
    time = torch.arange(len(batch_sizes), device="cpu").repeat_interleave(sizes)
    sequence = torch.arange(sum(batch_sizes), device="cpu") - offsets[time]
    return offsets[lengths[sequence] - 1 - time] + sequence
