"""k > 1: factors of a few columns as tiles (columns, length), and their Gram matrices, in float64."""

import triton
import triton.language as tl

from projunn_kernels.language.small import dot, matmul, row
from projunn_kernels.language.tiles import load_tile


@triton.jit
def gram(pr, pi, PAIRS: tl.constexpr):
    """The S x S matrix of the products p_i^H p_j of the rows of a float64 tile (S, BN), BN >= 16."""
    S: tl.constexpr = pr.shape[0]
    if PAIRS and S == 16:
        index = tl.arange(0, S)
        gr = tl.zeros((S, S), tl.float64)
        gi = tl.zeros((S, S), tl.float64)
        for j in range(S):
            here = (index == j)[None, :]
            ar, ai = row(pr, j, S)[None, :], row(pi, j, S)[None, :]
            gr = tl.where(here, tl.sum(pr * ar + pi * ai, axis=1)[:, None], gr)
            gi = tl.where(here, tl.sum(pr * ai - pi * ar, axis=1)[:, None], gi)
    elif PAIRS:
        gr = dot(pr, tl.trans(pr)) + dot(pi, tl.trans(pi))
        across = dot(pr, tl.trans(pi))
        gi = across - tl.trans(across)
    else:
        gr = dot(pr, tl.trans(pr))
        gi = tl.zeros_like(gr)
    return gr, gi


@triton.jit
def combine(tr, ti, pr, pi, PAIRS: tl.constexpr):
    """The rows ``sum_j t[j, s] p_j``: columns p of a tall matrix, times T from the right."""
    return matmul(tl.trans(tr), tl.trans(ti), pr, pi, PAIRS)


@triton.jit
def load_both(
    right, partial, first, n, k, splits, scale,
    BOTH: tl.constexpr, PAIRS: tl.constexpr, BN: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """BN columns of P: ``scale`` times the sum of the partial sums (splits, k, n), in float32.

    BOTH: below Y, which is ``right`` (k, n).  P has S rows, of which Y and Z have a half each.
    """
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    K: tl.constexpr = S // 2 if BOTH else S
    AHEAD: tl.constexpr = 8 if S * BN * WIDTH <= 256 else 4  # loads at a time: each waits for memory
    index = tl.arange(0, S)
    here = tl.where(index < K, k, index - K) if BOTH else index
    zr = tl.zeros((S, BN), tl.float64)
    zi = tl.zeros((S, BN), tl.float64)
    for start in range(0, splits, AHEAD):
        for ahead in tl.static_range(AHEAD):
            inside = tl.where(start + ahead < splits, k, 0)
            re, im = load_tile(partial, here, first, inside, n, BN, PAIRS)
            partial += k * n * WIDTH
            zr += re.to(tl.float64)
            zi += im.to(tl.float64)
    pr, pi = (zr * scale).to(tl.float32), (zi * scale).to(tl.float32)
    if BOTH:
        yr, yi = load_tile(right, index, first, k, n, BN, PAIRS)
        pr, pi = pr + yr, pi + yi
    return pr, pi


@triton.jit
def _places_of_columns(first, n, BN: tl.constexpr, S: tl.constexpr):
    """Where BN columns of P (S, n) are, and which of them there are."""
    at = first + tl.arange(0, BN)
    return tl.arange(0, S)[:, None] * n + at[None, :], (at < n)[None, :]


@triton.jit
def gram_of_part(
    right,
    partial,
    columns,
    part,
    each,
    n,
    k,
    splits,
    scale,
    BOTH: tl.constexpr,
    PAIRS: tl.constexpr,
    BN: tl.constexpr,
    S: tl.constexpr,
):
    """P^H P of the part of P that begins at number ``part * each``; P itself goes to ``columns``.

    P is that of `load_both`.  It is kept in float64, its real numbers (S, n) before its imaginary ones:
    products of tiles then take it as it is loaded, where Triton 3.6 has none of converted, joined ones.
    """
    gr = tl.zeros((S, S), tl.float64)
    gi = tl.zeros((S, S), tl.float64)
    for first in range(part * each, tl.minimum((part + 1) * each, n), BN):
        pr, pi = load_both(right, partial, first, n, k, splits, scale, BOTH, PAIRS, BN, S)
        pr, pi = pr.to(tl.float64), pi.to(tl.float64)
        at, inside = _places_of_columns(first, n, BN, S)
        tl.store(columns + at, pr, mask=inside)
        if PAIRS:
            tl.store(columns + S * n + at, pi, mask=inside)
        ar, ai = gram(pr, pi, PAIRS)
        gr += ar
        gi += ai
    return gr, gi


@triton.jit
def load_gram(parts_of_gram, parts, S: tl.constexpr, PAIRS: tl.constexpr):
    """The sum of the Gram matrices of parts, each stored as its real and its imaginary numbers."""
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    A: tl.constexpr = 1024 // (S * S * WIDTH) if S > 8 else 8  # how many are added at a time
    index = tl.arange(0, S)
    at = (
        tl.arange(0, A)[:, None, None] * (S * S * WIDTH)
        + index[None, :, None] * S
        + index[None, None, :]
    )
    gr = tl.zeros((S, S), tl.float64)
    gi = tl.zeros((S, S), tl.float64)
    for start in range(0, parts, A):
        inside = (start + tl.arange(0, A) < parts)[:, None, None]
        source = parts_of_gram + start * (S * S * WIDTH)
        gr += tl.sum(tl.load(source + at, mask=inside, other=0.0), axis=0)
        if PAIRS:
            gi += tl.sum(tl.load(source + S * S + at, mask=inside, other=0.0), axis=0)
    return gr, gi


@triton.jit
def store_gram(gram_of_one, gr, gi, S: tl.constexpr, PAIRS: tl.constexpr):
    """The Gram matrix of a part, for `load_gram`."""
    index = tl.arange(0, S)
    at = index[:, None] * S + index[None, :]
    tl.store(gram_of_one + at, gr)
    if PAIRS:
        tl.store(gram_of_one + S * S + at, gi)


@triton.jit
def load_combined(columns, first, n, tr, ti, BN: tl.constexpr, S: tl.constexpr, PAIRS: tl.constexpr):
    """BN columns of P (S, n), times T from the right: see `combine`."""
    at, inside = _places_of_columns(first, n, BN, S)
    pr = tl.load(columns + at, mask=inside, other=0.0)
    pi = pr
    if PAIRS:
        pi = tl.load(columns + S * n + at, mask=inside, other=0.0)
    return combine(tr, ti, pr, pi, PAIRS)


@triton.jit
def gram_of_combined(columns, n, tr, ti, BN: tl.constexpr, S: tl.constexpr, PAIRS: tl.constexpr):
    """(P T)^H (P T)."""
    gr = tl.zeros((S, S), tl.float64)
    gi = tl.zeros((S, S), tl.float64)
    for first in range(0, n, BN):
        pr, pi = load_combined(columns, first, n, tr, ti, BN, S, PAIRS)
        ar, ai = gram(pr, pi, PAIRS)
        gr += ar
        gi += ai
    return gr, gi


@triton.jit
def step_matrix(rr, ri, P: tl.constexpr, PAIRS: tl.constexpr):
    """E = R_z R_y^H from the coordinates R = [R_y, R_z] of [Y, Z], P columns each."""
    index = tl.arange(0, 2 * P)
    # moves column P + j to column j
    moving = tl.where(index[:, None] == index[None, :] + P, 1.0, 0.0).to(tl.float64)
    zr, zi = matmul(rr, ri, moving, tl.zeros_like(moving), PAIRS)
    return matmul(zr, zi, tl.trans(rr), -tl.trans(ri), PAIRS)
