"""The steps in PyTorch, one parameter after the other.

Small matrices on a CPU go fast ways (`plane`, `few`, `bank`), which leave to the others whatever wants
more care: columns that depend on each other, huge steps, numbers that are not finite.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from projunn_kernels.backends import on_device
from projunn_kernels.batches import EVERY, as_matrices, every, flattened, present, surely_all
from projunn_kernels.constants import PROBE
from projunn_kernels.factorization import factor, orthonormalize, tangent_factors
from projunn_kernels.products.eager import adjoint_product, product
from projunn_kernels.retraction import retract_, retract_pulled_
from projunn_kernels.step import bank, few, plane
from projunn_kernels.step.arguments import FactoredStep, FusedStep
from projunn_kernels.warm_basis import refresh_basis_


def fused_step(step: FusedStep) -> Tensor:
    """The steps of `projunn_kernels.fused_step_`, one parameter after the other."""
    if step.pairs:
        step = as_numbers(step)
    lists = (step.weights, step.directions, step.bases, step.probes)
    if step.active is not None:
        masks = [_take_listed(step, *parameter) for parameter in zip(*lists, strict=True)]
    else:
        batch = step.weights[0].shape[:-2]
        masks = [_take(step, *parameter) for parameter in zip(*lists, strict=True)]
        masks = [every(batch) if mask is EVERY else mask for mask in masks] if batch else masks
    for mask, skipped, missed in zip(masks, step.skipped, step.missed, strict=True):
        if not surely_all(mask):
            _count(mask, skipped, None if step.active is not None else missed, step.active)
    return masks[0] if len(masks) == 1 else torch.stack(masks)


def factored_step(step: FactoredStep) -> Tensor:
    """The steps of `projunn_kernels.factored_step_`, one parameter after the other."""
    if step.pairs:
        step = as_numbers(step)
    masks = []
    for weight, left, right, sketched, basis, probe, skipped, missed in zip(
        step.weights, step.lefts, step.rights, step.sketched, step.bases, step.probes, step.skipped,
        step.missed, strict=True,
    ):  # fmt: skip
        scaled = _scaled(left, step.rate, step.scale)
        taken = _every(retract_(weight, scaled, right, step.retraction))
        refresh_basis_(sketched, basis, probe, taken)
        if not surely_all(taken):
            _count(taken, skipped, missed, None)
        masks.append(every(weight.shape[:-2]) if taken is EVERY else taken)
    return masks[0] if len(masks) == 1 else torch.stack(masks)


_Step = TypeVar("_Step", FusedStep, FactoredStep)


def as_numbers(step: _Step) -> _Step:
    """The step with its pairs as complex numbers; shares memory."""
    names = ("weights", "bases", "probes", *(("directions",) if isinstance(step, FusedStep) else ()))
    stored = {name: [torch.view_as_complex(t) for t in getattr(step, name)] for name in names}
    return replace(step, **stored, pairs=False)  # type: ignore[arg-type]


def _take(step: FusedStep, weight: Tensor, direction: Tensor, basis: Tensor, probe: Tensor) -> Tensor:
    """Take one parameter's step by the fastest way that takes it; the mask of where it was taken."""
    if step.factorization == "subspace":
        kind = weight, direction, basis, step.retraction
        if plane.applies_to_bank(*kind):
            return _take_bank(plane.bank_step, step, weight, direction, basis, probe)
        if few.applies(*kind):
            rate = step.rate if step.scale is None else step.rate * step.scale.item()
            if few.take(weight, direction, basis, probe, rate, step.retraction):
                return EVERY
        if bank.applies_to_bank(*kind):
            return _take_bank(bank.bank_step, step, weight, direction, basis, probe)
    return _take_with_care(step, weight, direction, basis, probe)


def _take_bank(way: Callable[..., Tensor], step: FusedStep, *parts: Tensor) -> Tensor:
    """The same by a ``way`` for banks; matrices that want more care step by `_take_with_care`."""
    weight, direction, basis, probe = parts if parts[0].ndim == 3 else map(as_matrices, parts)
    rate = step.rate if step.scale is None else step.scale * step.rate
    taken = way(weight, direction, basis, probe, rate, step.retraction)
    if taken is EVERY:
        return EVERY
    others = taken.logical_not()
    chosen = [tensor[others] for tensor in (weight, direction, basis, probe)]
    taken[others] = _take_with_care(step, *chosen)
    weight[others], basis[others] = chosen[0], chosen[2]
    return taken.view(parts[0].shape[:-2])


def _take_with_care(
    step: FusedStep, weight: Tensor, direction: Tensor, basis: Tensor, probe: Tensor
) -> Tensor:
    """The same by the operations that a step is made of, which take all matrices."""
    if step.factorization == "single_pass":
        taken, warm = _single_pass(step, weight, direction, basis, probe)
        everywhere = surely_all(taken)
        basis.copy_(warm if everywhere else torch.where(taken[..., None, None], warm, basis))
        return EVERY if everywhere else taken
    if step.factorization == "subspace":
        left, right = factor(direction, basis)
        taken = retract_(weight, _scaled(left, step.rate, step.scale), right, step.retraction)
    else:
        if step.scale is None and plane.applies(weight, basis, step.retraction):
            whole = direction.to(weight.dtype)
            if plane.plane_step(weight, whole, basis, probe, step.rate, step.retraction):
                return EVERY
        left, right, moved = tangent_factors(direction, weight, basis)
        scaled = _scaled(left, step.rate, step.scale)
        taken = retract_pulled_(weight, scaled, right, moved, step.retraction)
    taken = _every(taken)
    refresh_basis_(left, basis, probe, taken)  # a zero step leaves the probe alone
    return taken


def _single_pass(
    step: FusedStep, weight: Tensor, direction: Tensor, basis: Tensor, probe: Tensor
) -> tuple[Tensor, Tensor]:
    """Take the step of `projunn_kernels.single_pass`; where it was taken, and the next R above V."""
    start, right_start = basis.split(list(weight.shape[-2:]), -2)
    direction = direction.to(weight.dtype)
    right, left = adjoint_product(direction, start), product(direction, right_start)
    scaled = _scaled(start, step.rate, step.scale)
    taken = retract_(weight, scaled, right, step.retraction, step.active)
    # what is infinite in D V is left out
    fresh = torch.nan_to_num(orthonormalize(left), nan=0.0, posinf=0.0, neginf=0.0)
    warm = torch.cat([fresh, orthonormalize(right)], -2).add_(probe, alpha=PROBE)
    moves = (right != 0).flatten(-2).any(-1)[..., None, None]
    return taken, torch.where(moves, warm, basis)


def _every(taken: Tensor) -> Tensor:
    """`EVERY` in place of a mask that is known to be set everywhere."""
    return EVERY if surely_all(taken) else taken


def _count(taken: Tensor, skipped: Tensor, missed: Tensor | None, active: Tensor | None) -> None:
    not_taken = taken.logical_not()
    if missed is not None:
        missed.add_(not_taken)
    skipped.add_((not_taken if active is None else not_taken & (active >= 0)).sum())


def _scaled(left: Tensor, rate: float, scale: Tensor | None) -> Tensor:
    return left * -rate if scale is None else left * (scale * -rate)


def _take_listed(
    step: FusedStep, weight: Tensor, direction: Tensor, basis: Tensor, probe: Tensor
) -> Tensor:
    """Take the steps of the matrices that a list names: nothing else is read or written."""
    active = step.active
    assert active is not None
    at = active.clamp_min(0).long()
    chosen, chosen_probe = as_matrices(basis)[at], as_matrices(probe)[at]
    with flattened(weight) as matrices:
        if step.factorization == "single_pass":
            taken, warm = _single_pass(step, matrices, direction, chosen, chosen_probe)
        elif step.factorization == "tangent":
            left, right, moved = tangent_factors(direction, matrices, chosen, active)
            scaled = _scaled(left, step.rate, step.scale)
            taken = retract_pulled_(matrices, scaled, right, moved, step.retraction, active)
        else:
            left, right = factor(direction, chosen)
            scaled = _scaled(left, step.rate, step.scale)
            taken = retract_(matrices, scaled, right, step.retraction, active)
        if step.factorization != "single_pass":
            warm = orthonormalize(left).add_(chosen_probe, alpha=PROBE)
    named = active >= 0
    warm = torch.where(taken[:, None, None], warm, chosen)
    with flattened(basis) as bases:
        if not on_device(weight):
            bases[present(active)] = warm[named]
        else:  # without waiting for the mask: entries that name nothing add zero to matrix 0
            bases.index_add_(0, at, torch.where(named[:, None, None], warm - chosen, 0.0))
    return taken
