"""The declaration of a retraction."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from projunn_kernels.arrays import Array, adjoint, namespace

# F, and where it is determined: (*batch, 2k, 2k) and (*batch), of E (*batch, 2k, 2k) and a precision.
Rotation = Callable[[Tensor, float], tuple[Tensor, Tensor]]
# The same of one real 2 x 2 matrix, row by row, and a precision; None where F is not determined.
PlaneRotation = Callable[[float, float, float, float, float], list[list[float]] | None]
# F of few matrices E (*batch, 2k, 2k) and a precision; None where one of them is not determined.
FewRotations = Callable[[Array, float], Array | None]
# The angle by which a real step of rank one turns, and where it is determined, both (*batch), of
# E = [[e11, 0], [e21, 0]], both (*batch), and a precision.
Angle = Callable[[Array, Array, float], tuple[Array, Array]]
# Changes W (*batch, m, n) along X (*batch, m, k) and Y (*batch, n, k); the mask of the steps taken.
WholeStep = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Retraction:
    """A way from W + D back to the unitary matrices.

    Most ways are rotations of the step's span: W (I + Q F Q^H), with E in the basis Q of the step and a
    function F of E.  Of those `dense` is needed, and the rest makes them faster.  One that is no
    rotation of the span has a ``whole`` step in its place.

    Attributes:
        name: what users call it.
        dense: F by a decomposition, on a CPU; for any size of E, finite.
        two_by_two: F in closed form, for rank 1.
        plane: the same of one real 2 x 2 matrix in Python's floats, at a fifth of the tensors' time.
        few: the same of few matrices, as NumPy's arrays; None where one of them is not determined.
        angle: the same of many real matrices, as an angle: F = [[cos - 1, -sin], [sin, cos - 1]], of
            NumPy's arrays as well.
        iterated: F without what waits for a GPU or loops over matrices there: see
            `projunn_kernels.iterations`.
        kernels: the module of Triton functions ``plane``, ``small`` and ``many`` that compute F, and of
            ``terms`` of its polynomial; without one, steps run as PyTorch operations.
        limit: the size of A below which that polynomial is F, with an error below 1e-9.
        squared: whether I + F of A is the square of that of A / 2, and there is no ``many``.
        of_defect: whether it is one of E + E^H + E^H E in place of A, as (1 + x)^(-1/2) - 1 is.
        whole: the whole step, in place.
    """

    name: str
    dense: Rotation | None = None
    two_by_two: Rotation | None = None
    plane: PlaneRotation | None = None
    few: FewRotations | None = None
    angle: Angle | None = None
    iterated: Rotation | None = None
    kernels: str | None = None
    limit: float = 0.0
    of_defect: bool = False
    squared: bool = False
    whole: WholeStep | None = None


def skew(e: Tensor) -> Tensor:
    """A = (E - E^H) / 2."""
    return (e - e.mH) / 2


def function_of_angles(e: Array, function: Callable[[Array], Array], limit: float) -> Array | None:
    """V f(t) V^H of A = V (i t) V^H, with A the skew-Hermitian part of NumPy's matrices E.

    None if an angle t is not below ``limit``.
    """
    xp = namespace(e)
    angles, vectors = xp.linalg.eigh(-0.5j * (e - adjoint(e)))
    if not abs(angles).max() < limit:
        return None
    found = (vectors * function(angles)[..., None, :]) @ adjoint(vectors)
    return found if xp.iscomplexobj(e) else found.real


def largest(sizes: Tensor) -> float:
    """The largest of a batch on a CPU, 0 if there is none; NaN if one is."""
    return sizes.amax().item() if sizes.numel() else 0.0


def identity_like(e: Tensor) -> Tensor:
    """I, of the size and dtype of E."""
    return torch.eye(e.shape[-1], dtype=e.dtype, device=e.device)


def matrix(f11: Tensor, f12: Tensor, f21: Tensor, f22: Tensor) -> Tensor:
    """(*batch, 2, 2) from its entries."""
    return torch.stack([f11, f12, f21, f22], dim=-1).unflatten(-1, (2, 2))


def entries(e: Tensor) -> tuple[Tensor, ...]:
    """The entries of (*batch, 2, 2), row by row."""
    return e.flatten(-2).unbind(-1)


def turned_by(angle_cosine: float, sine: float) -> list[list[float]]:
    """The 2 x 2 rotation matrix of an angle, minus the identity."""
    return [[angle_cosine - 1, -sine], [sine, angle_cosine - 1]]
