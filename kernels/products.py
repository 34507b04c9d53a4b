"""Products of a matrix with a skinny factor: ``W^H X`` and ``W X``, each one read of W.

The matrix is (*batch, m, n) and row-major; factors have k << n columns.  On a CPU the
orientation decides the speed: BLAS streams a row-major W at full bandwidth for ``X^H W`` and
for ``W X`` with a column-major X, and up to ten times slower for the other spellings of the
same product; one column of one matrix goes to its matrix-vector routine (docs/measured.md).
These two functions are the only place that knows.
"""

import torch
from torch import Tensor


def adjoint_product(weight: Tensor, factor: Tensor) -> Tensor:
    """``W^H X``: (*batch, m, n) and (*batch, m, k) give (*batch, n, k), stored column-major."""
    if weight.ndim == 2 and factor.shape[-1] == 1:
        return torch.mv(weight.mT, factor.squeeze(-1).conj()).conj().unsqueeze(-1)
    return (factor.mH @ weight).mH


def product(weight: Tensor, factor: Tensor) -> Tensor:
    """``W X``: (*batch, m, n) and (*batch, n, k) give (*batch, m, k)."""
    k = factor.shape[-1]
    if k == 1 and weight.ndim == 2:
        return torch.mv(weight, factor.squeeze(-1)).unsqueeze(-1)
    if k == 1:  # a batch of matrix-vector products: BLAS wants two columns
        factor = torch.cat([factor, torch.zeros_like(factor)], dim=-1)
    columns = factor.mT.contiguous().mT
    return (weight @ columns)[..., :k]
