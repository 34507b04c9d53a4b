"""The whole step of rank 1 of a matrix in one program: factor, project, retract, write.

    Y = orth(D^H R)    X = D Y    Z = -rate W^H X    Q E Q^H = Z Y^H    F = f(E) - I
    W += (W Q) (Q F^H)^H          R <- orth(X) + 0.01 probe

One matrix is an m x n weight, m <= n, with its direction D and warm basis R; the whole width of
the matrix is in registers, its rows pass in panels of BM.  With a single panel D and W are read once
and W written once; with more panels both are read twice, the second time from cache.  A matrix whose
direction is zero touches its basis only.  `projunn_kernels.step.eager` has the formulas in PyTorch.
"""

import triton
import triton.language as tl

from projunn_kernels.language.counters import count_missed, count_skipped
from projunn_kernels.language.float64 import reciprocal, square_root
from projunn_kernels.language.plane import PROBE, TINY, plane_rotation
from projunn_kernels.language.tiles import (
    add_outer,
    adjoint_times,
    load_column,
    pointer,
    square_sum,
    store_column,
    times,
)


@triton.jit
def _matrix(active, matrices, ACTIVE: tl.constexpr):
    """Parameter, matrix in it, and whether there is one: negative entries of ``active`` are none.

    An active list belongs to one parameter, and the directions to its entries.
    """
    index = tl.program_id(0)
    if ACTIVE:
        index = tl.load(active + index).to(tl.int32)
    present = index >= 0
    index = tl.maximum(index, 0)
    return index // matrices, (index % matrices).to(tl.int64), present


@triton.jit
def _places(
    weights,
    directions,
    bases,
    probes,
    scratch,
    entry,
    matrix,
    m,
    n,
    k,
    D_TYPE: tl.constexpr,
    PAIRS: tl.constexpr,
    ACTIVE: tl.constexpr,
):
    """Where W and D (m, n), R, probe and X (m, k) of a matrix begin; D and X are in the list's order."""
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    slot = tl.program_id(0).to(tl.int64)
    w = pointer(weights, entry, tl.float32) + matrix * m * n * WIDTH
    d = pointer(directions, entry, D_TYPE) + (slot if ACTIVE else matrix) * m * n * WIDTH
    r = pointer(bases, entry, tl.float32) + matrix * m * k * WIDTH
    g = pointer(probes, entry, tl.float32) + matrix * m * k * WIDTH
    return w, d, r, g, scratch + slot * m * k * WIDTH


@triton.jit
def _count(skipped, missed, entry, matrix, ACTIVE: tl.constexpr):
    """Count a step that is not taken.  With an active list the caller counts what was missed."""
    count_skipped(skipped, entry)
    if not ACTIVE:
        count_missed(missed, entry, matrix)


@triton.jit
def _floats(rows, m, n, BN: tl.constexpr, PAIRS: tl.constexpr):
    """Where the floats of whole rows are in a matrix, and which of them there are.

    32-bit offsets reach all of a small matrix.  Rows that are not aligned take an address for each
    number, and with 64 bits each these alone fill a third of the registers.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    columns = tl.arange(0, BN * WIDTH)
    at = rows[:, None] * (n * WIDTH) + columns[None, :]
    return at, (rows < m)[:, None] & (columns < n * WIDTH)[None, :]


@triton.jit
def load_rows(base, rows, m, n, BN: tl.constexpr, PAIRS: tl.constexpr):
    """`load_tile` of whole rows of a small matrix."""
    at, inside = _floats(rows, m, n, BN, PAIRS)
    re = tl.load(base + at, mask=inside, other=0.0).to(tl.float32)
    im = re
    if PAIRS:
        re, im = tl.split(tl.reshape(re, (rows.shape[0], BN, 2)))
    return re, im


@triton.jit
def store_rows(base, rows, m, n, re, im, BN: tl.constexpr, PAIRS: tl.constexpr):
    """The inverse of `load_rows`."""
    at, inside = _floats(rows, m, n, BN, PAIRS)
    if PAIRS:
        re = tl.reshape(tl.join(re, im), (rows.shape[0], 2 * BN))
    tl.store(base + at, re, mask=inside)


@triton.jit
def refresh(basis, probe, rows, m, xr, xi, inverse, PAIRS: tl.constexpr):
    """``R <- x / |x| + 0.01 probe`` in some rows; ``inverse`` is 1 / |x|."""
    inside = rows < m
    gr, gi = load_column(probe, rows, inside, PAIRS)
    re, im = (xr * inverse).to(tl.float32) + PROBE * gr, (xi * inverse).to(tl.float32) + PROBE * gi
    store_column(basis, rows, inside, re, im, PAIRS)


@triton.jit
def plane_step_kernel(
    weights,
    directions,
    bases,
    probes,
    skipped,
    missed,
    taken_mask,
    active,
    scratch,
    rate_tensor,
    rate,
    precision,
    matrices,
    m,
    n,
    D_TYPE: tl.constexpr,
    ROTATE: tl.constexpr,
    PAIRS: tl.constexpr,
    ACTIVE: tl.constexpr,
    HAS_RATE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PANELS: tl.constexpr,
):
    """k = 1."""
    entry, matrix, present = _matrix(active, matrices, ACTIVE)
    if not present:
        tl.store(taken_mask + tl.program_id(0), 0)
        return
    w, d, r, g, x = _places(
        weights, directions, bases, probes, scratch, entry, matrix, m, n, 1, D_TYPE, PAIRS, ACTIVE
    )
    if HAS_RATE:
        rate *= tl.load(rate_tensor).to(tl.float32)
    lane = tl.arange(0, BM)

    # Y = orth(D^H R)
    yr = tl.zeros((BN,), tl.float32)
    yi = tl.zeros((BN,), tl.float32)
    whole = m if PANELS == 1 else 0  # with several panels nothing is loaded ahead of the loops
    dr, di = load_rows(d, lane, whole, n, BN, PAIRS)
    for panel in range(PANELS):
        rows = panel * BM + lane
        if PANELS > 1:
            dr, di = load_rows(d, rows, m, n, BN, PAIRS)
        br, bi = load_column(r, rows, rows < m, PAIRS)
        pr, pi = adjoint_times(dr, di, br, bi, PAIRS)
        yr += pr
        yi += pi
    size = square_root(square_sum(yr, yi, PAIRS))
    inverse = reciprocal(
        tl.maximum(size, TINY)
    )  # in float64: the inverse of a zero norm is finite there
    yr, yi = (yr * inverse).to(tl.float32), (yi * inverse).to(tl.float32)
    moves = size != 0.0  # NaN moves, and is refused below

    # X = D Y,  Z = -rate W^H X
    zr = tl.zeros((BN,), tl.float32)
    zi = tl.zeros((BN,), tl.float32)
    squares = tl.zeros((), tl.float64)
    wr, wi = load_rows(w, lane, tl.where(moves, whole, 0), n, BN, PAIRS)
    xr, xi = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
    for panel in range(PANELS):
        rows = panel * BM + lane
        if PANELS > 1:
            dr, di = load_rows(d, rows, tl.where(moves, m, 0), n, BN, PAIRS)
            wr, wi = load_rows(w, rows, tl.where(moves, m, 0), n, BN, PAIRS)
        xr, xi = times(dr, di, yr, yi, PAIRS)
        squares += square_sum(xr, xi, PAIRS)
        if PANELS > 1:
            store_column(x, rows, rows < m, xr, xi, PAIRS)
        pr, pi = adjoint_times(wr, wi, xr, xi, PAIRS)
        zr += pr
        zi += pi
    zr, zi = -rate * zr, -rate * zi

    q1r, q1i, q2r, q2i, t1r, t1i, t2r, t2i, taken = plane_rotation(
        yr.to(tl.float64), yi.to(tl.float64), zr.to(tl.float64), zi.to(tl.float64), precision,
        ROTATE, PAIRS,
    )  # fmt: skip
    taken = taken & (squares < 1e300)
    tl.store(taken_mask + tl.program_id(0), taken.to(tl.int8))
    if not taken:
        _count(skipped, missed, entry, matrix, ACTIVE)

    # W += (W Q) (Q F^H)^H.  The rows of a step that is not taken are sent beyond the last one: so the
    # addresses depend on what is known only here, and are not those of the load, kept in registers.
    kept = tl.where(taken & moves, m, 0)
    for panel in range(PANELS):
        rows = panel * BM + lane
        if PANELS > 1:
            wr, wi = load_rows(w, rows, kept, n, BN, PAIRS)
        l1r, l1i = times(wr, wi, q1r, q1i, PAIRS)
        l2r, l2i = times(wr, wi, q2r, q2i, PAIRS)
        ur, ui = add_outer(wr, wi, l1r, l1i, t1r, t1i, PAIRS)
        ur, ui = add_outer(ur, ui, l2r, l2i, t2r, t2i, PAIRS)
        store_rows(w, m - kept + rows, m, n, ur, ui, BN, PAIRS)

    inverse = reciprocal(tl.maximum(square_root(squares), TINY))
    if PANELS > 1:
        tl.debug_barrier()
    for panel in range(PANELS):
        rows = panel * BM + lane
        if PANELS > 1:
            xr, xi = load_column(x, rows, rows < m, PAIRS)
        refresh(r, g, rows, tl.where(taken, m, 0), xr, xi, inverse, PAIRS)
