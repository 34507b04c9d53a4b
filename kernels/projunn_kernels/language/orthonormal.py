"""1 < k <= 8: orthonormal columns, made by a program for each part of them."""

import triton
import triton.language as tl

from projunn_kernels.language.columns import (
    gram_of_combined,
    gram_of_part,
    load_combined,
    load_gram,
)
from projunn_kernels.language.factors import store_columns
from projunn_kernels.language.small import SOUND, eye, matmul, orthonormalizer

# Square of the norm that a column keeps where the others before it are removed, relative to the shift
# that the first Cholesky factor adds.  Below it the column is rounding, about 1e-9 of what it was.
DEPENDENT = tl.constexpr(1e-3)


@triton.jit
def orthonormal_part(
    partial,
    columns,
    gram,
    factor,
    part,
    parts,
    each,
    n,
    k,
    splits,
    PAIRS: tl.constexpr,
    ALONE: tl.constexpr,
    BN: tl.constexpr,
    K: tl.constexpr,
):
    """A part of ``orth`` of the columns P, (K, n), of a matrix, whose Gram matrix comes in ``parts``.

    The matrix is that of axis 1 of the grid.  Every program of it finds the same Cholesky factor, and
    applies it to its part of ``each`` numbers.  ALONE: there is one part, whose program makes P, from
    partial sums, and its Gram matrix.  Where columns depend on each other a second factor follows.
    Columns that depend on those before them come out zero: both factors are applied at once, and would
    blow rounding up to any size.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    slot = tl.program_id(1).to(tl.int64)
    at = slot * n * WIDTH
    columns += at * K
    if ALONE:
        gr, gi = gram_of_part(
            partial, partial + at * splits * k, columns, part, each, n, k, splits,
            1.0, False, PAIRS, BN, K,
        )  # fmt: skip
        tl.debug_barrier()
    else:
        gr, gi = load_gram(gram + slot * parts * (K * K * WIDTH), parts, K, PAIRS)
    tr, ti, _r, _i, volume = orthonormalizer(gr, gi, K, PAIRS)
    if volume < SOUND:
        hr, hi = gram_of_combined(columns, n, tr, ti, BN, K, PAIRS)
        kept = tl.where(tl.sum(hr * eye(K), axis=0) < DEPENDENT, 0.0, 1.0)  # NaN is kept
        both = kept[:, None] * kept[None, :]
        ur, ui, _r, _i, _volume = orthonormalizer(hr * both, hi * both, K, PAIRS)
        tr, ti = matmul(tr, ti, ur, ui, PAIRS)
    for first in range(part * each, tl.minimum((part + 1) * each, n), BN):
        yr, yi = load_combined(columns, first, n, tr, ti, BN, K, PAIRS)
        store_columns(factor + at * k, first, n, k, yr, yi, BN, K, PAIRS)
