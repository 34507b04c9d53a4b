"""Launches that find low-rank factors: of a matrix, and of a gradient that is never formed.

Tensors as in `projunn_kernels.launching`, whose skinny products these are made of.
"""

from torch import Tensor

from projunn_kernels.configs.problem import power_of_two
from projunn_kernels.factorization.kernels import orthonormal_kernel
from projunn_kernels.launching import as_columns, chosen, floats, options
from projunn_kernels.products.launch import adjoint_partials, product_columns


def factor(matrix: Tensor, basis: Tensor, active: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``Y = orth(M^H R)``, ``X = M Y``: X (A, m, k), Y (A, n, k), k <= MAX_RANK; two reads of M."""
    right = orthonormal(adjoint_partials(matrix, as_columns(basis), active), matrix)
    return product_columns(matrix, right, active).mT, right.mT


def orthonormal(partial: Tensor, matrix: Tensor) -> Tensor:
    """The columns of what the partial sums (A, splits, k, n) of ``M^H X`` add up to, orthonormal."""
    count, splits, k, n = partial.shape
    result = partial.new_empty(count, k, n)
    c = chosen("basis", matrix, k, count, None)
    orthonormal_kernel[(count,)](
        floats(partial),
        floats(result),
        n,
        k,
        splits,
        PAIRS=partial.is_complex(),
        BN=c.columns,
        K=power_of_two(k),
        **options(c.warps),
    )
    return result
