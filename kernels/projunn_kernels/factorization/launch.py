"""Launches that find the low-rank factors of a matrix."""

from typing import NamedTuple

import torch
from torch import Tensor

from projunn_kernels.batches import as_matrices, contiguous_matrices
from projunn_kernels.configs.problem import Config, Problem, device_of, power_of_two
from projunn_kernels.constants import MAX_MANY, MAX_PARTS, MAX_RANK
from projunn_kernels.factorization import orthonormalize
from projunn_kernels.factorization.eager import of_full_rank, off_corner
from projunn_kernels.factorization.kernels import gram_kernel, orthonormal_kernel, unit_kernel
from projunn_kernels.factorization.rows import gathered, orthonormal_rows
from projunn_kernels.launching import Chain, Launch, as_columns, choose, floats, options
from projunn_kernels.products.launch import (
    adjoint_partials,
    adjoint_product,
    product,
    product_columns,
)

_SHORT = 64  # the length of columns that one program takes sooner than a launch takes to begin


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
        right = (listed if tall else listed.mH).clone(memory_format=torch.contiguous_format)
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


def orthonormal_launch(
    partial: Tensor, alone: bool | None = None, times: int = 2
) -> tuple[Launch | Chain, Tensor]:
    """A launch of `orthonormal`, or a few, and its result (A, k, n).

    ``alone`` if one program makes all of a matrix.  For k > MAX_RANK by ``times`` Cholesky factors.
    """
    if partial.shape[2] > MAX_RANK:
        return _many_orthonormal(partial, times)
    count, splits, k, n = partial.shape
    result, pairs = partial.new_empty(count, k, n), partial.is_complex()
    alone = is_alone(partial) if alone is None else alone and k > 1
    config = choose(Problem("orthonormal", pairs, k, n, n, count), partial.device, alone=alone)
    if k == 1:
        made = Launch(
            unit_kernel,
            (count,),
            partial=floats(partial),
            factor=floats(result),
            n=n,
            splits=splits,
            PAIRS=pairs,
            HOLD=config.columns >= n,
            BN=config.columns,
            **options(config.warps),
        )
        return made, result
    shared = Parts.of(partial, power_of_two(k), alone, config)
    last = Launch(
        orthonormal_kernel,
        (shared.parts, count),
        partial=floats(partial),
        columns=shared.columns,
        gram=shared.gram,
        factor=floats(result),
        n=n,
        k=k,
        splits=splits,
        each=shared.each,
        PAIRS=pairs,
        ALONE=alone,
        BN=config.columns,
        K=power_of_two(k),
        **options(config.warps),
    )
    return (last if alone else Chain([gram_launch(partial, shared, config)], last)), result


class Parts(NamedTuple):
    """What the programs of a matrix share, 1 < k <= 8.

    Attributes:
        size: S, the columns of P, of which there are k or 2 k, rounded up to a power of two.
        parts: how many parts a column has, of which each has a program.
        each: how many numbers a part has.
        columns: a place for P, (A, S, n), in float64.
        gram: a place for the Gram matrices of the parts of P.
    """

    size: int
    parts: int
    each: int
    columns: Tensor
    gram: Tensor

    @classmethod
    def of(cls, columns: Tensor, size: int, alone: bool, config: Config) -> "Parts":
        """Those of columns like (A, .., n), of which P has ``size``; ``alone`` there is one."""
        count, n = columns.shape[0], columns.shape[-1]
        chunks = -(-n // config.columns)
        chunks_each = -(-chunks // (1 if alone else min(chunks, MAX_PARTS)))
        parts = -(-chunks // chunks_each)
        numbers = count * size * (2 if columns.is_complex() else 1)
        lengths = numbers * n, 1 if alone else numbers * parts * size
        places = (torch.empty(each, dtype=torch.float64, device=columns.device) for each in lengths)
        return cls(size, parts, chunks_each * config.columns, *places)


def is_alone(partial: Tensor) -> bool:
    """Whether a program does all of a matrix: 1 < k <= 8, of columns (A, splits, k, n)."""
    count, _, k, n = partial.shape
    return k > 1 and (n <= _SHORT or count >= device_of(partial.device).processors)


def gram_launch(
    partial: Tensor,
    shared: Parts,
    config: Config,
    right: Tensor | None = None,
    rate: float = -1.0,
    scale: Tensor | None = None,
    left: tuple[Tensor, Parts] | None = None,
) -> Launch:
    """A launch that makes P, and the Gram matrices of its parts.

    P is the sum of the partial sums (A, splits, k, n); with Y as ``right``, (A, k, n), it is [Y, -rate
    Z], and the rate that is launched is times ``scale``.  The launch may do the same for ``left``, X as
    (A, k, m) and what its programs share.
    """
    count, splits, k, n = partial.shape
    other, of_other = (partial, shared) if left is None else left
    more = 0 if left is None else of_other.parts
    return Launch(
        gram_kernel,
        (shared.parts + more, count),
        right=floats(partial if right is None else right),
        partial=floats(partial),
        columns=shared.columns,
        gram=shared.gram,
        left=floats(other),
        left_columns=of_other.columns,
        left_gram=of_other.gram,
        rate_tensor=shared.gram if scale is None else scale,
        rate=rate,
        m=other.shape[-1],
        n=n,
        k=k,
        splits=splits,
        each=shared.each,
        left_each=of_other.each,
        parts=shared.parts,
        BOTH=right is not None,
        PAIRS=partial.is_complex(),
        HAS_RATE=scale is not None,
        BN=config.columns,
        S=shared.size,
        **options(config.warps),
    )


def _many_orthonormal(partial: Tensor, times: int) -> tuple[Chain, Tensor]:
    """The same for k > 8."""
    gather, columns = gathered(partial)
    result = partial.new_empty(columns.shape)
    *runs, last = orthonormal_rows(columns, result, times).runs
    return Chain([gather, *runs], last), result
