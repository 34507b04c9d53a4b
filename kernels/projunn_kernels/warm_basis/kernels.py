"""The basis that the factorization of the next step starts from, for one column."""

import triton
import triton.language as tl

from projunn_kernels.language.factors import load_columns, store_columns
from projunn_kernels.language.float64 import reciprocal, square_root
from projunn_kernels.language.plane import PROBE, TINY, dot


@triton.jit
def warm_basis_kernel(
    left,
    basis,
    probe,
    taken_mask,
    m,
    PAIRS: tl.constexpr,
    BN: tl.constexpr,
):
    """k = 1: ``R <- X / |X| + 0.01 probe`` where the step was taken.  One program a matrix."""
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    slot = tl.program_id(0).to(tl.int64)
    if tl.load(taken_mask + slot) == 0:
        return
    at = slot * m * WIDTH
    squares = tl.zeros((), tl.float64)
    for first in range(0, m, BN):
        xr, xi = load_columns(left + at, first, m, 1, BN, 1, PAIRS)
        squares += dot(xr, xi, xr, xi, PAIRS)[0]
    inverse = reciprocal(tl.maximum(square_root(squares), TINY))
    for first in range(0, m, BN):
        xr, xi = load_columns(left + at, first, m, 1, BN, 1, PAIRS)
        pr, pi = load_columns(probe + at, first, m, 1, BN, 1, PAIRS)
        xr, xi = xr * inverse + PROBE * pr, xi * inverse + PROBE * pi
        store_columns(basis + at, first, m, 1, xr, xi, BN, 1, PAIRS)
