"""Launches of the rules: one that looks at the gradients, one that moves the averages.

As with steps (`projunn_kernels.step.launch`), what is prepared for averages that have not moved is kept.
"""

import math
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor

from projunn_kernels.batches import flattened, lying_flat, within_reach
from projunn_kernels.configs.problem import Problem, device_of, power_of_two
from projunn_kernels.keeping import IDLE, Recent, in_force, may_keep
from projunn_kernels.launching import (
    Launch,
    Matrices,
    address_table,
    addresses_of_flat,
    configured,
    floats,
    options,
    table_of,
)
from projunn_kernels.products.launch import row_splits
from projunn_kernels.rules.arguments import RuleStep
from projunn_kernels.rules.kernels import PARTS, rule_kernel, rule_product_kernel, sound_kernel

_STRETCH = 4096  # floats that a program looks at; more where a matrix has more than `PARTS` such
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
    """Follow a rule on tensors that lie flat, by the launches kept for them, or new ones.

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
    kept = _kept.made(key, lambda: Followed(step))
    return kept(step, table_of(gradients, first.device))


class Look:
    """The launch that looks at the gradients of a rule's step, before another moves its averages.

    Args:
        step: gradients and averages (*batch, m, n), all contiguous.

    Attributes:
        block, warps: of both launches.
        arguments: what the other one takes of the rule, but for the gradients: averages, constants, and
            the memory that tells whose averages move.
    """

    def __init__(self, step: RuleStep) -> None:
        first = step.gradients[0]
        *_, m, n = first.shape
        pairs = first.is_complex()
        within_reach(first.reshape(-1, m, n), single=not pairs)
        floats = m * n * (2 if pairs else 1)
        matrices = first.numel() // (m * n)
        count = matrices * len(step.gradients)
        form, counts = step.form, bool(step.counted)
        config = configured("rule", first.reshape(-1, m, n), 1, count, **form, counted=counts)
        self.block, self.warps = config.columns, config.warps
        stretch = max(_STRETCH, -(-floats // PARTS.value))
        stretch = -(-stretch // self.block) * self.block
        parts = -(-floats // stretch)
        finite = first.new_empty(count * parts, dtype=torch.int8)
        shares = first.new_empty(2 * count, dtype=torch.float32)
        self._numbers = tuple(step.numbers)
        self._table = table_of(self._numbers, first.device, torch.float64)
        missed = address_table(step.missed)
        shared = {"finite": finite, "shares": shares, "missed": missed, "numbers": self._table}
        self._look = Launch(
            sound_kernel,
            (parts, count),
            gradients=missed,  # others at each call
            counted=address_table(step.counted) if step.counted else missed,
            steps_high=0.0,
            steps_low=0.0,
            matrices=matrices,
            size=floats,
            stretch=stretch,
            COUNTED=counts,
            CORRECTED=step.rule == "adamw",
            PAIRS=pairs,
            B=self.block,
            **shared,
            **options(self.warps),
        )
        lists = {"means": step.means, "squares": step.squares, "others": step.others}
        tables = {name: address_table(own) if own else missed for name, own in lists.items()}
        constants = {name.upper(): value for name, value in form.items()}
        self.arguments = {**shared, **tables, "parts": parts, **constants}

    def __call__(self, step: RuleStep, gradients: Tensor) -> dict[str, Tensor]:
        """Look at the gradients of a step, of which there is the table of their addresses.

        Returns:
            Those of the `arguments` that have changed since the first call.
        """
        numbers = tuple(step.numbers)
        if numbers != self._numbers:
            self._numbers = numbers
            self._table = table_of(numbers, gradients.device, torch.float64)
        high, low = divmod(step.steps, _HIGH)
        changed = {"numbers": self._table}
        self._look(gradients=gradients, steps_high=float(high), steps_low=float(low), **changed)
        return changed


class Followed:
    """The two launches of a rule for parameters of one shape, made once.

    Args:
        step: gradients and averages (*batch, m, n), all contiguous.
    """

    def __init__(self, step: RuleStep) -> None:
        self._look = look = Look(step)
        first = step.gradients[0]
        size = first.shape[-2] * first.shape[-1]
        matrices = first.numel() // size
        self._move = Launch(
            rule_kernel,
            (-(-size // look.block), matrices * len(step.gradients)),
            gradients=look.arguments["missed"],  # these two are others at each call
            directions=look.arguments["missed"],
            matrices=matrices,
            size=size,
            PAIRS=first.is_complex(),
            B=look.block,
            **look.arguments,
            **options(look.warps),
        )

    def __call__(self, step: RuleStep, gradients: Tensor | None = None) -> Tensor:
        """The directions of a step, whose gradients and numbers may be others than at first.

        ``gradients`` is the table of their addresses, if it is there already.
        """
        first = step.gradients[0]
        directions = first.new_empty(len(step.gradients), *first.shape)
        table = address_table(step.gradients) if gradients is None else gradients
        written = torch.view_as_real(directions) if first.is_complex() else directions
        self._move(directions=written, gradients=table, **self._look(step, table))
        return directions


class FollowedProduct:
    """The two launches of a rule, of which the second makes partial sums of ``D^H R`` too, made once.

    Args:
        step: gradients and averages (*batch, m, n), all contiguous.
        bases: the table of the addresses of R (*batch, m, k) of each parameter, k <= MAX_RANK.
        k: its columns.

    Attributes:
        partial: the partial sums, (A, splits, k, n), of all matrices of the parameters.
        directions: a stand-in for the directions, which are others at each call.
    """

    def __init__(self, step: RuleStep, bases: Tensor, k: int) -> None:
        self._look = look = Look(step)
        first = step.gradients[0]
        *batch, m, n = first.shape
        pairs, count = first.is_complex(), math.prod(batch) * len(step.gradients)
        self._shape = count, m, n
        self.directions = Matrices.of(first.new_empty(1).expand(count, m, n))
        config = configured("rule_product", first.reshape(-1, m, n), k, count, **step.form)
        problem = Problem("rule_product", pairs, k, m, n, count)
        splits, rows_each = row_splits(problem, config, device_of(first.device))
        self.partial = first.new_empty(count, splits, k, n)
        self._move = Launch(
            rule_product_kernel,
            (-(-n // config.columns), splits, count),
            gradients=look.arguments["missed"],  # these two are others at each call
            directions=look.arguments["missed"],
            bases=bases,
            partial=floats(self.partial),
            matrices=math.prod(batch),
            m=m,
            n=n,
            k=k,
            rows_each=rows_each,
            splits=splits,
            PAIRS=pairs,
            BM=config.rows,
            BN=config.columns,
            K=power_of_two(k),
            **look.arguments,
            **options(config.warps),
        )

    def __call__(self, step: RuleStep, gradients: Tensor, stored: Tensor | None = None) -> Tensor:
        """The directions (A, m, n) of a step, whose gradients and numbers may be others than at first.

        ``gradients`` is the table of their addresses, ``stored`` a place for the directions, if there is
        one already.  Complex directions come as pairs.
        """
        directions = floats(step.gradients[0].new_empty(self._shape) if stored is None else stored)
        self._move(directions=directions, gradients=gradients, **self._look(step, gradients))
        return directions
