"""The step in an orthonormal basis: ``W^H D = Z Y^H = Q E Q^H`` in float64, without Householder QR.

Y and Z are (*batch, n, k), Q is (*batch, n, 2k) with orthonormal columns that span both, E is
(*batch, 2k, 2k).  Where 2k is n or more, Q is the identity and E is Z Y^H, both n x n, but for k = 1,
n = 2.  A retraction built on Q is a *small* unitary matrix that acts in the span of the step, so it
stays unitary whatever the size or the conditioning of the step.

For k = 1 the columns are orthonormalized by Gram-Schmidt, done twice ("twice is enough"): but not where
z is a multiple of y to the last bit, whose rest is rounding of rounding and is left out.  For k > 1
they are multiplied three times by the inverse square root of their Gram matrix, whose smallest
eigenvalues are raised to a floor (shifted CholeskyQR3; Fukaya, Kannan, Nakatsukasa, Yamamoto,
Yanagisawa, SIAM J. Sci. Comput. 42, 2020).  On a GPU a Cholesky factor stands in for the square root
(`projunn_kernels.iterations`).  Dependent, zero, or more than n columns are no special case: directions
that the step does not have get entries of rounding size.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from projunn_kernels import iterations
from projunn_kernels.backends import on_device
from projunn_kernels.factorization.eager import vector_norms

_FLOOR = 1e-15  # relative eigenvalue of the Gram matrix below which it is only rounding
_TINY = torch.finfo(torch.float64).tiny
# What is left of z after two passes, relative to z, below which it need not be orthogonal to 1e-15.
_ROUNDING = 1e-17


def step_basis(right: Tensor, pulled: Tensor) -> tuple[Tensor, Tensor]:
    """Q and E with ``Z Y^H = Q E Q^H``, in float64 or complex128.

    Args:
        right: Y, (*batch, n, k), real or complex.
        pulled: Z = W^H X, (*batch, n, k).

    Returns:
        Q (*batch, n, 2k), stored column-major, with orthonormal columns, and E (*batch, 2k, 2k).
        Columns that are not finite give an E that is not, never an exception.
    """
    q, e, _ = step_basis_and_norms(right, pulled)
    return q, e


def step_basis_and_norms(right: Tensor, pulled: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """`step_basis`, and the norms of the columns of Y and Z, (*batch, 1, 2k), but of rank one."""
    precise = torch.complex128 if right.is_complex() else torch.float64
    y, z = right.to(precise), pulled.to(precise)
    n, k = right.shape[-2:]
    if k == 1 and n > 1:
        return *_plane(y.mT, z.mT), None
    columns = torch.cat([y, z], dim=-1)
    norms = _norms(columns, exact=right.dtype == precise)
    if 2 * k >= n:  # the whole space, of which the identity is a basis without rounding
        identity = torch.eye(n, dtype=precise, device=y.device)
        return identity.expand(*y.shape[:-2], n, n), z @ y.mH, norms
    return *_gram_basis(columns, norms, exact=right.dtype == precise), norms


def _plane(y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """y = a q1 and z = b q1 + c q2, all rows (*batch, 1, n), so that E = [[a b, 0], [a c, 0]]."""
    a = vector_norms(y)
    q1 = y / a.clamp_min(_TINY)
    q1_adjoint = q1.mH
    b = z @ q1_adjoint
    rest = torch.addcmul(z, b, q1, value=-1)
    again = rest @ q1_adjoint
    rest = torch.addcmul(rest, again, q1, value=-1)
    c = vector_norms(rest)
    rounding = c <= _ROUNDING * b.abs()
    if on_device(c) or bool(rounding.item() if rounding.numel() == 1 else rounding.any()):
        rest, c = rest.masked_fill(rounding, 0.0), c.masked_fill(rounding, 0.0)
    q2 = rest / c.clamp_min(_TINY)
    column = torch.cat([b + again, c.to(y.dtype)], dim=-2) * a
    return torch.cat([q1, q2], dim=-2).mT, pad(column, (0, 1))


def _norms(columns: Tensor, exact: bool) -> Tensor:
    """2-norms of columns, (*batch, 1, k); with ``exact`` also of those whose squares leave float64."""
    if not exact:
        return torch.linalg.vector_norm(columns, dim=-2, keepdim=True)
    sizes = torch.linalg.vector_norm(columns, torch.inf, dim=-2, keepdim=True)
    return torch.linalg.vector_norm(columns / sizes.clamp_min(_TINY), dim=-2, keepdim=True) * sizes


def _gram_basis(columns: Tensor, norms: Tensor, exact: bool) -> tuple[Tensor, Tensor]:
    k = columns.shape[-1] // 2
    finite = norms.isfinite().all(dim=-1, keepdim=True)
    q = torch.where(finite, columns / norms.clamp_min(_TINY), 0.0)
    r = torch.diag_embed(norms.squeeze(-2)).to(q.dtype)  # columns = q r throughout
    for _ in range(3):
        if on_device(columns):
            t, triangle = iterations.orthonormalizer(q.mH @ q)
            q, r = q @ t, triangle @ r
            continue
        eigenvalues, vectors = torch.linalg.eigh(q.mH @ q)
        floor = (_FLOOR * eigenvalues[..., -1:]).clamp_min(_TINY)
        root = eigenvalues.maximum(floor).sqrt()
        q = q @ (vectors / root.unsqueeze(-2))
        r = (root.unsqueeze(-1) * vectors.mH) @ r
    if exact and not on_device(columns):
        # Off by up to 1e-13 where columns depend on each other.  Columns that are zero stay zero.
        error = q.mH @ q - torch.eye(q.shape[-1], dtype=q.dtype)
        present = error.diagonal(dim1=-2, dim2=-1).real.abs() < 0.5
        error = torch.where(present[..., :, None] & present[..., None, :], error, 0.0)
        q, r = q - q @ error / 2, r + error @ r / 2
    return q, r[..., k:] @ r[..., :k].mH
