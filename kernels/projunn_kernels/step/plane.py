"""The tangent step of one real matrix at rank one on a CPU, where calls of PyTorch cost what passes do.

    y = A r / |A r|    z = 2 A y    Q E Q^T = -rate z y^T    W += (W Q) (Q F^T)^T
    r <- z / |z| + 0.01 probe

`projunn_kernels.factorization` and `projunn_kernels.retraction` have the same for all others.  What is
2 x 2 is in Python's floats, and W y, a product with the W that is stored, is read off W once.
"""

from math import inf, sqrt

import torch
from torch import Tensor

from projunn_kernels.backends import on_device
from projunn_kernels.constants import PROBE
from projunn_kernels.products.eager import adjoint_product
from projunn_kernels.retraction.rotations import named, plane_rotation

_SMALLEST = 1e-70  # of |z|^2: the inverse of its root is a float32


def applies(weight: Tensor, basis: Tensor, retraction: str) -> bool:
    """Whether `plane_step` can take the step of this parameter."""
    one = weight.ndim == 2 and basis.shape[-1] == 1 and weight.dtype == torch.float32
    return one and not on_device(weight) and named(retraction).plane is not None


def plane_step(
    weight: Tensor, direction: Tensor, basis: Tensor, probe: Tensor, rate: float, retraction: str
) -> bool:
    """Take the step in place.  False, and nothing is changed, if it wants more care, or is not taken."""
    tall = weight.shape[0] > weight.shape[1]
    w, d = (weight.mT, direction.mT) if tall else (weight, direction)

    def twice_tangent(x: Tensor) -> tuple[Tensor, Tensor]:
        """W x and 2 A x."""
        moved = _times(w, x)
        back = _times(w.mT, _times(d, x))
        return moved, torch.addmv(back, d.mT, moved, alpha=-1)

    first = twice_tangent(basis.squeeze(1))[1]
    size = torch.linalg.vector_norm(first, dtype=torch.float64).item()
    if not 0 < size < inf:
        return False
    y = (first / size).to(weight.dtype)
    moved, z = twice_tangent(y)
    vectors = torch.stack([y, z]).double()
    (yy, yz), (_, zz) = (vectors @ vectors.mT).tolist()
    if not 1e-6 < yy < 2:
        return False
    a = sqrt(yy)
    b = yz / a
    rest = zz - b * b
    if not 0 < rest < inf or rest < 1e-6 * zz or zz < _SMALLEST:
        return False
    c = sqrt(rest)
    precision = torch.finfo(weight.dtype).eps
    f = plane_rotation(-rate * a * b, 0.0, -rate * a * c, 0.0, retraction, precision)
    if f is None:
        return False
    q = ((1 / a, 0.0), (-b / (a * c), 1 / c))  # columns, of coefficients of y and z
    rotated = [[f1 * q1 + f2 * q2 for q1, q2 in zip(*q, strict=True)] for f1, f2 in f]
    rows = (torch.tensor([*rotated, q[1]], dtype=torch.float64) @ vectors).to(weight.dtype)
    other = _times(w, rows[2])
    w.addcmul_(moved.unsqueeze(1), rows[0])
    w.addcmul_(other.unsqueeze(1), rows[1])
    torch.mul(probe, PROBE, out=basis).add_(z.unsqueeze(1), alpha=1 / sqrt(zz))
    return True


def _times(matrix: Tensor, x: Tensor) -> Tensor:
    """A product of a matrix, or of its transpose, which `adjoint_product` may split among cores."""
    if matrix.is_contiguous() or torch.get_num_threads() == 1:
        return torch.mv(matrix, x)
    return adjoint_product(matrix.mT, x.unsqueeze(1)).squeeze(1)
