"""The whole optimizer step of parameters of one shape: factor, retract, refresh the warm basis.

    Y = orth(D^H R)    X = D Y    W <- retraction of W - rate X Y^H    R <- orth(X) + 0.01 probe

Lists of tensors, one entry a parameter: weights W and directions D (*batch, m, n), bases R and probes
(*batch, m, k), counters ``skipped`` ().  With ``pairs`` they are stored as real pairs, with a trailing
axis of size 2.  A matrix whose step cannot be taken (not finite; W + D singular) is left as it was, its
basis too, and counted.  ``active`` (A,) lists the matrices of one parameter's batch that take part,
each once; the directions then are (A, m, n) and stand for those.  Negative entries stand for nothing.

On a GPU, blocks of up to `MAX_FUSED` columns with m <= n, whose factors fit the registers, go in one
launch for all parameters, each block read and written once; larger ones in a launch for each pass.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from projunn_kernels.backends import opaque, operator, uses_triton
from projunn_kernels.blocks import as_blocks, known_to_hold, present
from projunn_kernels.factor import MAX_RANK, PROBE, factor, orthonormalize
from projunn_kernels.retract import retract_

MAX_FUSED = 128
_MAX_FLOATS = 1024  # of the n x k factors, real numbers: more do not fit the registers


def fused_step_(
    weights: Sequence[Tensor],
    directions: Sequence[Tensor],
    bases: Sequence[Tensor],
    probes: Sequence[Tensor],
    skipped: Sequence[Tensor],
    rate: float,
    scale: Tensor | None = None,
    retraction: str = "exp",
    pairs: bool = False,
    active: Tensor | None = None,
) -> None:
    """Take the steps in place; the learning rate is ``rate``, times the 0-d ``scale`` if given."""
    step = _operator if opaque(weights[0]) else _step
    step(
        list(weights),
        list(directions),
        list(bases),
        list(probes),
        list(skipped),
        rate,
        scale,
        retraction,
        pairs,
        active,
    )


def _step(
    weights: list[Tensor],
    directions: list[Tensor],
    bases: list[Tensor],
    probes: list[Tensor],
    skipped: list[Tensor],
    rate: float,
    scale: Tensor | None,
    retraction: str,
    pairs: bool,
    active: Tensor | None,
) -> None:
    if pairs:
        weights, directions, bases, probes = (
            [torch.view_as_complex(t) for t in tensors]
            for tensors in (weights, directions, bases, probes)
        )
    if _fits_one_launch(weights, directions, bases, probes):
        from projunn_kernels.jit import launch

        launch.fused_step(
            [as_blocks(t) for t in weights],
            [as_blocks(t) for t in directions],
            [as_blocks(t) for t in bases],
            [as_blocks(t) for t in probes],
            skipped,
            rate,
            scale,
            retraction,
            active,
            warm=True,
        )
        return
    for tensors in zip(weights, directions, bases, probes, skipped, strict=True):
        if active is None:
            _one(*tensors, rate, scale, retraction)
        else:
            _listed(*tensors, rate, scale, retraction, active)


def _fits_one_launch(*lists: list[Tensor]) -> bool:
    weight, basis = lists[0][0], lists[2][0]
    m, n = weight.shape[-2:]
    return (
        uses_triton(weight)
        and m <= n <= MAX_FUSED
        and basis.shape[-1] <= MAX_RANK
        and n * basis.shape[-1] * (2 if weight.is_complex() else 1) <= _MAX_FLOATS
        and all(t.is_contiguous() for tensors in lists for t in tensors)
    )


def _one(
    weight: Tensor,
    direction: Tensor,
    basis: Tensor,
    probe: Tensor,
    skipped: Tensor,
    rate: float,
    scale: Tensor | None,
    retraction: str,
) -> None:
    left, right = factor(direction, basis)
    take_(weight, left, right, left, basis, probe, skipped, rate, scale, retraction)


def take_(
    weight: Tensor,
    left: Tensor,
    right: Tensor,
    sketched: Tensor,
    basis: Tensor,
    probe: Tensor,
    skipped: Tensor,
    rate: float,
    scale: Tensor | None,
    retraction: str,
) -> None:
    """Step along factors X, Y; the next basis is that of ``sketched``, the gradient's left factor."""
    taken = retract_(weight, _step_of(left, rate, scale), right, retraction)
    _settle(taken, sketched, basis, probe, skipped)


def _step_of(left: Tensor, rate: float, scale: Tensor | None) -> Tensor:
    return left * -rate if scale is None else left * (scale * -rate)


def _listed(
    weight: Tensor,
    direction: Tensor,
    basis: Tensor,
    probe: Tensor,
    skipped: Tensor,
    rate: float,
    scale: Tensor | None,
    retraction: str,
    active: Tensor,
) -> None:
    """The same for the matrices of a list: nothing else is read or written."""
    at = active.clamp_min(0).long()
    own, own_probe = as_blocks(basis)[at], as_blocks(probe)[at]
    left, right = factor(direction, own)
    taken = retract_(as_blocks(weight), _step_of(left, rate, scale), right, retraction, active)
    named = active >= 0
    skipped.add_((named & ~taken).sum())
    warm = orthonormalize(left).add_(own_probe, alpha=PROBE)
    warm = torch.where(taken[:, None, None], warm, own)
    if weight.device.type == "cpu":
        as_blocks(basis)[present(active)] = warm[named]
    else:  # without waiting for the mask: entries that name nothing add zero to block 0
        change = torch.where(named[:, None, None], warm - own, 0.0)
        as_blocks(basis).index_add_(0, at, change)


def _settle(taken: Tensor, left: Tensor, basis: Tensor, probe: Tensor, skipped: Tensor) -> None:
    """Count what was not taken; the next basis where it was.  (A zero step leaves the probe alone.)"""
    usual = known_to_hold(taken)
    if not usual:
        skipped.add_(taken.logical_not().sum())
    if left.shape[-1] == 1 and uses_triton(left) and basis.is_contiguous() and probe.is_contiguous():
        from projunn_kernels.jit import launch

        launch.warm_basis(as_blocks(left), as_blocks(basis), as_blocks(probe), taken.reshape(-1))
        return
    warm = orthonormalize(left).add_(probe, alpha=PROBE)
    basis.copy_(warm if usual else torch.where(taken[..., None, None], warm, basis))


_operator = operator("projunn::fused_step_", mutates_args=("weights", "bases", "skipped"))(_step)


@_operator.register_fake
def _(*arguments):  # type: ignore[no-untyped-def]
    return None
