"""An orthonormal basis of a few columns, one program for each matrix.

The columns come as partial sums, (splits, k, n) for each matrix, and go through registers in chunks of
BN.
"""

import triton
import triton.language as tl

from projunn_kernels.language.columns import combine, gram
from projunn_kernels.language.factors import load_columns, store_columns, sum_partials
from projunn_kernels.language.small import eye, matmul, orthonormalizer

# Square of the norm that a column keeps where the others before it are removed, relative to the shift
# that the first Cholesky factor adds.  Below it the column is rounding, about 1e-9 of what it was.
_DEPENDENT = tl.constexpr(1e-3)


@triton.jit
def orthonormal_kernel(
    partial,
    factor,
    n,
    k,
    splits,
    PAIRS: tl.constexpr,
    BN: tl.constexpr,
    K: tl.constexpr,
):
    """``orth`` of the columns whose partial sums are given, (k, n): Cholesky of the Gram matrix, twice.

    One program a matrix, in tiles of K rows: 16 for real k > 1.  k = 1 is a division by the norm.
    Columns that depend on those before them come out zero: both factors are applied at once, and would
    blow rounding up to any size.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    slot = tl.program_id(0).to(tl.int64)
    source = partial + slot * splits * k * n * WIDTH
    out = factor + slot * k * n * WIDTH
    gr = tl.zeros((K, K), tl.float64)
    gi = tl.zeros((K, K), tl.float64)
    for first in range(0, n, BN):
        yr, yi = sum_partials(source, first, n, k, splits, BN, K, PAIRS)
        store_columns(out, first, n, k, yr, yi, BN, K, PAIRS)
        ar, ai = gram(yr, yi, PAIRS)
        gr += ar
        gi += ai
    tr, ti, _r, _i = orthonormalizer(gr, gi, K, PAIRS)
    tl.debug_barrier()
    if K == 1:
        for first in range(0, n, BN):
            yr, yi = load_columns(out, first, n, k, BN, K, PAIRS)
            store_columns(out, first, n, k, yr * tr, yi * tr, BN, K, PAIRS)
    else:
        hr = tl.zeros((K, K), tl.float64)
        hi = tl.zeros((K, K), tl.float64)
        for first in range(0, n, BN):
            yr, yi = load_columns(out, first, n, k, BN, K, PAIRS)
            yr, yi = combine(tr, ti, yr, yi, PAIRS)
            ar, ai = gram(yr, yi, PAIRS)
            hr += ar
            hi += ai
        kept = tl.where(tl.sum(hr * eye(K), axis=0) < _DEPENDENT, 0.0, 1.0)  # NaN is kept
        both = kept[:, None] * kept[None, :]
        ur, ui, _r, _i = orthonormalizer(hr * both, hi * both, K, PAIRS)
        tr, ti = matmul(tr, ti, ur, ui, PAIRS)
        for first in range(0, n, BN):
            yr, yi = load_columns(out, first, n, k, BN, K, PAIRS)
            yr, yi = combine(tr, ti, yr, yi, PAIRS)
            tl.debug_barrier()
            store_columns(out, first, n, k, yr, yi, BN, K, PAIRS)
