"""Launches of the rules: one that looks at the gradients, one that moves the averages.

As with steps (`projunn_kernels.step.launch`), what is prepared for averages that have not moved is kept.
"""

from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor

from projunn_kernels.batches import flattened, lying_flat, within_reach
from projunn_kernels.keeping import IDLE, Recent, in_force, may_keep
from projunn_kernels.launching import (
    Launch,
    address_table,
    addresses_of_flat,
    configured,
    options,
    table_of,
)
from projunn_kernels.rules.arguments import RuleStep
from projunn_kernels.rules.kernels import rule_kernel, sound_kernel

_STRETCH, _MOST_PARTS = 4096, 1024  # floats that a program looks at, and programs a matrix
_HIGH = 1 << 20  # a count of steps is two floats: an integer would be a constant of the binary
_kept: Recent["Followed"] = Recent(256, IDLE)


def follow_rule(step: RuleStep) -> Tensor:
    """`projunn_kernels.follow_rule_` of tensors as users have them."""
    first = step.gradients[0]
    if first.numel() == 0:
        return first.new_empty(len(step.gradients), *first.shape)
    lists = (step.means, step.squares, step.others)
    directions = _follow_kept(step)
    if directions is not None:
        return directions
    with ExitStack() as stack:
        means, squares, others = (
            [_written_flat(stack, tensor) for tensor in tensors] for tensors in lists
        )
        gradients = [lying_flat(tensor) for tensor in step.gradients]
        flat = replace(step, gradients=gradients, means=means, squares=squares, others=others)
        return Followed(flat)(flat)


def _written_flat(stack: ExitStack, tensor: Tensor) -> Tensor:
    """The tensor in contiguous memory; what is written there reaches it in the end."""
    return stack.enter_context(flattened(tensor)).view(tensor.shape)


def _follow_kept(step: RuleStep) -> Tensor | None:
    """The same of tensors that lie flat, by the launches kept for them, or new ones.

    Returns:
        The directions; None if a tensor does not lie flat, and nothing was done.
    """
    first, averages = step.gradients[0], (step.means, step.squares, step.others)
    places = [*map(addresses_of_flat, averages)]
    gradients = addresses_of_flat(step.gradients)
    if gradients is None:  # of buckets of `DistributedDataParallel`, say, in each step
        step = replace(step, gradients=[lying_flat(t) for t in step.gradients])
        gradients = addresses_of_flat(step.gradients)
    if gradients is None or None in places:
        return None
    if not may_keep(first):
        return Followed(step)(step)
    counts = (tuple(map(Tensor.data_ptr, tensors)) for tensors in (step.missed, step.counted))
    kind = first.shape, first.dtype, first.device, step.rule, step.nesterov
    key = (*places, *counts, *kind, *in_force(first))
    kept = _kept.found(key) or _kept.keep(key, Followed(step))
    return kept(step, table_of(gradients, first.device))


class Followed:
    """The two launches of a rule for parameters of one shape, made once.

    Args:
        step: gradients and averages (*batch, m, n), all contiguous.
    """

    def __init__(self, step: RuleStep) -> None:
        first = step.gradients[0]
        *_, m, n = first.shape
        pairs = first.is_complex()
        within_reach(first.reshape(-1, m, n), single=not pairs)
        floats = m * n * (2 if pairs else 1)
        matrices = first.numel() // (m * n)
        count = matrices * len(step.gradients)
        has = {"mean": bool(step.means), "other": bool(step.others), "counted": bool(step.counted)}
        variant = {"rule": step.rule, "nesterov": step.nesterov, **has}
        config = configured("rule", first.reshape(-1, m, n), 1, count, **variant)
        block = config.columns
        stretch = max(_STRETCH, -(-floats // _MOST_PARTS))
        stretch = -(-stretch // block) * block
        parts = -(-floats // stretch)
        sound = first.new_empty(count * parts, dtype=torch.int8)
        shares = first.new_empty(2 * count, dtype=torch.float32)
        self._numbers = tuple(step.numbers)
        self._table = table_of(self._numbers, first.device, torch.float64)
        shared = {
            "gradients": address_table(step.gradients),
            "sound": sound,
            "shares": shares,
            "missed": address_table(step.missed),
            "numbers": self._table,
            "matrices": matrices,
            "PAIRS": pairs,
            "B": block,
        } | options(config.warps)
        lists = {"means": step.means, "squares": step.squares, "others": step.others}
        tables = {n: address_table(t) if t else shared["missed"] for n, t in lists.items()}
        self._look = Launch(
            sound_kernel,
            (parts, count),
            counted=address_table(step.counted) if step.counted else shared["missed"],
            steps_high=0.0,
            steps_low=0.0,
            size=floats,
            stretch=stretch,
            COUNTED=bool(step.counted),
            CORRECTED=step.rule == "adamw",
            **shared,
        )
        self._move = Launch(
            rule_kernel,
            (-(-m * n // block), count),
            directions=sound,  # another at each call
            **tables,
            size=m * n,
            parts=parts,
            RULE=step.rule,
            MEAN=bool(step.means),
            OTHER=bool(step.others),
            NESTEROV=step.nesterov,
            **shared,
        )

    def __call__(self, step: RuleStep, gradients: Tensor | None = None) -> Tensor:
        """The directions of a step, whose gradients and numbers may be others than at first.

        ``gradients`` is the table of their addresses, if it is there already.
        """
        first = step.gradients[0]
        directions = first.new_empty(len(step.gradients), *first.shape)
        table = address_table(step.gradients) if gradients is None else gradients
        numbers = tuple(step.numbers)
        if numbers != self._numbers:
            self._numbers = numbers
            self._table = table_of(numbers, first.device, torch.float64)
        changed = {"gradients": table, "numbers": self._table}
        high, low = divmod(step.steps, _HIGH)
        self._look(steps_high=float(high), steps_low=float(low), **changed)
        written = torch.view_as_real(directions) if first.is_complex() else directions
        self._move(directions=written, **changed)
        return directions
