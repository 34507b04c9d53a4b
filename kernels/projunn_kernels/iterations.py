"""Functions of small matrices that never wait for a device: what a GPU uses where no kernel of ours is.

The decompositions in ``torch.linalg`` check their success on the host, and on a GPU ``qr``, ``svd``,
``eigh`` and LU of a batch can be one call of a library for each matrix, or copy to the host (MAGMA's
LU). What is here uses matrix products, Cholesky factors and triangular solves, which are one call for a
batch of any size, a fixed number of each, in float64.
"""

from math import ceil, factorial, inf, log2

import torch
from torch import Tensor

_TINY = torch.finfo(torch.float64).tiny
_SHIFT = 1e-14
_DEPENDENT = 1e-10  # square of a norm: between that of the shift and what is far above rounding
# Powers of A^3 that leave less than 1e-17 of A, up to a norm, which is 1/4 at most but for rounding.
_TAYLOR = ((2, 0.006), (3, 0.069), (4, inf))
_SQUARINGS = 16  # up to angles of 2^14, far above what a step may turn
_NEWTON_STEPS = 14
_INVERTED = 1e-6  # what X Y may differ from I
_LOOPED = 64  # PyTorch solves up to eight triangles of this size and above one after the other


def orthonormal(columns: Tensor) -> Tensor:
    """Orthonormal basis (*batch, n, k) of columns with k <= n: shifted Cholesky, three times.

    Columns that depend on those before them come out zero.  Columns that are not finite give a result
    that is not.
    """
    size = columns.abs().amax((-2, -1), keepdim=True)
    q = columns / size.clamp_min(_TINY)
    for repeat in range(3):
        gram = q.mH @ q
        if repeat == 1:  # what depends on the others has the norm of the shift's root now
            squares = gram.diagonal(dim1=-2, dim2=-1).real
            kept = torch.where(squares < _DEPENDENT, 0.0, 1.0)  # NaN is kept
            q, gram = q * kept[..., None, :], gram * (kept[..., :, None] * kept[..., None, :])
        t, _ = orthonormalizer(gram)
        q = q @ t
    # Rounding may have passed for a direction, and three factors do not make a column of it.  What the
    # others lack (1e-12, where many columns depend on each other) one step of Newton and Schulz gives.
    gram = q.mH @ q
    absent = gram.diagonal(dim1=-2, dim2=-1).real < 0.25  # False for NaN
    error = gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    error = torch.where(absent[..., :, None] | absent[..., None, :], 0.0, error)
    return torch.where(absent[..., None, :], 0.0, q - q @ error / 2)


def orthonormalizer(gram: Tensor) -> tuple[Tensor, Tensor]:
    """T and R with P T orthonormal and P = (P T) R, from the Gram matrix G = P^H P: shifted Cholesky."""
    norms = gram.diagonal(dim1=-2, dim2=-1).real.clamp_min(0).sqrt()
    used = norms > _TINY**0.5
    scale = torch.where(used, 1 / norms.clamp_min(_TINY**0.5), 0.0)
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    shift = _SHIFT * gram.shape[-1]
    ones = torch.where(used, shift, 1.0)
    shifted = gram * (scale[..., :, None] * scale[..., None, :]) + identity * ones[..., None, :]
    # Over 1 + shift, so that orthonormal columns stay as they are.
    r = torch.linalg.cholesky_ex(shifted / (1 + shift), upper=True).L
    t = _inverse_of_triangle(r)
    return t * scale[..., :, None], r * norms[..., None, :]


def _inverse_of_triangle(r: Tensor) -> Tensor:
    """R^-1 of upper triangles, large ones by halves."""
    size = r.shape[-1]
    if size < _LOOPED:
        identity = torch.eye(size, dtype=r.dtype, device=r.device)
        return torch.linalg.solve_triangular(r, identity, upper=True)
    half = size // 2
    first, last = _inverse_of_triangle(r[..., :half, :half]), _inverse_of_triangle(r[..., half:, half:])
    corner = -first @ (r[..., :half, half:] @ last)
    below = torch.zeros_like(corner.mT)
    return torch.cat([torch.cat([first, corner], -1), torch.cat([below, last], -1)], -2)


def inverse(x: Tensor, corrections: int = 3) -> Tensor:
    """X^-1 = (X^H X)^-1 X^H by a Cholesky factor, corrected by Newton's iteration Y <- Y (2 I - X Y).

    Accurate to rounding times the condition number, which each correction lets be larger: up to 1e7 with
    three, up to 1e4 with one.  NaN where the result is no inverse: X Y is not I.
    """
    size = torch.linalg.matrix_norm(x, keepdim=True).clamp_min(_TINY)
    x = x / size
    t = _inverse_of_triangle(torch.linalg.cholesky_ex(x.mH @ x, upper=True).L)
    y = t @ (x @ t).mH
    for _ in range(corrections):
        y = 2 * y - y @ (x @ y)
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    rest = torch.linalg.matrix_norm(identity - x @ y, keepdim=True)
    return torch.where(rest < _INVERTED, y / size, torch.nan)


def exponential(a: Tensor) -> Tensor:
    """e^A - I: Taylor to degree 12 of A / 2^p, of norm 1/4 at most, squared p times."""
    norm = torch.linalg.matrix_norm(a)
    doublings = (norm.clamp_min(1e-3) * 4).log2().ceil().clamp(0, _SQUARINGS)[..., None, None]
    f = _taylor(a * torch.exp2(-doublings), 4)
    for i in range(_SQUARINGS):
        f = torch.where(doublings > i, 2 * f + f @ f, f)
    return f


def exponential_of_size(a: Tensor, size: float) -> Tensor:
    """`exponential` of matrices of norms up to ``size``, with no more products than those need."""
    doublings = max(0, ceil(log2(4 * size))) if size > 0 else 0
    reduced = size / 2**doublings
    f = _taylor(a / 2**doublings if doublings else a, next(i for i, most in _TAYLOR if reduced <= most))
    for _ in range(doublings):
        f = 2 * f + f @ f
    return f


def _taylor(a: Tensor, levels: int) -> Tensor:
    """The sum of A^j / j! to j = 3 ``levels``, as S_1 + A^3 (S_2 + A^3 ..) (Paterson, Stockmeyer)."""
    square = a @ a
    cube = square @ a
    f = None
    for last in range(3 * levels, 0, -3):
        total = torch.add(a / factorial(last - 2), square, alpha=1 / factorial(last - 1))
        total = torch.add(total, cube, alpha=1 / factorial(last))
        f = total if f is None else total + cube @ f
    assert f is not None
    return f


def polar_factor(x: Tensor) -> tuple[Tensor, Tensor]:
    """polar(X) by Newton's iteration, and about the smallest over the largest singular value of X."""
    other = inverse(x).mH
    size, other_size = torch.linalg.matrix_norm(x), torch.linalg.matrix_norm(other)
    regular = x.shape[-1] / (size * other_size)
    for _ in range(_NEWTON_STEPS):  # the first takes the root of the condition number
        g = (other_size / size).sqrt()[..., None, None]
        x = (g * x + other / g) / 2
        other = inverse(x, 1).mH
        size, other_size = torch.linalg.matrix_norm(x), torch.linalg.matrix_norm(other)
    return x, regular
