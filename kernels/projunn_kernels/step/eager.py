"""Steps of parameters, one after the other, from the operations that they are made of."""

from dataclasses import replace

import torch
from torch import Tensor

from projunn_kernels.backends import on_device
from projunn_kernels.batches import as_matrices, flattened, present, surely_all
from projunn_kernels.constants import PROBE
from projunn_kernels.factorization import factor, orthonormalize, tangent_factors
from projunn_kernels.retraction import retract_, retract_pulled_
from projunn_kernels.step import plane
from projunn_kernels.step.arguments import FactoredStep, FusedStep
from projunn_kernels.warm_basis import refresh_basis_

_EVERY = torch.tensor(True)  # a mask that is cheap to look at once more


def fused_step(step: FusedStep) -> Tensor:
    """The steps of `projunn_kernels.fused_step_`, one parameter after the other."""
    taken = []
    if step.pairs:
        step = as_numbers(step)
    parameters = zip(step.weights, step.directions, step.bases, step.probes, step.skipped, strict=True)
    for weight, direction, basis, probe, skipped in parameters:
        if step.active is not None:
            mask = _step_of_listed(step, weight, direction, basis, probe, skipped)
        elif step.factorization == "tangent":
            mask = _tangent_step(step, weight, direction, basis, probe, skipped)
        else:
            left, right = factor(direction, basis)
            mask = _take(step, weight, left, right, left, basis, probe, skipped)
        taken.append(mask)
    return taken[0] if len(taken) == 1 else torch.stack(taken)


def factored_step(step: FactoredStep) -> Tensor:
    """The step of `projunn_kernels.factored_step_`."""
    if step.pairs:
        names = ("weight", "basis", "probe")
        stored = {name: torch.view_as_complex(getattr(step, name)) for name in names}
        step = replace(step, **stored, pairs=False)  # type: ignore[arg-type]
    return _take(
        step, step.weight, step.left, step.right, step.sketched, step.basis, step.probe, step.skipped
    )


def as_numbers(step: FusedStep) -> FusedStep:
    """The step with its pairs as complex numbers; shares memory."""
    names = ("weights", "directions", "bases", "probes")
    stored = {name: [torch.view_as_complex(t) for t in getattr(step, name)] for name in names}
    return replace(step, **stored, pairs=False)  # type: ignore[arg-type]


def _take(
    step: FusedStep | FactoredStep,
    weight: Tensor,
    left: Tensor,
    right: Tensor,
    sketched: Tensor,
    basis: Tensor,
    probe: Tensor,
    skipped: Tensor,
) -> Tensor:
    """Take one parameter's step, with the rate and the retraction of ``step``; where it was taken."""
    taken = retract_(weight, _scaled(left, step.rate, step.scale), right, step.retraction)
    _refresh(taken, sketched, basis, probe, skipped)
    return taken


def _tangent_step(
    step: FusedStep, weight: Tensor, direction: Tensor, basis: Tensor, probe: Tensor, skipped: Tensor
) -> Tensor:
    """Take one parameter's step along the tangent part of its direction; where it was taken."""
    if step.scale is None and plane.applies(weight, basis, step.retraction):
        whole = direction.to(weight.dtype)
        if plane.plane_step(weight, whole, basis, probe, step.rate, step.retraction):
            return _EVERY
    pulled, right, moved = tangent_factors(direction, weight, basis)
    scaled = _scaled(pulled, step.rate, step.scale)
    taken = retract_pulled_(weight, scaled, right, moved, step.retraction)
    _refresh(taken, pulled, basis, probe, skipped)
    return taken


def _scaled(left: Tensor, rate: float, scale: Tensor | None) -> Tensor:
    return left * -rate if scale is None else left * (scale * -rate)


def _step_of_listed(
    step: FusedStep, weight: Tensor, direction: Tensor, basis: Tensor, probe: Tensor, skipped: Tensor
) -> Tensor:
    """The same for the matrices of a list: nothing else is read or written."""
    active = step.active
    assert active is not None
    at = active.clamp_min(0).long()
    chosen, chosen_probe = as_matrices(basis)[at], as_matrices(probe)[at]
    with flattened(weight) as matrices:
        if step.factorization == "tangent":
            left, right, moved = tangent_factors(direction, matrices, chosen, active)
            scaled = _scaled(left, step.rate, step.scale)
            taken = retract_pulled_(matrices, scaled, right, moved, step.retraction, active)
        else:
            left, right = factor(direction, chosen)
            scaled = _scaled(left, step.rate, step.scale)
            taken = retract_(matrices, scaled, right, step.retraction, active)
    named = active >= 0
    skipped.add_((named & ~taken).sum())
    warm = orthonormalize(left).add_(chosen_probe, alpha=PROBE)
    warm = torch.where(taken[:, None, None], warm, chosen)
    with flattened(basis) as bases:
        if not on_device(weight):
            bases[present(active)] = warm[named]
        else:  # without waiting for the mask: entries that name nothing add zero to matrix 0
            bases.index_add_(0, at, torch.where(named[:, None, None], warm - chosen, 0.0))
    return taken


def _refresh(taken: Tensor, left: Tensor, basis: Tensor, probe: Tensor, skipped: Tensor) -> None:
    """Count what was not taken; the next basis where it was.  (A zero step leaves the probe alone.)"""
    if surely_all(taken):
        taken = _EVERY
    else:
        skipped.add_(taken.logical_not().sum())
    refresh_basis_(left, basis, probe, taken)
