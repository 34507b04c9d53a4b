"""The basis that the factorization of the next step starts from."""

import triton
import triton.language as tl

from projunn_kernels.language.counters import count_missed, count_skipped
from projunn_kernels.language.factors import load_columns, store_columns
from projunn_kernels.language.float64 import reciprocal, square_root
from projunn_kernels.language.plane import PROBE, TINY, dot
from projunn_kernels.language.tiles import (
    load_rows_as_columns,
    matrix_place,
    store_columns_as_rows,
)


@triton.jit
def warm_basis_kernel(
    left,
    basis,
    probe,
    taken_mask,
    skipped,
    missed,
    matrices,
    m,
    k,
    PAIRS: tl.constexpr,
    TABLE: tl.constexpr,
    BN: tl.constexpr,
    K: tl.constexpr,
):
    """``R <- X / |X| + 0.01 probe`` where the step was taken; for k > 1 X is orthonormal already.

    One program a matrix.  TABLE: ``basis``, ``probe`` and the counters are tables of addresses, of
    ``matrices`` matrices each, and a step that was not taken is counted.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    slot = tl.program_id(0).to(tl.int64)
    at = slot * m * k * WIDTH
    taken = tl.load(taken_mask + slot) != 0
    if TABLE:
        r, _ = matrix_place(basis, basis, matrices, m * k * WIDTH, 0, "table", tl.float32)
        g, _ = matrix_place(probe, probe, matrices, m * k * WIDTH, 0, "table", tl.float32)
        if not taken:
            count_skipped(skipped, slot // matrices)
            count_missed(missed, slot // matrices, slot % matrices)
    else:
        r, g = basis + at, probe + at
    kept = tl.where(taken, m, 0)
    squares = tl.zeros((), tl.float64)
    if K == 1:
        for first in range(0, kept, BN):
            xr, xi = load_columns(left + at, first, m, 1, BN, 1, PAIRS)
            squares += dot(xr, xi, xr, xi, PAIRS)[0]
    inverse = reciprocal(tl.maximum(square_root(squares), TINY))
    for first in range(0, kept, BN):
        xr, xi = load_columns(left + at, first, m, k, BN, K, PAIRS)
        if K == 1:
            pr, pi = load_columns(g, first, m, 1, BN, 1, PAIRS)
            xr, xi = xr * inverse + PROBE * pr, xi * inverse + PROBE * pi
            store_columns(r, first, m, 1, xr, xi, BN, 1, PAIRS)
        else:
            rows, columns = first + tl.arange(0, BN), tl.arange(0, K)
            pr, pi = load_rows_as_columns(g, rows, columns, m, k, PAIRS)
            xr, xi = (xr + PROBE * pr).to(tl.float32), (xi + PROBE * pi).to(tl.float32)
            store_columns_as_rows(r, rows, columns, m, k, xr, xi, PAIRS)
