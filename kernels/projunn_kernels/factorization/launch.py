"""Launches that find the low-rank factors of a matrix."""

from torch import Tensor

from projunn_kernels.batches import as_matrices, contiguous_matrices
from projunn_kernels.configs.problem import Problem, power_of_two
from projunn_kernels.constants import MAX_MANY, MAX_RANK
from projunn_kernels.factorization import orthonormalize
from projunn_kernels.factorization.eager import of_full_rank, off_corner
from projunn_kernels.factorization.kernels import orthonormal_kernel
from projunn_kernels.factorization.rows import orthonormal_rows, precise, total
from projunn_kernels.launching import Chain, Launch, as_columns, choose, floats, options
from projunn_kernels.products.launch import (
    adjoint_partials,
    adjoint_product,
    product,
    product_columns,
)


def factors(matrix: Tensor, basis: Tensor, active: Tensor | None = None) -> list[Tensor]:
    """`projunn_kernels.factor` of tensors as users have them."""
    matrices, start = contiguous_matrices(matrix), as_matrices(basis)
    if basis.shape[-1] <= MAX_MANY:
        left, right = factor(matrices, start, active)
    else:
        right = orthonormalize(adjoint_product(matrices, start, active))
        left = product(matrices, right, active)
    batch = basis.shape[:-2]
    return [t.reshape(*batch, *t.shape[-2:]) for t in (left, right)]


def factor(matrix: Tensor, basis: Tensor, active: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``Y = orth(M^H R)``, ``X = M Y``: X (A, m, k), Y (A, n, k), k <= MAX_MANY; two reads of M."""
    right = orthonormal(adjoint_partials(matrix, as_columns(basis), active))
    return product_columns(matrix, right, active).mT, right.mT


def tangents(
    matrix: Tensor, weight: Tensor, basis: Tensor, active: Tensor | None = None
) -> list[Tensor]:
    """`projunn_kernels.tangent_factors` of tensors as users have them."""
    found = tangent(contiguous_matrices(matrix), contiguous_matrices(weight), as_matrices(basis), active)
    return [t.reshape(*basis.shape[:-2], *t.shape[-2:]) for t in found]


def tangent(
    matrix: Tensor, weight: Tensor, basis: Tensor, active: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Z, Y and W Y of the tangent part, (A, n, k) each: four reads of M and W, by a launch each."""
    tall = weight.shape[-2] > weight.shape[-1]
    into, back = (adjoint_product, product) if tall else (product, adjoint_product)

    def twice(columns: Tensor) -> tuple[Tensor, Tensor]:
        pushed, moved = into(matrix, columns, None), into(weight, columns, active)
        return back(weight, pushed, active) - back(matrix, moved, None), moved

    if of_full_rank(weight, basis):
        listed = weight if active is None else weight[active.clamp_min(0).long()]
        right = (listed if tall else listed.mH).resolve_conj().contiguous()
    else:
        right = orthonormalize(twice(basis)[0])
    doubled, moved = twice(right)
    return off_corner(doubled, right), right, moved


def orthonormal_columns(columns: Tensor) -> Tensor:
    """`projunn_kernels.orthonormalize` of tensors as users have them, 1 < k <= MAX_MANY, k <= n."""
    columns_first = as_columns(as_matrices(columns)).unsqueeze(1)
    return orthonormal(columns_first).mT.reshape(columns.shape)


def orthonormal(partial: Tensor) -> Tensor:
    """The columns of what the partial sums (A, splits, k, n) of ``M^H X`` add up to, orthonormal."""
    run, result = orthonormal_launch(partial)
    run()
    return result


def orthonormal_launch(partial: Tensor) -> tuple[Launch | Chain, Tensor]:
    """A launch of `orthonormal`, or a few for k > 8, and its result (A, k, n)."""
    if partial.shape[2] > MAX_RANK:
        return _many_orthonormal(partial)
    count, splits, k, n = partial.shape
    result = partial.new_empty(count, k, n)
    problem = Problem("orthonormal", partial.is_complex(), k, n, n, count)
    config = choose(problem, partial.device)
    made = Launch(
        orthonormal_kernel,
        (count,),
        partial=floats(partial),
        factor=floats(result),
        n=n,
        k=k,
        splits=splits,
        PAIRS=partial.is_complex(),
        BN=config.columns,
        K=power_of_two(k) if k == 1 or partial.is_complex() else 16,
        **options(config.warps),
    )
    return made, result


def _many_orthonormal(partial: Tensor) -> tuple[Chain, Tensor]:
    """The same for k > 8."""
    count, _, k, n = partial.shape
    columns = partial.new_empty(count, k, n, dtype=precise(partial))
    found = orthonormal_rows(columns, times=2, keep=False)
    *runs, last = found.runs
    result = partial.new_empty(count, k, n)
    made = Chain([total(partial, columns), *runs], last, [lambda: result.copy_(found.rows)])
    return made, result
