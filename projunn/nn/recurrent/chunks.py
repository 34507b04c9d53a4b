"""A pass through time that keeps few states, those at the ends of chunks, and recomputes the others."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from projunn.arguments import positive
from projunn.nn.recurrent.sequences import Sequences
from projunn_kernels.backends import chosen_backend, run_under

Pass = Callable[[Tensor, list[Tensor | None], Sequences], tuple[Tensor, list[Tensor]]]


def checked(value: object) -> int | str | None:
    """``checkpoint_every``, checked: a positive integer, ``"sqrt"`` or None."""
    if value is None or (isinstance(value, str) and value == "sqrt"):
        return value
    try:
        return positive("checkpoint_every", value)
    except ValueError as error:
        raise ValueError(f'{error}, "sqrt" or None') from None


def in_chunks(
    run: Pass,
    rows: Tensor,
    initial: list[Tensor | None],
    sequences: Sequences,
    *,
    every: int | str,
    outputs: bool,
    random: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    """All states of the last layer, or None, and the last states of every layer.

    Args:
        run: goes through a part of time, from the states of its layers before it.
        rows: the input.
        initial: the states of every layer before the first time step.
        sequences: what the rows are.
        every: time steps of a chunk, or ``"sqrt"`` for the root of their number.
        outputs: whether all states are wanted.
        random: whether ``run`` draws random numbers, which are to be the same when it runs again.
    """
    length = max(1, int(sequences.steps**0.5)) if isinstance(every, str) else every
    chosen = None if torch.compiler.is_compiling() else chosen_backend()  # for the backward's thread
    recompute = torch.is_grad_enabled()

    states: list[Tensor] = []
    held = initial
    for part, chunk in sequences.chunks(rows, length):

        def through(
            part: Tensor, *before: Tensor | None, chunk: Sequences = chunk
        ) -> tuple[Tensor | None, ...]:
            states, last = run_under(chosen, run, part, list(before), chunk)
            return (states if outputs else None, *last)

        size = None if chunk.batch_sizes is None else chunk.batch_sizes[0]
        before = [None if h is None else h[:size] for h in held]
        if recompute:
            some, *last = checkpoint(
                through, part, *before, use_reentrant=False, preserve_rng_state=random
            )
        else:
            some, *last = through(part, *before)
        if some is not None:
            states.append(some)
        held = [h if old is None else _joined(h, old) for h, old in zip(last, held, strict=True)]
    return torch.cat(states) if outputs else None, [h for h in held if h is not None]


def _joined(going: Tensor, before: Tensor) -> Tensor:
    """The states of sequences that went on, and behind them the last ones of those that had ended."""
    return going if len(going) == len(before) else torch.cat([going, before[len(going) :]])
