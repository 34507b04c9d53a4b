"""The transforms of planes of up to 64 x 64 points: products along the rows, then along the columns.

A program takes BP planes.  Along the rows a plane x (height, width) is multiplied by cosines and sines;
then, with the planes side by side, by C and S, cos and sin of 2 pi h f / height:

    re_k + i im_k = sum_w x_w exp(+2 pi i w k / width)            for 0 < k < width / 2, in slot k
    z = (C + i S) (re + i im)

Slot 0 has two real columns in the places of re and im, those of k = 0 and of k = width / 2 (the edges).
Of them single products are wanted: at 0 < f < height / 2 the bins of the first edge, C re and S re.
Its bins at f > height / 2 are conjugates of these, and the second edge's have their place: C im and
-S im are its bin at height - f.  At f = 0 and f = height / 2 both are real: C re and C im, own bins.

The inverse makes the transposed products in the opposite order.
"""

import triton
import triton.language as tl

from projunn_kernels.convolution.kernels.points import signals
from projunn_kernels.convolution.kernels.products import both_products, constants, halves, product


@triton.jit
def _edge_bins(f, height, width):
    """What slot 0 has at the frequencies f.

    Whether it has own bins there, and the number of the first; whether it has a paired bin of the second
    edge, and the number of the paired bin.
    """
    edges = 2 - width % 2
    second = 2 * f > height
    alone = (f == 0) | (2 * f == height)
    row = tl.where(second, height - f, f)
    paired = height * ((width - 1) // 2) + (row - 1) * edges + second.to(tl.int32)
    return alone, tl.where(f == 0, 0, edges), second, paired


@triton.jit
def within(row, point, by_row, by_point):
    """Where the points of a plane lie within it, which may be more than 2^31 numbers away."""
    return row.to(tl.int64)[:, None] * by_row + point.to(tl.int64)[None, :] * by_point


@triton.jit
def plane_transform_kernel(
    signal,
    paired,
    own,
    along_rows,
    along_columns,
    planes,
    channels,
    height,
    width,
    by_image,
    by_channel,
    by_row,
    by_point,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    BP: tl.constexpr,
):
    """Spectra of signals.  Grid (tiles of planes).

    ``along_rows`` is (2, WIDTH, 2 SLOTS), cosines and sines; ``along_columns`` (2, HEIGHT, 2 HEIGHT).
    """
    SLOTS: tl.constexpr = WIDTH // 2
    first = tl.program_id(0) * BP
    plane, there, _, start = signals(first, planes, channels, by_image, by_channel, BP)
    f = tl.arange(0, HEIGHT)
    w = tl.arange(0, WIDTH)
    slot = tl.arange(0, SLOTS)
    at = start[:, None, None] + within(f, w, by_row, by_point)[None, :, :]
    mask = there[:, None, None] & (f < height)[None, :, None] & (w < width)[None, None, :]
    x = tl.reshape(tl.load(signal + at, mask=mask, other=0.0), (BP * HEIGHT, WIDTH))
    wave, wave_rest = constants(along_rows, w, w, WIDTH, WIDTH, PRECISION)
    x, rest = halves(x, PRECISION)
    re, im = both_products(x, rest, wave, wave_rest, PRECISION)
    # Slots next to each other: what is written to shared memory then goes to different banks.
    re = tl.permute(tl.reshape(re, (BP, HEIGHT, SLOTS)), (0, 2, 1))
    im = tl.permute(tl.reshape(im, (BP, HEIGHT, SLOTS)), (0, 2, 1))
    re, re_rest = halves(tl.reshape(re, (BP * SLOTS, HEIGHT)), PRECISION)
    im, im_rest = halves(tl.reshape(im, (BP * SLOTS, HEIGHT)), PRECISION)
    cs, cs_rest = constants(along_columns, f, tl.arange(0, 2 * HEIGHT), HEIGHT, 2 * HEIGHT, PRECISION)
    c_re, s_re = both_products(re, re_rest, cs, cs_rest, PRECISION)
    c_im, s_im = both_products(im, im_rest, cs, cs_rest, PRECISION)
    alone, own_bin, second, edge_bin = _edge_bins(f, height, width)
    edge = (tl.arange(0, BP * SLOTS) % SLOTS == 0)[:, None]
    zr = tl.where(edge, tl.where(second[None, :], c_im, c_re), c_re - s_im)
    zi = tl.where(second[None, :], -s_im, tl.where(alone[None, :], c_im, s_re))
    zi = tl.where(edge, zi, s_re + c_im)
    both = tl.reshape(tl.join(zr, zi), (BP, SLOTS, HEIGHT, 2))
    both = tl.reshape(tl.permute(both, (2, 1, 0, 3)), (HEIGHT, SLOTS, 2 * BP))
    # The own bins, of which a pair has two.
    lane = tl.arange(0, 2 * BP)
    which, plane = lane % 2, first + lane // 2
    at = (own_bin.to(tl.int64) * planes)[:, None] + (which * planes + plane)[None, :]
    mask = alone[:, None] & ((plane < planes) & (which < 2 - width % 2))[None, :]
    at, mask = at[:, None, :] + tl.zeros((1, SLOTS, 1), tl.int64), mask[:, None, :]
    tl.store(own + at, 0.7071067811865476 * both, mask=mask & (slot == 0)[None, :, None])
    lane += 2 * first
    count = (width - 1) // 2
    inner = f[:, None] * count + (slot - 1)[None, :]
    number = tl.where((slot == 0)[None, :], edge_bin[:, None], inner)
    of_edges = ~alone & (~second | (width % 2 == 0))
    mask = (f < height)[:, None] & (slot <= count)[None, :] & ((slot > 0)[None, :] | of_edges[:, None])
    at = (number.to(tl.int64) * (2 * planes))[:, :, None] + lane[None, None, :]
    tl.store(paired + at, both, mask=mask[:, :, None] & (lane < 2 * planes)[None, None, :])


@triton.jit
def plane_inverse_kernel(
    signal,
    paired,
    own,
    bias,
    along_rows,
    along_columns,
    planes,
    channels,
    height,
    width,
    by_image,
    by_channel,
    by_row,
    by_point,
    BIAS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    BP: tl.constexpr,
):
    """Signals of spectra, plus the bias of their channel.  Grid (tiles of planes).

    ``along_rows`` is (2, 2 SLOTS, WIDTH), cosines and sines; ``along_columns`` (2, HEIGHT, 2 HEIGHT).
    """
    SLOTS: tl.constexpr = WIDTH // 2
    first = tl.program_id(0) * BP
    plane, there, channel, start = signals(first, planes, channels, by_image, by_channel, BP)
    f = tl.arange(0, HEIGHT)
    w = tl.arange(0, WIDTH)
    slot = tl.arange(0, SLOTS)
    lane = 2 * first + tl.arange(0, 2 * BP)
    count = (width - 1) // 2
    number = f[:, None] * count + (slot - 1)[None, :]
    at = (number.to(tl.int64) * (2 * planes))[:, :, None] + lane[None, None, :]
    mask = (f < height)[:, None] & ((slot > 0) & (slot <= count))[None, :]
    mask = mask[:, :, None] & (lane < 2 * planes)[None, None, :]
    both = tl.load(paired + at, mask=mask, other=0.0)
    zr, zi = tl.split(tl.reshape(both, (HEIGHT, SLOTS, BP, 2)))
    er, ei = _edges(paired, own, plane, f, planes, height, width)
    edge = (slot == 0)[:, None, None]
    # Planes next to each other, as they were loaded; then again, as the products leave them.
    zr = tl.permute(zr, (1, 2, 0)) + tl.where(edge, er[None, :, :], 0.0)
    zi = tl.permute(zi, (1, 2, 0)) + tl.where(edge, ei[None, :, :], 0.0)
    zr, zr_rest = halves(tl.reshape(zr, (SLOTS * BP, HEIGHT)), PRECISION)
    zi, zi_rest = halves(tl.reshape(zi, (SLOTS * BP, HEIGHT)), PRECISION)
    cs, cs_rest = constants(along_columns, f, tl.arange(0, 2 * HEIGHT), HEIGHT, 2 * HEIGHT, PRECISION)
    c_zr, s_zr = both_products(zr, zr_rest, cs, cs_rest, PRECISION)
    c_zi, s_zi = both_products(zi, zi_rest, cs, cs_rest, PRECISION)
    rows = tl.reshape(tl.join(c_zr + s_zi, c_zi - s_zr), (SLOTS, BP, HEIGHT, 2))
    rows = tl.reshape(tl.permute(rows, (2, 1, 3, 0)), (HEIGHT * BP, WIDTH))
    rows, rest = halves(rows, PRECISION)
    wave, wave_rest = constants(along_rows, w, w, WIDTH, WIDTH, PRECISION)
    x = product(rows, rest, wave, wave_rest, PRECISION)
    x = tl.reshape(x, (HEIGHT, BP, WIDTH))
    if BIAS:
        x += tl.load(bias + channel, mask=there, other=0.0)[None, :, None]
    at = start[None, :, None] + within(f, w, by_row, by_point)[:, None, :]
    mask = there[None, :, None] & (f < height)[:, None, None] & (w < width)[None, None, :]
    tl.store(signal + at, x, mask=mask)


@triton.jit
def _edges(paired, own, plane, f, planes, height, width):
    """Slot 0 at all frequencies, (planes, f): first + i second edge, of conjugates beyond height / 2.

    A paired bin is at two frequencies, half at each, since the products add up both.
    """
    alone, own_bin, second, bin_of_f = _edge_bins(f, height, width)
    two = width % 2 == 0
    there = (plane < planes)[:, None]
    at = (own_bin.to(tl.int64) * planes)[None, :] + plane[:, None]
    mask = there & alone[None, :]
    ar = 0.7071067811865476 * tl.load(own + at, mask=mask, other=0.0)
    br = 0.7071067811865476 * tl.load(own + at + planes, mask=mask & two, other=0.0)
    first_bin = tl.where(second, bin_of_f - 1, bin_of_f)
    at = 2 * ((first_bin.to(tl.int64) * planes)[None, :] + plane[:, None])
    mask = there & (~alone & (f < height))[None, :]
    ar += 0.5 * tl.load(paired + at, mask=mask, other=0.0)
    ai = 0.5 * tl.load(paired + at + 1, mask=mask, other=0.0)
    br += 0.5 * tl.load(paired + at + 2 * planes, mask=mask & two, other=0.0)
    bi = 0.5 * tl.load(paired + at + 2 * planes + 1, mask=mask & two, other=0.0)
    sign = tl.where(second, -1.0, 1.0)[None, :]
    return ar - sign * bi, sign * ai + br
