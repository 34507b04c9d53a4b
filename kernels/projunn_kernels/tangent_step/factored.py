"""The step along the tangent part of a direction that is known by its factors.

    W^H D = X Y^H     A = (X Y^H - Y X^H)/2 = T E T^H     T = orth(A Y), E = T^H A T small and skew
    U = orth [C, E C], C about the k leading directions   V = T U
    W <- retraction of W - rate W V (U^H E U) V^H
    R <- orth(T (2 E B - B (B^H E B))) + 0.01 probe, B = orth(E T^H R)

A step of rank k has a skew part of rank 2k, and all that A is can be seen here: the step takes the
projection of A on 2k directions, without the power step and the corner of `tangent_factors`.  The basis
is refreshed as if A had been applied to it there.  Tall W: the mirror image, W D^H = X Y^H.
"""

from dataclasses import replace

import torch
from torch import Tensor

from projunn_kernels.backends import on_device
from projunn_kernels.batches import surely_all
from projunn_kernels.factorization import orthonormalize
from projunn_kernels.factorization.eager import off_corner
from projunn_kernels.products.eager import adjoint_product, product
from projunn_kernels.rank_update import rank_update_
from projunn_kernels.rank_update.eager import rotate_rows_
from projunn_kernels.retraction.rotations import named, rotation
from projunn_kernels.step.arguments import FactoredTangentStep
from projunn_kernels.warm_basis import refresh_basis_

_ITERATIONS = 4


def factored_tangent_step(step: FactoredTangentStep) -> None:
    """The step of `projunn_kernels.factored_tangent_step_`."""
    if step.pairs:
        names = ("weight", "basis", "probe")
        stored = {name: torch.view_as_complex(getattr(step, name)) for name in names}
        step = replace(step, **stored, pairs=False)  # type: ignore[arg-type]
    weight = step.weight
    precise = torch.complex128 if weight.is_complex() else torch.float64
    if weight.shape[-2] > weight.shape[-1]:
        pulled, right = product(weight, step.right), step.left
    else:
        pulled, right = adjoint_product(weight, step.left), step.right
    range_, small = _tangent_part(pulled.to(precise), right.to(precise))
    basis, e = range_, small
    if 2 * step.rank < small.shape[-1]:
        chosen = _leading(small, step.rank)
        basis, e = range_ @ chosen, chosen.mH @ small @ chosen
    rate = step.rate if step.scale is None else step.rate * step.scale
    taken = _turn(step, basis, e * -rate)
    if not surely_all(taken):
        step.skipped.add_(taken.logical_not().sum())
    start = orthonormalize(small @ (range_.mH @ step.basis.to(precise)))
    image = range_ @ off_corner(2 * (small @ start), start)
    refresh_basis_(image.to(weight.dtype), step.basis, step.probe, taken)


def _tangent_part(pulled: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """T and E of A = T E T^H."""
    image = pulled @ (right.mH @ right) - right @ (pulled.mH @ right)
    range_ = orthonormalize(image)
    x, y = range_.mH @ pulled, range_.mH @ right
    return range_, (x @ y.mH - y @ x.mH) / 2


def _leading(small: Tensor, rank: int) -> Tensor:
    """U: C, by block power iteration on E^4, and its image, which directions of equal size need.

    The iteration starts in general position, because coordinates may be directions that E does not mix.
    C has sums of neighbours among 2k leading directions: of a complex E, often of eigenvectors whose
    frequencies have other signs, which the sum and its image span, where an eigenvector has no image of
    its own.
    """
    size = small.abs().amax((-2, -1), keepdim=True)
    scaled = small / size.clamp_min(torch.finfo(size.dtype).tiny)
    powers = scaled @ scaled
    powers = powers @ powers
    rows = small.shape[-1]
    start = torch.arange(rows * 2 * rank, device=size.device).to(size.dtype).square().cos()
    found = start.view(rows, 2 * rank).to(small.dtype)
    for _ in range(_ITERATIONS):
        found = orthonormalize(powers @ found)
    chosen = found[..., ::2] + found[..., 1::2]
    return orthonormalize(torch.cat([chosen, scaled @ chosen], dim=-1))


def _turn(step: FactoredTangentStep, basis: Tensor, e: Tensor) -> Tensor:
    """W <- retraction of W + W Q E Q^H, or of its mirror image; where it was taken."""
    weight, dtype = step.weight, step.weight.dtype
    tall = weight.shape[-2] > weight.shape[-1]
    whole = named(step.retraction).whole
    if whole is not None:
        left, right = (basis @ e).to(dtype), basis.to(dtype)
        if tall:
            return whole(weight, right, adjoint_product(weight, left))
        return whole(weight, product(weight, left), right)
    f, taken = rotation(e, step.retraction, torch.finfo(dtype).eps)
    if not surely_all(taken):
        basis = torch.where(taken[..., None, None], basis, 0.0)
    rotated, basis = (f.conj() @ basis.mT).mT.to(dtype), basis.to(dtype)
    if tall:
        rank_update_(weight, rotated, adjoint_product(weight, basis))
    elif on_device(weight):
        rank_update_(weight, product(weight, basis), rotated)
    else:
        rotate_rows_(weight, basis, rotated)
    return taken
