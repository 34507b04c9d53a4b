"""Functions of small matrices that never wait for a device: what steps of k > 8 use on a GPU.

The decompositions in ``torch.linalg`` check their success on the host.  These are powers, Newton's
iteration and Cholesky factors without a check, a fixed number of each, in float64.
"""

import torch
from torch import Tensor

_TINY = torch.finfo(torch.float64).tiny
_SHIFT = 1e-14
_SQUARINGS = 16  # up to angles of 2^14, far above what a step may turn
_NEWTON_STEPS = 14


def orthonormalizer(gram: Tensor) -> tuple[Tensor, Tensor]:
    """T and R with P T orthonormal and P = (P T) R, from the Gram matrix G = P^H P: shifted Cholesky."""
    norms = gram.diagonal(dim1=-2, dim2=-1).real.clamp_min(0).sqrt()
    used = norms > _TINY**0.5
    scale = torch.where(used, 1 / norms.clamp_min(_TINY**0.5), 0.0)
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    ones = torch.where(used, _SHIFT * gram.shape[-1], 1.0)
    scaled = gram * (scale[..., :, None] * scale[..., None, :]) + identity * ones[..., None, :]
    r = torch.linalg.cholesky_ex(scaled, upper=True).L
    t = torch.linalg.solve_triangular(r, identity, upper=True)
    return t * scale[..., :, None], r * norms[..., None, :]


def exponential(a: Tensor) -> Tensor:
    """e^A - I: Taylor to degree 12 of A / 2^p, of norm 1/4 at most, squared p times."""
    norm = torch.linalg.matrix_norm(a)
    doublings = (norm.clamp_min(1e-3) * 4).log2().ceil().clamp(0, _SQUARINGS)[..., None, None]
    a = a * torch.exp2(-doublings)
    f = torch.zeros_like(a)
    for j in range(12, 0, -1):  # Horner: f = (a + a f) / j
        f = (a + a @ f) / j
    for i in range(_SQUARINGS):
        f = torch.where(doublings > i, 2 * f + f @ f, f)
    return f


def polar_factor(x: Tensor) -> tuple[Tensor, Tensor]:
    """polar(X) by Newton's iteration, and about the smallest over the largest singular value of X."""
    inverse = torch.linalg.inv_ex(x).inverse.mH
    size, other = torch.linalg.matrix_norm(x), torch.linalg.matrix_norm(inverse)
    regular = x.shape[-1] / (size * other)
    for _ in range(_NEWTON_STEPS):
        g = (other / size).sqrt()[..., None, None]
        x = (g * x + inverse / g) / 2
        inverse = torch.linalg.inv_ex(x).inverse.mH
        size, other = torch.linalg.matrix_norm(x), torch.linalg.matrix_norm(inverse)
    return x, regular
