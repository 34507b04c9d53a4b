"""k > 1: factors of a few columns as tiles (columns, length), and their Gram matrices, in float64."""

import triton
import triton.language as tl

from projunn_kernels.language.small import SMALL, column, row


@triton.jit
def gram(pr, pi, S: tl.constexpr, PAIRS: tl.constexpr):
    """The S x S matrix of the products p_i^H p_j of the rows of a float64 tile (S, BN)."""
    index = tl.arange(0, S)
    gr = tl.zeros((S, S), tl.float64)
    gi = tl.zeros((S, S), tl.float64)
    for j in range(S):
        here = (index == j)[None, :]
        ar = row(pr, j, S)[None, :]
        if PAIRS:
            ai = row(pi, j, S)[None, :]
            gr = tl.where(here, tl.sum(pr * ar + pi * ai, axis=1)[:, None], gr)
            gi = tl.where(here, tl.sum(pr * ai - pi * ar, axis=1)[:, None], gi)
        else:
            gr = tl.where(here, tl.sum(pr * ar, axis=1)[:, None], gr)
    return gr, gi


@triton.jit
def combine(tr, ti, pr, pi, S: tl.constexpr, PAIRS: tl.constexpr):
    """The rows ``sum_j t[j, s] p_j``: columns p of a tall matrix, times T from the right."""
    qr = tl.zeros(pr.shape, tl.float64)
    qi = tl.zeros(pr.shape, tl.float64)
    if S <= SMALL:
        ar, br = tr[:, :, None], pr[:, None, :]
        if PAIRS:
            ai, bi = ti[:, :, None], pi[:, None, :]
            qr, qi = tl.sum(ar * br - ai * bi, axis=0), tl.sum(ar * bi + ai * br, axis=0)
        else:
            qr = tl.sum(ar * br, axis=0)
    else:
        for j in range(S):
            ar, br = row(tr, j, S)[:, None], row(pr, j, S)[None, :]
            if PAIRS:
                ai, bi = row(ti, j, S)[:, None], row(pi, j, S)[None, :]
                qr += ar * br - ai * bi
                qi += ar * bi + ai * br
            else:
                qr += ar * br
    return qr, qi


@triton.jit
def stack(y, z, K: tl.constexpr):
    """Tiles y, z of (K, BN) as one of (2K, BN)."""
    both = tl.permute(tl.join(y, z), (2, 0, 1))
    return tl.reshape(both, (2 * K, y.shape[1]))


@triton.jit
def step_matrix(rr, ri, K: tl.constexpr, PAIRS: tl.constexpr):
    """E = R_z R_y^H from the coordinates R of [Y, Z], (2K, 2K)."""
    S: tl.constexpr = 2 * K
    er = tl.zeros((S, S), tl.float64)
    ei = tl.zeros((S, S), tl.float64)
    for j in range(K):
        zr, yr = column(rr, K + j, S)[:, None], column(rr, j, S)[None, :]
        if PAIRS:
            zi, yi = column(ri, K + j, S)[:, None], column(ri, j, S)[None, :]
            er += zr * yr + zi * yi
            ei += zi * yr - zr * yi
        else:
            er += zr * yr
    return er, ei
