"""The optimizer's step of unitary parameters: retract, and refresh the warm basis.

    followed_step_    D from G by a rule, whose averages move; then as
    fused_step_       Y = orth(D^H R)    X = D Y    S = X
    all               W <- retraction of W - rate X Y^H       R <- orth(S) + 0.01 probe

`fused_step_` takes parameters of one shape, from their directions D; `followed_step_` from their
gradients G, by a rule (`projunn_kernels.rules`); `factored_step_` takes those whose directions are in
factors already, with the left factors S of their gradients.  A matrix whose step cannot be taken (not
finite; W + D singular) is left as it was, its basis too, and counted.

On a GPU, matrices of up to 128 columns with m <= n go at rank 1 in one launch for all parameters, each
matrix read and written once; larger ones, those with m > n, and all at higher ranks, in a launch for
each pass, for all parameters too (`projunn_kernels.step.passes`).
Which of the two it is depends on sizes and dtypes alone: tensors that are not contiguous are copied.
"""

import torch
from torch import Tensor

from projunn_kernels.constants import MAX_MANY
from projunn_kernels.operation import Operation
from projunn_kernels.retraction.rotations import named
from projunn_kernels.rules import follow_rule_
from projunn_kernels.single_pass.tiles import BOTH_PRODUCTS, MAX_WIDTH, ROTATE_AHEAD
from projunn_kernels.step import eager
from projunn_kernels.step.arguments import FactoredStep, FollowedStep, FusedStep, batch_of
from projunn_kernels.step.row_tiles import PLANE_ROWS, UNIT_PRODUCT
from projunn_kernels.step.tiles import FUSED_STEP

__all__ = [
    "FactoredStep",
    "FollowedStep",
    "FusedStep",
    "factored_step_",
    "followed_step_",
    "fused_step_",
]


def fused_step_(step: FusedStep) -> Tensor:
    """Take the steps of parameters of one shape, in place: W, R and the counters change.

    Y = orth(D^H R)    X = D Y    W <- retraction of W - rate X Y^H    R <- orth(X) + 0.01 probe

    With ``factorization="tangent"`` W^H X Y^H is Z Y^H, the factors of the tangent part of D
    (`projunn_kernels.factorization`), and R <- orth(Z) + 0.01 probe.  With ``"single_pass"`` X is R and
    Y = D^H R, then R <- orth(D V) + 0.01 probe and V <- orth(Y) + 0.01 probe, unless Y = 0.

    Returns:
        The mask of the steps that were taken: of one parameter (*batch), or (A,) with ``active``, and of
        several (parameters, *batch).  The kernels' is overwritten by the next step of these tensors.
    """
    taken: Tensor = _fused_step(step)
    return taken


def factored_step_(step: FactoredStep) -> Tensor:
    """Take the steps of parameters of one shape along given factors, in place: W, R and the counters.

    W <- retraction of W - rate X Y^H        R <- orth(S) + 0.01 probe

    Returns:
        The mask of the steps that were taken, as of `fused_step_`.
    """
    taken: Tensor = _factored_step(step)
    return taken


def followed_step_(step: FollowedStep) -> Tensor:
    """Follow a rule, and take the steps along the directions that it finds: all changes in place.

    It is `projunn_kernels.follow_rule_` and then `fused_step_`.  With ``factorization="single_pass"``
    the kernels do both in one pass over G, and no direction is stored; with ``"subspace"``, above the
    sizes of one launch, they make D and D^H R in one pass.  A matrix whose gradient is not
    finite is counted in ``missed``, as `follow_rule_` does it, and one whose step was not taken in
    ``skipped``.

    Returns:
        The mask of the steps that were taken, as of `fused_step_`.
    """
    taken: Tensor = _followed_step(step)
    return taken


def _follow_and_take(step: FollowedStep) -> Tensor:
    return fused_step_(step.after(follow_rule_(step.by_rule)))


def _fake(step: FusedStep) -> Tensor:
    shape = batch_of(step)
    if step.active is not None:
        count = len(step.weights)
        shape = step.active.shape if count == 1 else torch.Size((count, *step.active.shape))
    return torch.empty(shape, dtype=torch.bool, device=step.weights[0].device)


def _fake_of_all(step: FactoredStep | FollowedStep) -> Tensor:
    return torch.empty(batch_of(step), dtype=torch.bool, device=step.weights[0].device)


def _fits_factored(step: FactoredStep) -> bool:
    few = all(0 < f[0].shape[-1] <= MAX_MANY for f in (step.lefts, step.sketched))
    return few and named(step.retraction).kernels is not None


def _fits_launches(step: FusedStep) -> bool:
    """Whether the kernels take the step: all parameters of one shape in one launch, or one a pass."""
    m, n, k = step.sizes
    few = 0 < k <= MAX_MANY and (step.active is None or step.fits_a_program)
    if step.factorization == "single_pass":
        width = n * (2 if step.pairs or step.weights[0].is_complex() else 1)
        few = k == 1 and m <= n and step.active is None and width <= MAX_WIDTH
    else:
        few = few and step.factorization == "subspace"
    return few and named(step.retraction).kernels is not None


def _fits_one_pass(step: FollowedStep) -> bool:
    """Whether the kernels move averages and begin to find the factors of the step in one pass."""
    along = step.along(step.gradients)
    stores = step.factorization != "single_pass"  # D, which others may want to see
    fits = along.follows_in_a_pass if stores else step.directions is None
    return fits and step.weights[0].numel() > 0 and _fits_launches(along)


_fused_step = Operation(
    name="fused_step_",
    eager=eager.fused_step,
    launches="projunn_kernels.step.launch:fused",
    fits=_fits_launches,
    fake=_fake,
    on="weights",
    kernels=(FUSED_STEP, UNIT_PRODUCT, PLANE_ROWS, BOTH_PRODUCTS, ROTATE_AHEAD),
    mutates=("weights", "bases", "skipped", "missed"),
    bundle=FusedStep,
)
_factored_step = Operation(
    name="factored_step_",
    eager=eager.factored_step,
    launches="projunn_kernels.step.launch:factored",
    fits=_fits_factored,
    fake=_fake_of_all,
    on="weights",
    mutates=("weights", "bases", "skipped", "missed"),
    bundle=FactoredStep,
)
_followed_step = Operation(
    name="followed_step_",
    eager=_follow_and_take,
    launches="projunn_kernels.step.launch:followed",
    fits=_fits_one_pass,
    fake=_fake_of_all,
    on="weights",
    mutates=("weights", "bases", "means", "squares", "others", "skipped", "missed", "directions"),
    bundle=FollowedStep,
)
