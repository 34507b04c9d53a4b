"""Launches of a step that reads its direction once."""

from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from projunn_kernels.configs.problem import Config, Device, Problem, device_of
from projunn_kernels.factorization.launch import orthonormal_launch
from projunn_kernels.keeping import outside_of_graphs, unread
from projunn_kernels.launching import (
    Launch,
    Matrices,
    address_table,
    floats,
    half_precision,
    options,
)
from projunn_kernels.products.launch import row_splits
from projunn_kernels.retraction.launch import rotation_launch
from projunn_kernels.rules.arguments import NO_RULE, RuleStep
from projunn_kernels.rules.launch import Look
from projunn_kernels.single_pass.kernels import (
    ahead_is_sound_kernel,
    both_products_kernel,
    rotate_ahead_kernel,
)
from projunn_kernels.step.arguments import FusedStep, batch_of


class SinglePass:
    """The launches of a step of rank one with ``factorization="single_pass"``, made once.

    W^H R for the next step is kept between calls.  It is that of the weights and bases of which PyTorch
    says that nobody has changed them since (their versions); else the next call makes it anew, which
    reads W once more.  What changes them unseen, such as ``weight.data.copy_(..)``, is noticed by the
    kernels, which compare it with a few columns of W: that step is not taken.

    Versions tell nothing where a graph replays steps.  To ``mend`` the kernels look before the step, and
    make W^H R anew where it is wrong.  They look at a few columns, so that memory of a graph's own, in
    which other launches leave what they like between two replays, is never trusted.

    Args:
        step: the step, without ``active``: weights (*batch, m, n), m <= n, directions, bases
            (*batch, m + n, 1), all contiguous, and counters.
        ahead: the attribute of another that has taken the same steps.
        mend: whether to look before a step.
        rule: what finds the directions from gradients, which ``step`` has in their place; its averages
            are contiguous too.  It counts what is ``missed``.

    Attributes:
        ahead: partial sums of W^H R.
        lasts: whether nothing else can be written there: the memory is no graph's own.
    """

    def __init__(
        self,
        step: FusedStep,
        ahead: Tensor | None = None,
        mend: bool = False,
        rule: RuleStep | None = None,
    ) -> None:
        weights = Matrices.of_all(step.weights, step.pairs)
        directions = Matrices.of_all(step.directions, step.pairs)
        self._mends, self._known = mend, None
        # Others may come to lie at their addresses, by which launches are kept, once these are gone.
        self._bases = [ref(basis) for basis in step.bases]
        count, (_, m, n) = weights.count, weights.sample.shape
        pairs, device = weights.sample.is_complex(), weights.sample.device
        like = {"dtype": weights.sample.dtype, "device": device}
        self._look = None if rule is None else Look(rule)
        # What a rule has counted must not be counted again.
        self._uncounted = [] if rule is None else [unread(t) for t in step.missed]
        form = NO_RULE if rule is None else rule.form
        tile = weights.config("both_products", 1, gradient=half_precision(directions.sample), **form)
        panel = weights.config("rotate_ahead", 1)
        tiles, sized = -(-n // tile.columns), Problem("both_products", pairs, 1, m, n, count)
        splits, rows_each = row_splits(sized, tile, device_of(device))
        panels = -(-m // (_row_groups(sized, panel, device_of(device)) * panel.rows))
        groups = -(-m // (panels * panel.rows))
        pulled = torch.empty(count, splits, 1, n, **like)
        pushed = torch.empty(count, tiles, 1, m, **like)
        make = partial(torch.empty, count, groups, n, **like)
        ahead = outside_of_graphs(make, device) if ahead is None else ahead
        self.lasts = ahead is not None
        self.ahead = make() if ahead is None else ahead
        moved = torch.empty(count, 1, 1, n, **like)
        sound = torch.empty(count, tiles, dtype=torch.int8, device=device)
        bases = address_table(step.bases)
        shared = {"weights": weights.base, "bases": bases, "ahead": floats(self.ahead), "sound": sound}
        shared |= {"matrices": weights.sample.shape[0], "m": m, "n": n, "PAIRS": pairs}
        followed = _no_rule(bases) if self._look is None else self._look.arguments
        self._both = Launch(
            both_products_kernel,
            (tiles, splits + 1, count),
            directions=directions.base,
            pulled=floats(pulled),
            pushed=floats(pushed),
            moved=floats(moved),
            rows_each=rows_each,
            splits=splits,
            groups=groups,
            TYPE=directions.arguments["TYPE"],
            BM=tile.rows,
            BN=tile.columns,
            **followed,
            **shared,
            **options(tile.warps),
        )
        self._normalize, fresh = orthonormal_launch(pushed)
        self._basis, rotation = rotation_launch(
            weights, pulled, moved, step.retraction, step.rate, step.scale
        )
        mask = torch.empty(count, dtype=torch.int8, device=device)
        turn = {
            "probes": address_table(step.probes),
            "basis": floats(rotation.basis),
            "rotated_basis": floats(rotation.rotated),
            "fresh": floats(fresh),
            "taken_mask": rotation.taken,
            "mask": mask,
            "skipped": address_table(step.skipped),
            "missed": address_table(self._uncounted or step.missed),
            "panels": panels,
            "tiles": tiles,
            "BM": panel.rows,
            "BN": panel.columns,
            **shared,
            **options(panel.warps),
        }
        self._mend, self._turn = (
            Launch(rotate_ahead_kernel, (groups, count), STEP=step, **turn) for step in (False, True)
        )
        looks = mend and self.lasts
        self._unsound, self._loaded = sound if looks else torch.zeros_like(sound), mend
        self._check = Launch(
            ahead_is_sound_kernel,
            (tiles, count),
            groups=groups,
            columns=tile.columns,
            **shared,
            **options(panel.warps),
        )
        self._mask = mask.view(torch.bool).view(batch_of(step))

    def __call__(
        self, step: FusedStep, directions: Tensor | None = None, rule: RuleStep | None = None
    ) -> Tensor:
        """Take the step: directions, rate and scale may be others than those of the first.

        Args:
            step: the step.
            directions: the table of the addresses of its directions, if it is there already.
            rule: that of this step, if it follows one: gradients and numbers may be others too.

        Returns:
            The mask of the steps taken, which the next call overwrites.
        """
        versions = None if self._mends else _versions(step)
        if self._mends and self.lasts:
            self._check()
            self._mend()
        elif versions is None or not self._has_seen(step.bases) or versions != self._known:
            if not self._loaded:  # a graph may be next, and no capture may load a kernel
                self._check()
                self._loaded = True
            self._mend(sound=self._unsound)
        table = address_table(step.directions) if directions is None else directions
        changed = {} if self._look is None or rule is None else self._look(rule, table)
        self._both(directions=table, **changed)
        self._normalize()
        rate: dict[str, Any] = {"rate": step.rate}
        if step.scale is not None:
            rate["rate_tensor"] = step.scale
        self._basis(**rate)
        self._turn()
        # The operation that has called tells PyTorch that each of them has changed once.
        self._known = None if versions is None else [version + 1 for version in versions]
        return self._mask

    def _has_seen(self, bases: list[Tensor]) -> bool:
        """Whether bases are those of the last step; takes note of them."""
        last, self._bases = self._bases, [ref(basis) for basis in bases]
        return all(known() is basis for known, basis in zip(last, bases, strict=True))


def _row_groups(problem: Problem, config: Config, device: Device) -> int:
    """Programs that share the rows of a matrix: two for each multiprocessor, all matrices together.

    Each leaves a row of partial sums, and so has at least eight rows.
    """
    wanted = -(-2 * device.processors // max(1, problem.matrices))
    return max(1, min(wanted, problem.m // max(8, config.rows)))


def _no_rule(anything: Tensor) -> dict[str, Any]:
    """What `Look.arguments` has where no rule is followed: tensors that are not read."""
    unread = ("means", "squares", "others", "missed", "finite", "shares", "numbers")
    constants = {name.upper(): value for name, value in NO_RULE.items()}
    return {**dict.fromkeys(unread, anything), "parts": 0, **constants}


def _versions(step: FusedStep) -> list[int] | None:
    """How often weights and bases have been changed; None of tensors that do not count that."""
    tensors = [*step.weights, *step.bases]
    return None if any(t.is_inference() for t in tensors) else [t._version for t in tensors]
