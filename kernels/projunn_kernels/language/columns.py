"""k > 1: factors of a few columns as tiles (columns, length), and their Gram matrices, in float64."""

import triton
import triton.language as tl

from projunn_kernels.language.small import SMALL, column, dot, row
from projunn_kernels.language.tiles import load_tile, store_tile


@triton.jit
def gram(pr, pi, PAIRS: tl.constexpr):
    """The S x S matrix of the products p_i^H p_j of the rows of a float64 tile (S, BN)."""
    S: tl.constexpr = pr.shape[0]
    gr = tl.zeros((S, S), tl.float64)
    gi = tl.zeros((S, S), tl.float64)
    if PAIRS:
        index = tl.arange(0, S)
        for j in range(S):
            here = (index == j)[None, :]
            ar, ai = row(pr, j, S)[None, :], row(pi, j, S)[None, :]
            gr = tl.where(here, tl.sum(pr * ar + pi * ai, axis=1)[:, None], gr)
            gi = tl.where(here, tl.sum(pr * ai - pi * ar, axis=1)[:, None], gi)
    elif S == 1:
        gr += tl.sum(pr * pr, axis=1)[:, None]
    elif S == 16:
        gr = dot(pr, tl.trans(pr))
    else:
        index = tl.arange(0, S)
        for j in range(S):
            sums = tl.sum(pr * row(pr, j, S)[None, :], axis=1)
            gr = tl.where((index == j)[None, :], sums[:, None], gr)
    return gr, gi


@triton.jit
def combine(tr, ti, pr, pi, PAIRS: tl.constexpr):
    """The rows ``sum_j t[j, s] p_j``: columns p of a tall matrix, times T from the right."""
    S: tl.constexpr = pr.shape[0]
    if not PAIRS and S == 16:
        qr = dot(tl.trans(tr), pr)
        qi = qr
    elif not PAIRS:
        qr = tl.zeros(pr.shape, tl.float64)
        for j in range(S):
            qr += row(tr, j, S)[:, None] * row(pr, j, S)[None, :]
        qi = qr
    elif S <= SMALL:
        ar, ai, br, bi = tr[:, :, None], ti[:, :, None], pr[:, None, :], pi[:, None, :]
        qr, qi = tl.sum(ar * br - ai * bi, axis=0), tl.sum(ar * bi + ai * br, axis=0)
    else:
        qr = tl.zeros(pr.shape, tl.float64)
        qi = tl.zeros(pr.shape, tl.float64)
        for j in range(S):
            ar, ai = row(tr, j, S)[:, None], row(ti, j, S)[:, None]
            br, bi = row(pr, j, S)[None, :], row(pi, j, S)[None, :]
            qr += ar * br - ai * bi
            qi += ar * bi + ai * br
    return qr, qi


@triton.jit
def stack(y, z):
    """Tiles y, z of (P, BN) as one of (2P, BN)."""
    both = tl.permute(tl.join(y, z), (2, 0, 1))
    return tl.reshape(both, (2 * y.shape[0], y.shape[1]))


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
    index = tl.arange(0, S)
    here = tl.where(index < K, k, index - K) if BOTH else index
    zr = tl.zeros((S, BN), tl.float64)
    zi = tl.zeros((S, BN), tl.float64)
    for start in range(0, splits, 4):
        for ahead in tl.static_range(4):  # four loads at a time, since each waits for memory
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
    """P^H P of the part of P that begins at number ``part * each``; P itself goes to ``columns`` (S, n).

    P is that of `load_both`.
    """
    gr = tl.zeros((S, S), tl.float64)
    gi = tl.zeros((S, S), tl.float64)
    for first in range(part * each, tl.minimum((part + 1) * each, n), BN):
        pr, pi = load_both(right, partial, first, n, k, splits, scale, BOTH, PAIRS, BN, S)
        store_tile(columns, tl.arange(0, S), first, S, n, pr, pi, BN, PAIRS)
        ar, ai = gram(pr.to(tl.float64), pi.to(tl.float64), PAIRS)
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
    pr, pi = load_tile(columns, tl.arange(0, S), first, S, n, BN, PAIRS)
    return combine(tr, ti, pr.to(tl.float64), pi.to(tl.float64), PAIRS)


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
    S: tl.constexpr = 2 * P
    er = tl.zeros((S, S), tl.float64)
    ei = tl.zeros((S, S), tl.float64)
    if PAIRS:
        for j in range(P):
            zr, yr = column(rr, P + j, S)[:, None], column(rr, j, S)[None, :]
            zi, yi = column(ri, P + j, S)[:, None], column(ri, j, S)[None, :]
            er += zr * yr + zi * yi
            ei += zi * yr - zr * yi
    elif S < 16:
        for j in tl.static_range(P):
            er += column(rr, P + j, S)[:, None] * column(rr, j, S)[None, :]
    else:
        index = tl.arange(0, S)
        # moves column P + j to column j
        moving = tl.where(index[:, None] == index[None, :] + P, 1.0, 0.0).to(tl.float64)
        er = dot(dot(rr, moving), tl.trans(rr))
    return er, ei
