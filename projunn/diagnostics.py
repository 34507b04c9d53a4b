"""What to watch while training.  Every result stays on the device: reading it is up to the caller."""

import torch
from torch import Tensor

from projunn.manifold import matrix_view


def unitarity_defect(weight: Tensor) -> Tensor:
    """‖W^H W - I‖_F / sqrt(n) of each matrix: (*batch, m, n) gives (*batch).

    For a wide weight (m < n), whose rows are orthonormal, ‖W W^H - I‖_F / sqrt(m).  Takes a
    `projunn.UnitaryParameter` or any real or complex floating-point tensor; half precision is
    measured in float32.  O(n^3): made for every hundredth step, not for every one.
    """
    matrix = _matrix("weight", weight)
    if matrix.shape[-2] < matrix.shape[-1]:
        matrix = matrix.mH
    gram = matrix.mH @ matrix
    gram.diagonal(dim1=-2, dim2=-1).sub_(1)
    return torch.linalg.matrix_norm(gram) / max(1, gram.shape[-1]) ** 0.5


def eigenphases(weight: Tensor) -> Tensor:
    """The angles of the eigenvalues of each square matrix, ascending in (-pi, pi]: (*batch, n).

    The spectrum of a unitary matrix lies on the unit circle.  Haar-random weights spread it evenly;
    weights initialised near the identity have it near 0.  Computed in float64.

    Raises:
        ValueError: the matrices are not square.
    """
    matrix = _matrix("weight", weight)
    if matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"weight: got shape {tuple(matrix.shape)}, wanted square matrices")
    return torch.linalg.eigvals(matrix.to(torch.complex128)).angle().sort(dim=-1).values


def captured_energy(matrix: Tensor, rank: int) -> Tensor:
    """Share of the energy of each matrix that its best rank-k approximation holds: (*batch).

        sum of the k largest sigma^2 / sum of all sigma^2

    1 for a zero matrix.  By eigenvalues of the smaller Gram matrix, in float64.

    Raises:
        ValueError: ``rank`` is below 1.
    """
    if rank < 1:
        raise ValueError(f"rank: got {rank}, wanted at least 1")
    a = _matrix("matrix", matrix)
    a = a.to(torch.complex128 if a.is_complex() else torch.float64)
    gram = a @ a.mH if a.shape[-2] < a.shape[-1] else a.mH @ a
    energies = torch.linalg.eigvalsh(gram).clamp_min(0).flip(-1)
    total = energies.sum(-1)
    captured = energies[..., :rank].sum(-1) / total.clamp_min(torch.finfo(total.dtype).tiny)
    return torch.where(total > 0, captured, 1.0)


def _matrix(name: str, tensor: Tensor) -> Tensor:
    matrix = matrix_view(tensor).detach()
    if matrix.ndim < 2 or not (matrix.is_floating_point() or matrix.is_complex()):
        raise ValueError(
            f"{name}: got shape {tuple(tensor.shape)} and {tensor.dtype}, wanted real or complex"
            " matrices (*batch, m, n)"
        )
    return matrix.float() if matrix.dtype in (torch.float16, torch.bfloat16) else matrix
