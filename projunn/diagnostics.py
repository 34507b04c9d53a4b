"""Quantities to watch during training.

Results stay on the device of the argument and carry no gradient.  On a GPU `unitarity_defect` does not
make the host wait; `eigenphases` and `captured_energy` do, because PyTorch's eigenvalue solvers do.
Transforms of ``torch.func`` and forward mode, which would take the derivative for zero, get a
NotImplementedError.  Of a sharded weight all processes must ask, and each gets the whole result.
"""

import torch
from torch import Tensor

from projunn import arguments
from projunn.arguments import matrices, positive
from projunn.layout import as_matrices, single
from projunn.parameter import layout_of
from projunn.shards import is_sharded
from projunn_kernels import constant
from projunn_kernels.precision import exact_product


def unitarity_defect(weight: Tensor) -> Tensor:
    """‖W^H W - I‖_F / sqrt(n) of each matrix: (*batch, m, n) gives (*batch).

    A wide weight (m < n) should have orthonormal rows: for it the result is ‖W W^H - I‖_F / sqrt(m).
    The cost is O(n^3), which suits every hundredth step better than every step.

    Args:
        weight: a `projunn.UnitaryParameter`, or any real or complex floating-point tensor of matrices
            that `projunn.matrix_view` reads.  Half precision is measured in float32.

    Returns:
        (*batch), real, in the precision of ``weight``; 0 for matrices without entries.  In float32 the
        rounding of the measurement adds 1e-7 at n = 64 and 2e-7 at n = 1024.

    Raises:
        ValueError: ``weight`` does not hold real or complex matrices.
    """
    matrix = _matrix("weight", weight)
    if matrix.shape[-2] < matrix.shape[-1]:
        matrix = matrix.mH
    gram = exact_product(matrix.mH, matrix)
    gram.diagonal(dim1=-2, dim2=-1).sub_(1)
    return torch.linalg.matrix_norm(gram) / max(1, gram.shape[-1]) ** 0.5


def eigenphases(weight: Tensor) -> Tensor:
    """The angles of the eigenvalues of each square matrix, in ascending order.

    The eigenvalues of a unitary matrix lie on the unit circle.  Those of Haar-random weights are spread
    evenly over it; those of weights near the identity have angles near 0.

    Args:
        weight: (*batch, n, n), a `projunn.UnitaryParameter` or any floating-point tensor, real or
            complex.

    Returns:
        (*batch, n), angles from -pi to pi, computed and returned in float64; NaN for a matrix with an
        entry that is not finite.  Rounding decides at which end an eigenvalue -1 comes out.

    Raises:
        ValueError: ``weight`` does not hold real or complex square matrices.
    """
    matrix = _matrix("weight", weight)
    if matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"weight: got shape {tuple(matrix.shape)}, wanted square matrices")
    matrix = matrix.to(torch.complex128)
    finite = matrix.isfinite().flatten(-2).all(-1)[..., None, None]  # LAPACK can crash on others
    angles = torch.linalg.eigvals(torch.where(finite, matrix, 0.0)).angle().sort(dim=-1).values
    return torch.where(finite[..., 0], angles, torch.nan)


def captured_energy(matrix: Tensor, rank: int) -> Tensor:
    """The share of each matrix's energy that its best approximation of rank k holds.

        sum of the k largest sigma^2 / sum of all sigma^2        sigma: the singular values

    It tells how much of a gradient a step of rank k can follow.  It is 1 for a zero matrix, and for k
    from min(m, n) on.  It is computed from the eigenvalues of the smaller Gram matrix.

    Args:
        matrix: (*batch, m, n), real or complex.  Gradients do not know the layout of their
            parameter p: ``projunn.matrix_view(p.grad, pairs=p.pairs, blocks=p.blocks)`` does.
        rank: k, at least 1.

    Returns:
        (*batch), from 0 to 1, computed and returned in float64.

    Raises:
        ValueError: ``rank`` is below 1, or ``matrix`` does not hold real or complex matrices.
    """
    rank = positive("rank", rank)
    a = _matrix("matrix", matrix)
    a = a.to(torch.complex128 if a.is_complex() else torch.float64)
    gram = a @ a.mH if a.shape[-2] < a.shape[-1] else a.mH @ a
    energies = torch.linalg.eigvalsh(gram).clamp_min(0).flip(-1)
    total = energies.sum(-1)
    captured = energies[..., :rank].sum(-1) / total.clamp_min(torch.finfo(total.dtype).tiny)
    return torch.where(total > 0, captured, 1.0)


def _matrix(name: str, tensor: Tensor) -> Tensor:
    view = arguments.tensor(name, tensor)
    if is_sharded(tensor):
        view = as_matrices(single(tensor.detach().full_tensor()), *layout_of(tensor))  # type: ignore[attr-defined]
    else:
        view = as_matrices(single(view), *layout_of(view))
    return matrices(name, constant(view, "this diagnostic"))
