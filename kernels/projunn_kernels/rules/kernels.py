"""The rules of optimizers, elementwise.

sound    whether every entry of a stretch of G is below the limit; 1 - b1^t and (1 - b2^t)^-1/2
rule     the averages and the direction, where all stretches of the matrix are sound
"""

import triton
import triton.language as tl

from projunn_kernels.language.tiles import load_range, matrix_place, pointer, store_range


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
    sound,
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
    tl.store(sound + slot * tl.num_programs(0) + part, (tl.max(wrong) == 0).to(tl.int8))
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
def rule_kernel(
    gradients,
    directions,
    means,
    squares,
    others,
    missed,
    sound,
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
    SQUARED: tl.constexpr = RULE == "rmsprop" or RULE == "adamw"
    first = tl.program_id(0).to(tl.int64) * B
    lane = tl.arange(0, 128)
    found = tl.full((128,), 1, tl.int8)
    for start in range(0, parts, 128):
        at = start + lane
        found = tl.minimum(found, tl.load(sound + slot * parts + at, mask=at < parts, other=1))
    d = directions + slot * size * WIDTH
    if tl.min(found.to(tl.int32)) == 0:
        nothing = tl.full((B,), float("nan"), tl.float32)
        store_range(d, first, size, nothing, nothing, B, PAIRS)
        if tl.program_id(0) == 0:
            count = pointer(missed, slot // matrices, tl.int64) + slot % matrices
            tl.store(count, tl.load(count) + 1)
        return
    g, _ = matrix_place(gradients, gradients, matrices, size * WIDTH, 1, "table", tl.float32)
    gr, gi = load_range(g, first, size, B, PAIRS)
    if MEAN:
        m, _ = matrix_place(means, means, matrices, size * WIDTH, 1, "table", tl.float32)
        mr, mi = load_range(m, first, size, B, PAIRS)
        decay = tl.load(numbers + 1).to(tl.float32)
        weight = tl.load(numbers + 2).to(tl.float32)
        ar, ai = decay * mr + weight * gr, decay * mi + weight * gi
        store_range(m, first, size, ar, ai, B, PAIRS)
    if SQUARED:
        v, _ = matrix_place(squares, squares, matrices, size, 1, "table", tl.float32)
        average, _ = load_range(v, first, size, B, False)
        decay = tl.load(numbers + 3).to(tl.float32)
        weight = tl.load(numbers + 4).to(tl.float32)
        average = decay * average + weight * (gr * gr + gi * gi if PAIRS else gr * gr)
        store_range(v, first, size, average, average, B, False)
        eps = tl.load(numbers + 5).to(tl.float32)
    momentum = tl.load(numbers + 6).to(tl.float32)
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
            o, _ = matrix_place(others, others, matrices, size, 1, "table", tl.float32)
            largest, _ = load_range(o, first, size, B, False)
            average = tl.maximum(largest, average)
            store_range(o, first, size, average, average, B, False)
        share, root = tl.load(shares + 2 * slot), tl.load(shares + 2 * slot + 1)
        spread = (tl.sqrt(average) * root + eps) * share
        gr, gi = ar / spread, ai / spread
    else:
        if MEAN:
            average = tl.maximum(average - (ar * ar + ai * ai if PAIRS else ar * ar), 0.0)
        spread = tl.sqrt(average) + eps
        gr, gi = gr / spread, gi / spread
        if OTHER:
            o, _ = matrix_place(others, others, matrices, size * WIDTH, 1, "table", tl.float32)
            br, bi = load_range(o, first, size, B, PAIRS)
            gr, gi = momentum * br + gr, momentum * bi + gi
            store_range(o, first, size, gr, gi, B, PAIRS)
    store_range(d, first, size, gr, gi, B, PAIRS)
