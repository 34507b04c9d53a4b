"""k > 1: factors of a few columns as tiles (columns, length), and their Gram matrices, in float64."""

import triton
import triton.language as tl

from projunn_kernels.language.small import dot, matmul


@triton.jit
def gram(pr, pi, PAIRS: tl.constexpr):
    """The S x S matrix of the products p_i^H p_j of the rows of a float64 tile (S, BN)."""
    if pr.shape[0] == 1:
        gr = tl.sum(pr * pr, axis=1)[:, None]
        gi = gr * 0.0
        if PAIRS:
            gr += tl.sum(pi * pi, axis=1)[:, None]
        return gr, gi
    gr = dot(pr, tl.trans(pr))
    gi = gr
    if PAIRS:
        gr += dot(pi, tl.trans(pi))
        gi = dot(pr, tl.trans(pi))
        gi -= tl.trans(gi)
    return gr, gi


@triton.jit
def combine(tr, ti, pr, pi, PAIRS: tl.constexpr):
    """The rows ``sum_j t[j, s] p_j``: columns p of a tall matrix, times T from the right."""
    return matmul(tl.trans(tr), tl.trans(ti), pr, pi, PAIRS)


@triton.jit
def stack(y, z):
    """Tiles y, z of (8, BN) as one of (16, BN)."""
    both = tl.permute(tl.join(y, z), (2, 0, 1))
    return tl.reshape(both, (2 * y.shape[0], y.shape[1]))


@triton.jit
def stored_rows(K: tl.constexpr):
    """Where the 8 + 8 rows of a stacked tile are in memory that has K + K; beyond 2K if nowhere."""
    index = tl.arange(0, 16)
    half, within = index // 8, index % 8
    return tl.where(within < K, half * K + within, 2 * K)


@triton.jit
def step_matrix(rr, ri, PAIRS: tl.constexpr):
    """E = R_z R_y^H from the coordinates R = [R_y, R_z] of [Y, Z], 8 columns each."""
    index = tl.arange(0, 16)
    # moves column 8 + j to column j
    moving = tl.where(index[:, None] == index[None, :] + 8, 1.0, 0.0).to(tl.float64)
    zr, zi = dot(rr, moving), ri
    if PAIRS:
        zi = dot(ri, moving)
    return matmul(zr, zi, tl.trans(rr), -tl.trans(ri), PAIRS)
