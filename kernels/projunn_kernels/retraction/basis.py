"""The step in an orthonormal basis: ``W^H D = Z Y^H = Q E Q^H`` in float64.

Y and Z are (*batch, n, k), Q is (*batch, n, 2k) with orthonormal columns that span both, E is
(*batch, 2k, 2k).  Where 2k is n or more, Q is the identity and E is Z Y^H, both n x n, but for k = 1,
n = 2.  A retraction built on Q is a *small* unitary matrix that acts in the span of the step, so it
stays unitary whatever the size or the conditioning of the step.

For k = 1 the columns are orthonormalized by Gram-Schmidt, done twice ("twice is enough"): but not where
z is a multiple of y to the last bit, whose rest is rounding of rounding and is left out.  For k > 1
a CPU takes their QR decomposition by Householder's reflections, which costs it a tenth to a half of what
follows.  On a GPU, where that would be a call of a library for each matrix, they are multiplied three
times by the inverse of a Cholesky factor of their Gram matrix (shifted CholeskyQR3; Fukaya, Kannan,
Nakatsukasa, Yamamoto, Yanagisawa, SIAM J. Sci. Comput. 42, 2020; `projunn_kernels.iterations`).
Dependent, zero, or more than n columns are no special case: directions that the step does not have get
entries of rounding size.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from projunn_kernels import iterations
from projunn_kernels.backends import on_device
from projunn_kernels.factorization.eager import vector_norms

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
    return *_basis(columns, norms), norms


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


def _basis(columns: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    k = columns.shape[-1] // 2
    finite = norms.isfinite().all(dim=-1, keepdim=True)
    units = torch.where(finite, columns / norms.clamp_min(_TINY), 0.0)
    if not on_device(columns):
        q, r = torch.linalg.qr(units)
        if r.isfinite().all():  # LAPACK's of many equal complex columns may not be
            r = r * norms
            return q, r[..., k:] @ r[..., :k].mH
    q, r = units, torch.diag_embed(norms.squeeze(-2)).to(units.dtype)  # columns = q r throughout
    for _ in range(3):
        t, triangle = iterations.orthonormalizer(q.mH @ q)
        q, r = q @ t, triangle @ r
    return q, r[..., k:] @ r[..., :k].mH
