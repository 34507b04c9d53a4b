"""Rotations of one side of a matrix, W <- W C, along the skew part of W^H D.

    A = (W^H D - D^H W)/2        C = (I - a A/2)^-1 (I + a A/2), the Cayley transform of a A

W (m, n) may be any matrix: W C has its singular values, whatever they are, and rows or columns that were
orthonormal stay so.  A is never formed.  It is applied to a few columns x,

    2 A x = W^H (D x) - D^H (W x)

and a step takes its projection on the span of k columns Y and of A Y, as in
`projunn_kernels.factorization`: A ~ skew(Z Y^H), of rank 2k.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from projunn_kernels import (
    adjoint_product,
    orthonormalize,
    product,
    rank_update_,
    retract_pulled_,
    rotation,
    step_basis,
)
from projunn_kernels.backends import on_device
from projunn_kernels.batches import surely_all
from projunn_kernels.factorization.eager import off_corner

_PANEL = 1 << 22  # numbers of A that are looked at together


class Skew(NamedTuple):
    """The factors Z and Y, (n, k), of the skew-Hermitian matrix skew(Z Y^H) = (Z Y^H - Y Z^H)/2."""

    pulled: Tensor
    right: Tensor

    def doubled(self, columns: Tensor) -> Tensor:
        """Twice its product with some columns."""
        pulled, right = self
        return pulled @ (right.mH @ columns) - right @ (pulled.mH @ columns)

    def energy(self) -> Tensor:
        """The square of its Frobenius norm, for an orthonormal Y."""
        inner = self.right.mH @ self.pulled
        whole = torch.linalg.vector_norm(self.pulled).square()
        return (whole - (inner * inner.mT).sum().real) / 2

    def norm_one(self) -> Tensor:
        """The largest sum of absolute values of a column."""
        left = torch.cat([self.pulled, -self.right], dim=-1) / 2
        other = torch.cat([self.right, self.pulled], dim=-1).mH
        each = max(1, _PANEL // max(len(left), 1))
        sums = [(rows @ other).abs().sum(-1).amax() for rows in left.split(each)]
        return torch.stack(sums).amax()  # of rows, which are the columns but for signs


class Tangent(NamedTuple):
    """A part of A, and the square of the Frobenius norm of the rest: an estimate, or zero."""

    step: Skew
    rest: Tensor


def tangent(
    weight: Tensor,
    direction: Tensor,
    basis: Tensor,
    kept: Skew | None = None,
    decay: float = 0.0,
    *,
    orthonormal: bool = False,
    probes: Tensor | None = None,
) -> Tangent:
    """A part of A + decay K of rank 2k, K = skew of ``kept``, by one step of subspace iteration.

    It is all of it where that has rank k, and all of A where W has k orthonormal rows.

    Args:
        weight, direction: W and D, (m, n), real or complex.
        basis: (n, k), where the iteration starts.
        kept: K, in the same frame as A.
        decay: its share.
        orthonormal: the rows of W are.
        probes: (n, p), standard normal columns that estimate the rest.
    """

    def doubled(columns: Tensor) -> Tensor:
        forth = adjoint_product(weight, product(direction, columns))
        result = forth.sub_(adjoint_product(direction, product(weight, columns)))
        return result if kept is None else result.add_(kept.doubled(columns), alpha=decay)

    whole = orthonormal and kept is None and basis.shape[-1] == weight.shape[-2] < weight.shape[-1]
    right = weight.mH.resolve_conj().contiguous() if whole else orthonormalize(doubled(basis))
    if probes is None:
        step = Skew(off_corner(doubled(right), right), right)
        return Tangent(step, torch.zeros((), dtype=weight.dtype.to_real(), device=weight.device))
    k = right.shape[-1]
    images = doubled(torch.cat([right, probes], dim=-1))
    step = Skew(off_corner(images[:, :k], right), right)
    missed = images[:, k:] - step.doubled(probes)
    return Tangent(step, torch.linalg.vector_norm(missed).square() / (4 * probes.shape[-1]))


def turn_(weight: Tensor, step: Skew, retraction: str = "cayley") -> Tensor:
    """``W <- W (I + Q F Q^H)`` in place, the exact rotation along a step; whether it was taken.

    Args:
        weight: W, (m, n), of any singular values.
        step: the step, with its rate in it.
        retraction: as in `projunn.retract`, but for "polar", which needs an orthogonal W.
    """
    if on_device(weight) and weight.shape[0] <= weight.shape[1]:
        moved = weight.new_empty(weight.shape[0], 0)  # on a GPU it is not asked for
        return retract_pulled_(weight, step.pulled, step.right, moved, retraction)
    basis, small = step_basis(step.right, step.pulled)
    f, taken = rotation(small, retraction, torch.finfo(weight.dtype).eps)
    rotated = (f.conj() @ basis.mT).mT
    if not surely_all(taken):
        basis, rotated = (torch.where(taken, t, 0.0) for t in (basis, rotated))
    basis, rotated = basis.to(weight.dtype), rotated.to(weight.dtype)
    rank_update_(weight, product(weight, basis), rotated)
    return taken


def dense_tangent(weight: Tensor, direction: Tensor) -> Tensor:
    """A itself, (n, n)."""
    pulled = weight.mH @ direction
    return (pulled - pulled.mH).div_(2)


def turn_densely_(weight: Tensor, step: Tensor) -> None:
    """``W <- W (I - S/2)^-1 (I + S/2) = 2 W (I - S/2)^-1 - W`` in place, for a skew-Hermitian S."""
    shifted = step.div(-2)
    shifted.diagonal().add_(1)
    solved = torch.linalg.solve_ex(shifted, weight, left=False).result
    weight.neg_().add_(solved, alpha=2)
