"""Launches of whole steps, kept from step to step.

A step of tensors that have not moved is that of the last time with other directions and another rate:
what was prepared for it (tables of addresses, grids, constants, the memory between launches) is kept.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from projunn_kernels.batches import contiguous_matrices, flattened, lying_flat
from projunn_kernels.configs.problem import power_of_two
from projunn_kernels.keeping import IDLE, Recent, capturing, in_force, may_keep
from projunn_kernels.launching import (
    PRECISION,
    TRITON_DTYPES,
    Launch,
    address_table,
    addresses_of_flat,
    configured,
    half_precision,
    options,
    table_of,
)
from projunn_kernels.retraction.launch import device_function
from projunn_kernels.rules.arguments import RuleStep
from projunn_kernels.rules.launch import follow_rule
from projunn_kernels.single_pass.launch import SinglePass
from projunn_kernels.step.arguments import FactoredStep, FollowedStep, FusedStep, batch_of
from projunn_kernels.step.eager import as_numbers
from projunn_kernels.step.kernels import plane_step_kernel
from projunn_kernels.step.passes import FactoredPasses, Passes

_kept: Recent["Program | Passes | SinglePass"] = Recent(256, IDLE)
_kept_factored: Recent[FactoredPasses] = Recent(256, IDLE)
# The steps that CUDA graphs replay, and the memory in which the last step before the capture left what
# the next one reads (`SinglePass.ahead`), if there was one: it has to last as long as a graph may.  A
# graph is captured on a stream of its own, so the keys are without the stream.
_in_graphs: dict[tuple[Any, ...], Tensor | None] = {}


def fused(step: FusedStep) -> Tensor:
    """`projunn_kernels.fused_step_` of tensors as users have them."""
    first = step.weights[0]
    if first.numel() == 0 or (step.active is not None and step.active.shape[0] == 0):
        return torch.ones(_shape(step), dtype=torch.bool, device=first.device)
    if type(step.rate) is not float:  # Triton makes constants of integers, which a kept launch keeps
        step = replace(step, rate=float(step.rate))
    taken = _take_kept(step)
    if taken is None:
        shape = _shape(step)
        step = as_numbers(step) if step.pairs else step
        with ExitStack() as stack:
            flat = replace(
                step,
                weights=[stack.enter_context(flattened(t)) for t in step.weights],
                directions=[contiguous_matrices(t) for t in step.directions],
                bases=[stack.enter_context(flattened(t)) for t in step.bases],
                probes=[contiguous_matrices(t) for t in step.probes],
            )
            taken = _fresh(flat)(flat).view(shape)
    return taken


def followed(step: FollowedStep) -> Tensor:
    """`projunn_kernels.followed_step_` with one pass over G, of tensors as users have them."""
    if type(step.rate) is not float:
        step = replace(step, rate=float(step.rate))
    rule = step.by_rule
    taken = _take_kept(step.along(step.gradients), rule, step.directions)
    if taken is None:  # a tensor does not lie flat
        taken = fused(step.after(follow_rule(rule)))
    return taken


def factored(step: FactoredStep) -> Tensor:
    """`projunn_kernels.factored_step_` of tensors as users have them."""
    if step.weights[0].numel() == 0:
        return torch.ones(batch_of(step), dtype=torch.bool, device=step.weights[0].device)
    if type(step.rate) is not float:
        step = replace(step, rate=float(step.rate))
    own = step.weights, step.bases, step.probes
    addresses = [addresses_of_flat(t) for t in own]
    if None not in addresses:
        return _kept_passes(step, addresses)(step)
    with ExitStack() as stack:
        step = as_numbers(step) if step.pairs else step
        flat = replace(
            step,
            weights=[stack.enter_context(flattened(t)).view(t.shape) for t in step.weights],
            bases=[stack.enter_context(flattened(t)).view(t.shape) for t in step.bases],
            probes=[contiguous_matrices(t).view(t.shape) for t in step.probes],
        )
        return FactoredPasses(flat)(flat)


def _kept_passes(step: FactoredStep, addresses: Sequence[Any]) -> FactoredPasses:
    """The launches kept for tensors that lie flat, or new ones."""
    first = step.weights[0]
    if not may_keep(first):
        return FactoredPasses(step)
    counters = [tuple(map(Tensor.data_ptr, tensors)) for tensors in (step.skipped, step.missed)]
    sizes = step.lefts[0].shape, step.rights[0].shape, step.sketched[0].shape
    key = (*addresses, *counters, *sizes, *_options(step))
    return _kept_factored.made(key, lambda: FactoredPasses(step))


def _options(step: FusedStep | FactoredStep) -> tuple[Any, ...]:
    """The part of the key of kept launches that has no addresses."""
    first = step.weights[0]
    return (
        *(first.shape, first.dtype, first.device, step.bases[0].shape),
        *(step.retraction, step.pairs, None if step.scale is None else step.scale.dtype),
        *in_force(first),
    )


def _shape(step: FusedStep) -> torch.Size:
    """The shape of the mask of the steps taken."""
    return batch_of(step) if step.active is None else step.active.shape


def _take_kept(
    step: FusedStep, rule: RuleStep | None = None, stored: Tensor | None = None
) -> Tensor | None:
    """Take a step of tensors that lie flat by the launches kept for them, or new ones.

    Args:
        step: the step.
        rule: what finds its directions from gradients, which ``step`` has in their place.
        stored: a place for these directions, if others want to see them.

    Returns:
        The mask of the steps taken; None if a tensor does not lie flat, and nothing was done.
    """
    first = step.weights[0]
    weights = addresses_of_flat(step.weights)
    if weights is None:
        return None
    directions = addresses_of_flat(step.directions)
    if directions is None:  # of buckets of `DistributedDataParallel`, say, in each step
        step = replace(step, directions=[lying_flat(t) for t in step.directions])
        directions = addresses_of_flat(step.directions)
    if directions is None:
        return None
    state = step.bases, step.probes, step.skipped, step.missed
    rest = [tuple(map(Tensor.data_ptr, tensors)) for tensors in state]
    key = (weights, *rest, step.directions[0].dtype, step.factorization, *_options(step))
    if rule is not None:
        averages = [*map(addresses_of_flat, (rule.means, rule.squares, rule.others))]
        if None in averages:
            return None
        counted = tuple(map(Tensor.data_ptr, rule.counted))
        key = (*averages, counted, rule.rule, rule.nesterov, *key)
    if step.active is not None or not may_keep(first):
        if not _is_flat(step):
            return None
        single = step.factorization == "single_pass" and step.active is None
        if single and capturing(first.device):
            _hand_to_graphs(_of_any_stream(key))
        kept = _fresh(step, key, rule)
    else:
        found = _kept.found(key)
        if found is None and not _is_flat(step):
            return None
        kept = found or _kept.made(key, lambda: _fresh(step, key, rule))
    table = table_of(directions, first.device)
    if rule is None:
        return kept(step, table)
    if isinstance(kept, Passes):
        return kept(step, table, rule, stored)
    assert isinstance(kept, SinglePass)
    return kept(step, table, rule)


def _is_flat(step: FusedStep) -> bool:
    """Whether the bases and probes lie flat."""
    return None not in map(addresses_of_flat, (step.bases, step.probes))


def _of_any_stream(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """The key of a step without its stream, which is the last but one of its entries (`in_force`)."""
    return (*key[:-2], *key[-1:])


def _hand_to_graphs(shared: tuple[Any, ...]) -> None:
    """Note that a graph replays this step, and hand over what the last eager step has left for it."""
    if shared in _in_graphs:
        return
    _in_graphs[shared] = None
    for key in [key for key in list(_kept) if _of_any_stream(key) == shared]:  # the last is the latest
        kept = _kept.forget(key)
        assert isinstance(kept, SinglePass)
        _in_graphs[shared] = kept.ahead


def _fresh(
    step: FusedStep, key: tuple[Any, ...] = (), rule: RuleStep | None = None
) -> "Program | Passes | SinglePass":
    if step.factorization == "single_pass":
        shared = _of_any_stream(key)
        made = SinglePass(step, _in_graphs.get(shared), mend=shared in _in_graphs, rule=rule)
        if shared in _in_graphs and made.lasts:
            _in_graphs[shared] = made.ahead
        return made
    return Program(step) if step.fits_a_program and rule is None else Passes(step, rule)


class Program:
    """The step of rank 1 of matrices that fit a program: one launch for all parameters of one shape.

    Args:
        step: the step: weights (*batch, m, n), m <= n, directions, bases (*batch, m, 1), all contiguous,
            and counters.  With ``active`` (A,) one parameter, and its direction is (A, m, n).
    """

    def __init__(self, step: FusedStep) -> None:
        first = torch.view_as_complex(step.weights[0]) if step.pairs else step.weights[0]
        (*_, m, n), pairs = first.shape, first.is_complex()
        matrices = first.numel() // (m * n)
        count = matrices * len(step.weights) if step.active is None else step.active.shape[0]
        self.taken = torch.empty(count, dtype=torch.int8, device=first.device)
        self._mask = self.taken.view(torch.bool).view(_shape(step))
        scaled, listed = step.scale is not None, step.active is not None
        variant = {"retraction": step.retraction, "scaled": scaled, "active": listed}
        half = half_precision(step.directions[0])
        like = first.reshape(-1, m, n)
        config = configured("fused_step", like, 1, count, **variant, gradient=half)
        panels = -(-m // config.rows)
        floats_of_x = count * m * (2 if pairs else 1) if panels > 1 else 1
        scratch = torch.empty(floats_of_x, dtype=torch.float32, device=first.device)
        weights = address_table(step.weights)
        arguments = {
            "weights": weights,
            "directions": address_table(step.directions),
            "bases": address_table(step.bases),
            "probes": address_table(step.probes),
            "skipped": address_table(step.skipped),
            "missed": address_table(step.missed),
            "taken_mask": self.taken,
            "active": weights if step.active is None else step.active.contiguous(),
            "scratch": scratch,
            "rate_tensor": scratch if step.scale is None else step.scale,
            "rate": step.rate,
            "precision": PRECISION,
            "matrices": matrices,
            "m": m,
            "n": n,
            "D_TYPE": TRITON_DTYPES[step.directions[0].dtype],
            "ROTATE": device_function(step.retraction, 1),
            "PAIRS": pairs,
            "ACTIVE": listed,
            "HAS_RATE": scaled,
            "BM": config.rows,
            "BN": power_of_two(n),
            "PANELS": panels,
        } | options(config.warps)
        self._launch = Launch(plane_step_kernel, (count,), **arguments)

    def __call__(self, step: FusedStep, directions: Tensor | None = None) -> Tensor:
        """Take the step: directions, rate and scale may be others than those of the first.

        Args:
            step: the step.
            directions: the table of the addresses of its directions, if it is there already.

        Returns:
            The mask of the steps taken, which the next call overwrites.
        """
        listed = address_table(step.directions) if directions is None else directions
        changed: dict[str, Any] = {"directions": listed, "rate": step.rate}
        if step.scale is not None:
            changed["rate_tensor"] = step.scale
        self._launch(**changed)
        return self._mask
