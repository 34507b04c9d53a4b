"""k > 1: factors of a few columns as tiles (columns, length), and their Gram matrices, in float64."""

import triton
import triton.language as tl

from projunn_kernels.language.small import SMALL, column, dot, row


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
    else:
        gr = dot(pr, tl.trans(pr))
    return gr, gi


@triton.jit
def combine(tr, ti, pr, pi, PAIRS: tl.constexpr):
    """The rows ``sum_j t[j, s] p_j``: columns p of a tall matrix, times T from the right."""
    S: tl.constexpr = pr.shape[0]
    if not PAIRS:
        qr = dot(tl.trans(tr), pr)
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
def stored_rows(K: tl.constexpr, P: tl.constexpr):
    """Where the P + P rows of a stacked tile are in memory that has K + K; beyond 2K if nowhere."""
    index = tl.arange(0, 2 * P)
    half, within = index // P, index % P
    return tl.where(within < K, half * K + within, 2 * K)


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
    else:
        index = tl.arange(0, S)
        # moves column P + j to column j
        moving = tl.where(index[:, None] == index[None, :] + P, 1.0, 0.0).to(tl.float64)
        er = dot(dot(rr, moving), tl.trans(rr))
    return er, ei
