"""The rules of optimizers, elementwise.

sound    whether every entry of a stretch of G is below the limit; 1 - b1^t and (1 - b2^t)^-1/2
rule     the averages and the direction, where all stretches of the matrix are sound

Passes that read a gradient move its averages by `follow_tile` too: `rule_product`, which makes D^H R as
well, and the first pass of `projunn_kernels.single_pass`.
"""

import triton
import triton.language as tl

from projunn_kernels.language.counters import count_missed
from projunn_kernels.language.tiles import (
    add_adjoint,
    load_rows_as_columns,
    load_tile,
    matrix_place,
    pointer,
    store_tile,
)

PARTS = tl.constexpr(1024)  # of the gradient of a matrix, at most


@triton.jit
def _power(base, exponent):
    """base^exponent in float64, for 0 <= exponent < 2^48, by repeated squaring."""
    result = base * 0.0 + 1.0
    for bit in tl.static_range(48):
        result = tl.where((exponent >> bit) & 1 != 0, result * base, result)
        base = base * base
    return result


@triton.jit
def sound_kernel(
    gradients,
    finite,
    shares,
    missed,
    counted,
    numbers,
    steps_high,
    steps_low,
    matrices,
    size,
    stretch,
    COUNTED: tl.constexpr,
    CORRECTED: tl.constexpr,
    PAIRS: tl.constexpr,
    B: tl.constexpr,
):
    """Grid (parts, matrices).  ``size`` floats a matrix, of which a part has ``stretch``."""
    slot = tl.program_id(1).to(tl.int64)
    part = tl.program_id(0)
    g, _ = matrix_place(gradients, gradients, matrices, size, 1, "table", tl.float32)
    limit = tl.load(numbers).to(tl.float32)
    if PAIRS:
        limit *= 0.7071067  # of both parts, so that the complex number is below it
    lane = tl.arange(0, B)
    first = part.to(tl.int64) * stretch
    wrong = tl.zeros((B,), tl.int32)
    for start in range(0, stretch, B):
        at = first + start + lane
        inside = (start + lane < stretch) & (at < size)
        entries = tl.load(g + at, mask=inside, other=0.0)
        wrong = wrong | tl.where(tl.abs(entries) < limit, 0, 1)
    tl.store(finite + slot * tl.num_programs(0) + part, (tl.max(wrong) == 0).to(tl.int8))
    if CORRECTED and part == 0:
        if COUNTED:
            count = tl.load(pointer(counted, slot // matrices, tl.int64))
        else:
            high = tl.full((), steps_high, tl.float32).to(tl.int64)
            count = high * 1048576 + tl.full((), steps_low, tl.float32).to(tl.int64)
        count -= tl.load(pointer(missed, slot // matrices, tl.int64) + slot % matrices)
        mean = 1.0 - _power(tl.load(numbers + 1), count)
        square = 1.0 - _power(tl.load(numbers + 3), count)
        tl.store(shares + 2 * slot, mean.to(tl.float32))
        tl.store(shares + 2 * slot + 1, 1.0 / tl.sqrt(square.to(tl.float32)))


@triton.jit
def are_finite(finite, slot, parts):
    """Whether all parts of the gradient of a matrix are, as `sound_kernel` has found."""
    at = tl.arange(0, PARTS)
    found = tl.load(finite + slot * parts + at, mask=at < parts, other=1)
    return tl.min(found.to(tl.int32), axis=0) != 0


@triton.jit
def places_of_averages(
    means,
    squares,
    others,
    matrices,
    size,
    axis: tl.constexpr,
    RULE: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Where the averages of a program's matrix begin; anywhere for one that the rule does not have."""
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    OTHER_WIDTH: tl.constexpr = WIDTH if RULE == "rmsprop" else 1
    m, _ = matrix_place(means, means, matrices, size * WIDTH, axis, "table", tl.float32)
    v, _ = matrix_place(squares, squares, matrices, size, axis, "table", tl.float32)
    o, _ = matrix_place(others, others, matrices, size * OTHER_WIDTH, axis, "table", tl.float32)
    return m, v, o


@triton.jit
def constants_of(numbers, shares, slot):
    """The constants of a rule but the limit, and 1 - b1^t and (1 - b2^t)^-1/2 of a matrix."""
    return (
        tl.load(numbers + 1).to(tl.float32),
        tl.load(numbers + 2).to(tl.float32),
        tl.load(numbers + 3).to(tl.float32),
        tl.load(numbers + 4).to(tl.float32),
        tl.load(numbers + 5).to(tl.float32),
        tl.load(numbers + 6).to(tl.float32),
        tl.load(shares + 2 * slot),
        tl.load(shares + 2 * slot + 1),
    )


@triton.jit
def _of_entries(spread, rows, first, height, width, BN: tl.constexpr):
    """What entries of a tile are divided by; one where there is none: eps may be 0, and 0 / 0 is NaN."""
    inside = (rows < height)[:, None] & (first + tl.arange(0, BN) < width)[None, :]
    return tl.where(inside, spread, 1.0)


@triton.jit
def follow_tile(
    g,
    m,
    v,
    o,
    constants,
    rows,
    first,
    height,
    width,
    RULE: tl.constexpr,
    MEAN: tl.constexpr,
    OTHER: tl.constexpr,
    NESTEROV: tl.constexpr,
    BN: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Move the averages of a tile of G, and return its direction.

    The tile is rows ``rows`` and BN columns from ``first`` of ``height`` x ``width`` matrices; outside
    of them the direction is zero.  All is loaded before anything is stored, since a load after a store
    waits for it.
    """
    SQUARED: tl.constexpr = RULE == "rmsprop" or RULE == "adamw"
    OTHER_PAIRS: tl.constexpr = PAIRS and RULE == "rmsprop"
    mean_decay, mean_weight, square_decay, square_weight, eps, momentum, share, root = constants
    gr, gi = load_tile(g, rows, first, height, width, BN, PAIRS)
    if MEAN:
        mr, mi = load_tile(m, rows, first, height, width, BN, PAIRS)
    if SQUARED:
        average, _ = load_tile(v, rows, first, height, width, BN, False)
    if OTHER:
        br, bi = load_tile(o, rows, first, height, width, BN, OTHER_PAIRS)
    if MEAN:
        ar, ai = mean_decay * mr + mean_weight * gr, mean_decay * mi + mean_weight * gi
        store_tile(m, rows, first, height, width, ar, ai, BN, PAIRS)
    if SQUARED:
        average = square_decay * average + square_weight * (gr * gr + gi * gi if PAIRS else gr * gr)
        store_tile(v, rows, first, height, width, average, average, BN, False)
    if RULE == "momentum":
        if NESTEROV:
            gr, gi = gr + momentum * ar, gi + momentum * ai
        else:
            gr, gi = ar, ai
    elif RULE == "lion":
        gr, gi = gr + momentum * (mr - gr), gi + momentum * (mi - gi)
        if PAIRS:
            length = tl.maximum(tl.abs(gr), tl.abs(gi))
            inverse = tl.where(length > 1.2e-38, 1.0 / tl.maximum(length, 1.2e-38), 0.0)
            gr, gi = gr * inverse, gi * inverse
            inverse = 1.0 / tl.sqrt(tl.maximum(gr * gr + gi * gi, 0.5))
            gr, gi = gr * inverse, gi * inverse
        else:
            gr = tl.where(gr > 0.0, 1.0, tl.where(gr < 0.0, -1.0, gr))
    elif RULE == "adamw":
        if OTHER:
            average = tl.maximum(br, average)
            store_tile(o, rows, first, height, width, average, average, BN, False)
        spread = _of_entries((tl.sqrt(average) * root + eps) * share, rows, first, height, width, BN)
        gr, gi = ar / spread, ai / spread
    else:
        if MEAN:
            average = tl.maximum(average - (ar * ar + ai * ai if PAIRS else ar * ar), 0.0)
        spread = _of_entries(tl.sqrt(average) + eps, rows, first, height, width, BN)
        gr, gi = gr / spread, gi / spread
        if OTHER:
            gr, gi = momentum * br + gr, momentum * bi + gi
            store_tile(o, rows, first, height, width, gr, gi, BN, PAIRS)
    return gr, gi


@triton.jit
def rule_kernel(
    gradients,
    directions,
    means,
    squares,
    others,
    missed,
    finite,
    shares,
    numbers,
    matrices,
    size,
    parts,
    RULE: tl.constexpr,
    MEAN: tl.constexpr,
    OTHER: tl.constexpr,
    NESTEROV: tl.constexpr,
    PAIRS: tl.constexpr,
    B: tl.constexpr,
):
    """Grid (stretches of B numbers, matrices of ``size`` numbers)."""
    slot = tl.program_id(1).to(tl.int64)
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    first, row = tl.program_id(0).to(tl.int64) * B, tl.arange(0, 1)
    d = directions + slot * size * WIDTH
    if not are_finite(finite, slot, parts):
        nothing = tl.full((1, B), float("nan"), tl.float32)
        store_tile(d, row, first, 1, size, nothing, nothing, B, PAIRS)
        if tl.program_id(0) == 0:
            count_missed(missed, slot // matrices, slot % matrices)
        return
    g, _ = matrix_place(gradients, gradients, matrices, size * WIDTH, 1, "table", tl.float32)
    m, v, o = places_of_averages(means, squares, others, matrices, size, 1, RULE, PAIRS)
    constants = constants_of(numbers, shares, slot)
    gr, gi = follow_tile(
        g, m, v, o, constants, row, first, 1, size, RULE, MEAN, OTHER, NESTEROV, B, PAIRS
    )
    store_tile(d, row, first, 1, size, gr, gi, B, PAIRS)


@triton.jit
def rule_product_kernel(
    gradients,
    directions,
    bases,
    partial,
    means,
    squares,
    others,
    missed,
    finite,
    shares,
    numbers,
    matrices,
    m,
    n,
    k,
    rows_each,
    splits,
    parts,
    RULE: tl.constexpr,
    MEAN: tl.constexpr,
    OTHER: tl.constexpr,
    NESTEROV: tl.constexpr,
    PAIRS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    K: tl.constexpr,
):
    """`rule_kernel`, and ``partial[b, split] = D[rows of the split]^H R`` (k, n), R (m, k).

    Grid (column tiles, splits, matrices).  K is k rounded up to a power of two.  Where a gradient is not
    finite nothing of it is read, D is not written, and ``partial`` is NaN: so is what D Y makes of it.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    first, split, slot = tl.program_id(0) * BN, tl.program_id(1), tl.program_id(2).to(tl.int64)
    kr = tl.arange(0, K)
    d = directions + slot * m * n * WIDTH
    g, _ = matrix_place(gradients, gradients, matrices, m * n * WIDTH, 2, "table", tl.float32)
    r, _ = matrix_place(bases, bases, matrices, m * k * WIDTH, 2, "table", tl.float32)
    mean, square, other = places_of_averages(means, squares, others, matrices, m * n, 2, RULE, PAIRS)
    constants = constants_of(numbers, shares, slot)
    follows = are_finite(finite, slot, parts)
    sr = tl.zeros((K, BM, BN), tl.float32)
    si = tl.zeros((K, BM, BN), tl.float32)
    if not follows:
        sr += float("nan")
        if (tl.program_id(0) == 0) & (split == 0):
            count_missed(missed, slot // matrices, slot % matrices)
    height = tl.where(follows, m, 0)
    for start in range(split * rows_each, tl.minimum((split + 1) * rows_each, height), BM):
        rows = start + tl.arange(0, BM)
        re, im = follow_tile(
            g,
            mean,
            square,
            other,
            constants,
            rows,
            first,
            m,
            n,
            RULE,
            MEAN,
            OTHER,
            NESTEROV,
            BN,
            PAIRS,
        )
        store_tile(d, rows, first, m, n, re, im, BN, PAIRS)
        xr, xi = load_rows_as_columns(r, rows, kr, m, k, PAIRS)
        sr, si = add_adjoint(sr, si, re, im, xr, xi, PAIRS)
    zr, zi = tl.sum(sr, axis=1), tl.sum(si, axis=1)
    store_tile(partial + (slot * splits + split) * k * n * WIDTH, kr, first, k, n, zr, zi, BN, PAIRS)
