"""The products of `spectral` on spectra as the FFT leaves them, with the frequencies side by side.

A program takes F adjacent frequencies, a tile of channels and a tile of images, and multiplies F small
matrices at once.  It loads x along the frequencies, F numbers at a time, and W along a row of channels,
and permutes both in registers, so that neither spectra nor weights are copied to another layout.

    source    (frequencies) which frequency of x a frequency of y is made of: itself, or -k if mirrored
    matrix    (frequencies) which matrix: p of ``weight``, or -1 - r for r of ``own``

Both are looked up only for spectra of real signals (HALF); otherwise frequency f has matrix f.

PRECISION of the products, all accumulated in float32: ``ieee``, ``tf32x3`` (float32's own error, on
tensor cores), ``tf32`` (10 bits).
"""

import triton
import triton.language as tl


@triton.jit
def _lookup(source, matrix, bins, frequencies, HALF: tl.constexpr):
    """Source, matrix, whether the frequency's matrix is real, whether it is another's mirror image."""
    inside = bins < frequencies
    if HALF:
        at = tl.load(source + bins, mask=inside, other=0)
        number = tl.load(matrix + bins, mask=inside, other=0)
    else:
        at = bins
        number = bins
    return at, number, inside & (number < 0), inside & (at != bins)


@triton.jit
def _load_spectrum(base, images, channels, bins, inside, own, batch, count, frequencies):
    """(images, channels, F) of (batch, count, frequencies, 2); at own frequencies the real part only."""
    part = tl.arange(0, 2)
    rows = images.to(tl.int64)[:, None] * count + channels[None, :]
    there = (images < batch)[:, None] & (channels < count)[None, :]
    at = rows[:, :, None, None] * (2 * frequencies) + 2 * bins[None, None, :, None] + part
    real_only = own[None, None, :, None] & (part == 1)
    mask = there[:, :, None, None] & inside[None, None, :, None] & ~real_only
    return tl.split(tl.load(base + at, mask=mask, other=0.0))


@triton.jit
def _load_matrices(weight, own_weight, number, inside, own, rows, columns, m, n, HALF: tl.constexpr):
    """(F, rows, columns) of (paired, m, n, 2), or of (own, m, n) where ``own``."""
    part = tl.arange(0, 2)
    entry = rows[:, None] * n + columns[None, :]
    there = (rows < m)[:, None] & (columns < n)[None, :]
    mask = inside[:, None, None] & there[None, :, :]
    at = tl.maximum(number, 0).to(tl.int64)[:, None, None] * m * n + entry[None, :, :]
    free = (mask & ~own[:, None, None])[:, :, :, None]
    re, im = tl.split(tl.load(weight + 2 * at[:, :, :, None] + part, mask=free, other=0.0))
    if HALF:
        at = tl.maximum(-1 - number, 0).to(tl.int64)[:, None, None] * m * n + entry[None, :, :]
        re += tl.load(own_weight + at, mask=mask & own[:, None, None], other=0.0)
    return re, im


@triton.jit
def _multiply(ar, ai, br, bi, cr, ci, PRECISION: tl.constexpr):
    """C + A B, F products of complex matrices."""
    cr = tl.dot(ar, br, cr, input_precision=PRECISION)
    cr = tl.dot(-ai, bi, cr, input_precision=PRECISION)
    ci = tl.dot(ar, bi, ci, input_precision=PRECISION)
    ci = tl.dot(ai, br, ci, input_precision=PRECISION)
    return cr, ci


@triton.jit
def spectral_product_kernel(
    spectrum,
    weight,
    own_weight,
    result,
    source,
    matrix,
    batch,
    m,
    n,
    frequencies,
    ADJOINT: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BB: tl.constexpr,
    BK: tl.constexpr,
    F: tl.constexpr,
):
    """``y = W x``, or ``W^H x`` if ADJOINT, at every frequency; W is m x n.

    Grid (tiles of images x tiles of y's channels, tiles of frequencies): programs that share matrices
    and spectra run next to each other.
    """
    inner = m if ADJOINT else n
    outer = n if ADJOINT else m
    tiles = tl.cdiv(outer, BM)
    lane = tl.arange(0, BK)
    images = (tl.program_id(0) // tiles) * BB + tl.arange(0, BB)
    channels = (tl.program_id(0) % tiles) * BM + tl.arange(0, BM)
    bins = tl.program_id(1) * F + tl.arange(0, F)
    inside = bins < frequencies
    at, number, own, mirrored = _lookup(source, matrix, bins, frequencies, HALF)
    yr = tl.zeros((F, BM, BB), tl.float32)
    yi = tl.zeros((F, BM, BB), tl.float32)
    for start in tl.range(0, inner, BK, num_stages=1):
        summed = start + lane
        xr, xi = _load_spectrum(spectrum, images, summed, at, inside, own, batch, inner, frequencies)
        xr, xi = tl.permute(xr, (2, 1, 0)), tl.permute(xi, (2, 1, 0))
        if ADJOINT:
            wr, wi = _load_matrices(
                weight, own_weight, number, inside, own, summed, channels, m, n, HALF
            )
            wr, wi = tl.permute(wr, (0, 2, 1)), -tl.permute(wi, (0, 2, 1))
        else:
            wr, wi = _load_matrices(
                weight, own_weight, number, inside, own, channels, summed, m, n, HALF
            )
        yr, yi = _multiply(wr, wi, xr, xi, yr, yi, PRECISION)
    if HALF:
        yi = tl.where(mirrored[:, None, None], -yi, yi)
    both = tl.join(tl.permute(yr, (2, 1, 0)), tl.permute(yi, (2, 1, 0)))
    rows = images.to(tl.int64)[:, None] * outer + channels[None, :]
    there = (images < batch)[:, None] & (channels < outer)[None, :]
    place = rows[:, :, None, None] * (2 * frequencies) + 2 * bins[None, None, :, None]
    mask = there[:, :, None, None] & inside[None, None, :, None]
    tl.store(result + place + tl.arange(0, 2), both, mask=mask)


@triton.jit
def spectral_gradient_kernel(
    grad,
    spectrum,
    weight_grad,
    own_grad,
    source,
    matrix,
    batch,
    m,
    n,
    frequencies,
    scale,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    F: tl.constexpr,
):
    """``scale sum_b g conj(x)^T`` at every free frequency, twice that where HALF and not own.

    Grid (tiles of g's channels x tiles of x's channels, tiles of frequencies).  Mirrored frequencies are
    read and left out.
    """
    tiles = tl.cdiv(n, BN)
    lane = tl.arange(0, BK)
    rows = (tl.program_id(0) // tiles) * BM + tl.arange(0, BM)
    columns = (tl.program_id(0) % tiles) * BN + tl.arange(0, BN)
    bins = tl.program_id(1) * F + tl.arange(0, F)
    inside = bins < frequencies
    _, number, own, mirrored = _lookup(source, matrix, bins, frequencies, HALF)
    gr = tl.zeros((F, BM, BN), tl.float32)
    gi = tl.zeros((F, BM, BN), tl.float32)
    for start in tl.range(0, batch, BK, num_stages=1):
        images = start + lane
        ar, ai = _load_spectrum(grad, images, rows, bins, inside, own, batch, m, frequencies)
        br, bi = _load_spectrum(spectrum, images, columns, bins, inside, own, batch, n, frequencies)
        ar, ai = tl.permute(ar, (2, 1, 0)), tl.permute(ai, (2, 1, 0))
        br, bi = tl.permute(br, (2, 0, 1)), tl.permute(bi, (2, 0, 1))
        gr, gi = _multiply(ar, ai, br, -bi, gr, gi, PRECISION)
    entry = rows[:, None] * n + columns[None, :]
    there = (rows < m)[:, None] & (columns < n)[None, :]
    mask = (inside & ~mirrored)[:, None, None] & there[None, :, :]
    if HALF:
        place = tl.maximum(-1 - number, 0).to(tl.int64)[:, None, None] * m * n + entry[None, :, :]
        tl.store(own_grad + place, scale * gr, mask=mask & own[:, None, None])
        scale = 2.0 * scale
    place = tl.maximum(number, 0).to(tl.int64)[:, None, None] * m * n + entry[None, :, :]
    free = (mask & ~own[:, None, None])[:, :, :, None]
    both = tl.join(scale * gr, scale * gi)
    tl.store(weight_grad + 2 * place[:, :, :, None] + tl.arange(0, 2), both, mask=free)
