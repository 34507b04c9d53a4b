"""The transforms of up to 64 points: one product with the matrix of the whole transform.

Its columns are the cosines and the sines of the paired bins, PAIRS of each with what pads them, and then
the OWNS own bins.  A program takes BP signals.
"""

import triton
import triton.language as tl

from projunn_kernels.convolution.kernels.products import constants, halves, product


@triton.jit
def signals(first, planes, channels, by_image, by_channel, BP: tl.constexpr):
    """Which planes a program takes, which of them exist, their channels, and where they start."""
    plane = first + tl.arange(0, BP)
    image = plane // channels
    channel = plane - image * channels
    start = image.to(tl.int64) * by_image + channel.to(tl.int64) * by_channel
    return plane, plane < planes, channel, start


@triton.jit
def _points(point, width, by_row, by_point, LINE: tl.constexpr):
    """Where points lie within a plane.  With LINE they lie side by side."""
    row = (point // width).to(tl.int64) * by_row
    column = (point % width).to(tl.int64) * by_point
    return point.to(tl.int64) if LINE else row + column


@triton.jit
def points_transform_kernel(
    signal,
    paired,
    own,
    table,
    planes,
    channels,
    points,
    width,
    pairs,
    owns,
    by_image,
    by_channel,
    by_row,
    by_point,
    LINE: tl.constexpr,
    POINTS: tl.constexpr,
    PAIRS: tl.constexpr,
    OWNS: tl.constexpr,
    PRECISION: tl.constexpr,
    BP: tl.constexpr,
):
    """Spectra of signals.  Grid (tiles of planes); ``table`` is (2, POINTS, 2 PAIRS + OWNS)."""
    COLUMNS: tl.constexpr = 2 * PAIRS + OWNS
    first = tl.program_id(0) * BP
    plane, there, _, start = signals(first, planes, channels, by_image, by_channel, BP)
    point = tl.arange(0, POINTS)
    at = start[:, None] + _points(point, width, by_row, by_point, LINE)[None, :]
    x = tl.load(signal + at, mask=there[:, None] & (point < points)[None, :], other=0.0)
    x, rest = halves(x, PRECISION)
    pair = tl.arange(0, PAIRS)
    free = tl.arange(0, OWNS)
    cos, cos_rest = constants(table, point, pair, POINTS, COLUMNS, PRECISION)
    sin, sin_rest = constants(table, point, PAIRS + pair, POINTS, COLUMNS, PRECISION)
    real, real_rest = constants(table, point, 2 * PAIRS + free, POINTS, COLUMNS, PRECISION)
    re = product(x, rest, cos, cos_rest, PRECISION)
    im = product(x, rest, sin, sin_rest, PRECISION)
    alone = tl.trans(product(x, rest, real, real_rest, PRECISION))
    own_at = free.to(tl.int64)[:, None] * planes + plane[None, :]
    tl.store(own + own_at, alone, mask=(free < owns)[:, None] & there[None, :])
    lane = 2 * first + tl.arange(0, 2 * BP)
    both = tl.reshape(tl.permute(tl.join(re, im), (1, 0, 2)), (PAIRS, 2 * BP))
    pair_at = pair.to(tl.int64)[:, None] * (2 * planes) + lane[None, :]
    tl.store(paired + pair_at, both, mask=(pair < pairs)[:, None] & (lane < 2 * planes)[None, :])


@triton.jit
def points_inverse_kernel(
    signal,
    paired,
    own,
    bias,
    table,
    planes,
    channels,
    points,
    width,
    pairs,
    owns,
    by_image,
    by_channel,
    by_row,
    by_point,
    BIAS: tl.constexpr,
    LINE: tl.constexpr,
    POINTS: tl.constexpr,
    PAIRS: tl.constexpr,
    OWNS: tl.constexpr,
    PRECISION: tl.constexpr,
    BP: tl.constexpr,
):
    """Signals of spectra, plus the bias of their channel.  ``table`` is (2, 2 PAIRS + OWNS, POINTS)."""
    ROWS: tl.constexpr = 2 * PAIRS + OWNS
    first = tl.program_id(0) * BP
    plane, there, channel, start = signals(first, planes, channels, by_image, by_channel, BP)
    pair = tl.arange(0, PAIRS)
    free = tl.arange(0, OWNS)
    lane = 2 * first + tl.arange(0, 2 * BP)
    pair_at = pair.to(tl.int64)[:, None] * (2 * planes) + lane[None, :]
    mask = (pair < pairs)[:, None] & (lane < 2 * planes)[None, :]
    both = tl.load(paired + pair_at, mask=mask, other=0.0)
    re, im = tl.split(tl.reshape(both, (PAIRS, BP, 2)))
    own_at = free.to(tl.int64)[:, None] * planes + plane[None, :]
    alone = tl.load(own + own_at, mask=(free < owns)[:, None] & there[None, :], other=0.0)
    re, re_rest = halves(tl.trans(re), PRECISION)
    im, im_rest = halves(tl.trans(im), PRECISION)
    alone, alone_rest = halves(tl.trans(alone), PRECISION)
    point = tl.arange(0, POINTS)
    cos, cos_rest = constants(table, pair, point, ROWS, POINTS, PRECISION)
    sin, sin_rest = constants(table, PAIRS + pair, point, ROWS, POINTS, PRECISION)
    real, real_rest = constants(table, 2 * PAIRS + free, point, ROWS, POINTS, PRECISION)
    x = product(re, re_rest, cos, cos_rest, PRECISION)
    x += product(im, im_rest, sin, sin_rest, PRECISION)
    x += product(alone, alone_rest, real, real_rest, PRECISION)
    if BIAS:
        x += tl.load(bias + channel, mask=there, other=0.0)[:, None]
    at = start[:, None] + _points(point, width, by_row, by_point, LINE)[None, :]
    tl.store(signal + at, x, mask=there[:, None] & (point < points)[None, :])
