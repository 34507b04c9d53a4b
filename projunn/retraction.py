"""Retractions: bring ``W + X Y^H`` back to the unitary matrices, in O(k n^2).

A step ``D = X Y^H`` at a unitary W multiplies it from the right by an exactly unitary matrix that
differs from the identity only in the span of the step:

    Z = W^H X        Z Y^H = Q E Q^H        W' = W + (W Q) F Q^H        (`projunn_kernels.retract_`)

Q has 2k orthonormal columns (`projunn_kernels.step_basis`), and I + F is a 2k x 2k unitary matrix
(`projunn_kernels.rotation`); both are computed in float64.  ``W Q`` is computed as a product.  Taking X
for ``W Z``, which is the same in exact arithmetic, would make rounding grow from step to step.  Because
``I + Q F Q^H`` is unitary for steps of any size, no step can leave the manifold by more than rounding.
There is no n x n decomposition and, in place, no second n x n matrix.
"""

import torch
from torch import Tensor

import projunn_kernels
from projunn.arguments import one_of, own_memory, tensor
from projunn.manifold import MATRIX_DTYPES, dtype_names, matrix_view
from projunn_kernels import RETRACTIONS, constant


def retract(weight: Tensor, left: Tensor, right: Tensor, retraction: str = "exp") -> Tensor:
    """The unitary matrix that the step ``left @ right.mH`` leads to from ``weight``; a new tensor.

    ==========  =======================================================  ===================
    retraction  result, with D = left right^H, A = (W^H D - D^H W)/2     in arXiv 2203.05483
    ==========  =======================================================  ===================
    "exp"       W exp(A)                                                 projUNN-T
    "polar"     W polar(I + W^H D) = polar(W + D), the nearest unitary   projUNN-D
    "cayley"    W (I - A/2)^-1 (I + A/2)                                 (for comparison)
    ==========  =======================================================  ===================

    Wide weights (m < n), which have orthonormal rows, use the same formulas, except that W polar(I +
    W^H D) is not the semi-unitary matrix nearest to W + D: to first order it moves half as far in the
    directions that are orthogonal to the rows of W.  Tall ones (m > n) use the mirror image, the step
    D^H at the wide W^H, so that the unitary factor acts from the larger side.

    Args:
        weight: W, (*batch, m, n), unitary; float32, float64, complex64 or complex128.  A
            `projunn.UnitaryParameter` stands for its `projunn.matrix_view`.
        left: (*batch, m, k), with k from 1 to min(m, n), in the dtype and on the device of ``weight``.
        right: (*batch, n, k), likewise.
        retraction: ``"exp"``, ``"polar"`` or ``"cayley"``.

    Returns:
        (*batch, m, n), without gradient, because a step is no part of a model.  The error is under 1e-13
        (float64) and 5e-6 (float32) for steps of norm up to 2; for "polar" divide that by the smallest
        singular value of W + D.  A zero step returns ``weight`` exactly.  So does a step that cannot be
        taken, because its factors are not finite or do not determine the result to working precision
        ("polar": W + D is singular; "exp": it would rotate by an angle above eps^-1/2).

    Raises:
        ValueError: unknown ``retraction``, or shapes or devices that do not fit.
        TypeError: dtypes that do not fit.
        NotImplementedError: a transform of ``torch.func``, or forward mode, wants the derivative.
    """
    result = constant(matrix_view(tensor("weight", weight)), "projunn.retract").clone()
    return retract_(result, left, right, retraction)


def retract_(weight: Tensor, left: Tensor, right: Tensor, retraction: str = "exp") -> Tensor:
    """`retract` in place: the new matrices overwrite ``weight``, which is returned.

    Arguments, accuracy and errors are those of `retract`.  ``weight`` may be a leaf that requires a
    gradient, such as a `projunn.UnitaryParameter`; autograd does not record the step.
    """
    with torch.no_grad():
        matrices = matrix_view(own_memory("weight", tensor("weight", weight)))
        _check(matrices, left, right, retraction)
        projunn_kernels.retract_(matrices, left, right, retraction)
    return weight


def _check(weight: Tensor, left: Tensor, right: Tensor, retraction: str) -> None:
    one_of("retraction", retraction, RETRACTIONS)
    if weight.dtype not in MATRIX_DTYPES:
        raise TypeError(f"weight: got {weight.dtype}, wanted one of {dtype_names()}")
    if weight.ndim < 2:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, wanted (*batch, m, n)")
    *batch, m, n = weight.shape
    tensor("left", left), tensor("right", right)
    for name, factor, rows in (("left", left, m), ("right", right, n)):
        if factor.dtype != weight.dtype:
            raise TypeError(f"{name}: got {factor.dtype}, wanted weight's dtype {weight.dtype}")
        if factor.device != weight.device:
            raise ValueError(f"{name}: is on {factor.device}, wanted weight's device {weight.device}")
        k = factor.shape[-1] if factor.ndim else 0
        if factor.shape != (*batch, rows, k) or not 1 <= k <= max(1, min(m, n)):
            raise ValueError(
                f"{name}: got shape {tuple(factor.shape)}, wanted {(*batch, rows)} + (k,) with"
                f" 1 <= k <= {min(m, n)} for a weight of shape {tuple(weight.shape)}"
            )
    if left.shape[-1] != right.shape[-1]:
        raise ValueError(f"right: has rank {right.shape[-1]}, left has rank {left.shape[-1]}")
