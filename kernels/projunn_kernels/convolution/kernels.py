"""The transforms of `transform` for real lines and planes: products on tensor cores.

A program takes BP planes.  Along the rows a plane x (height, width) is multiplied by cos and sin of
2 pi w k / width; then, with the planes side by side as columns, by C and S, cos and sin of
2 pi h k / height:

    re + i im = x exp(+2 pi i w k / width)                                 (planes x height, columns)
    z = (C + i S) (re + i im)                                              (height, columns x planes)

`columns` are the frequencies 0 < k < width / 2 of the rows; z goes to the paired bins, where planes lie
side by side.  k = 0 and k = width / 2 (the edges) have real rows, sums of x: of their columns only
the frequencies up to height / 2 are free.  The inverse makes the transposed products in the opposite
order.  A line is a plane of height 1.

PRECISION of the products, all accumulated in float32: ``ieee``, ``tf32x3`` (float32's own error, on
tensor cores), ``tf32`` (10 bits).
"""

import triton
import triton.language as tl


@triton.jit
def _wave(table, left, right, points):
    """cos and sin of 2 pi left right / points, from a table of both; zero outside of the points."""
    turn = (left[:, None] * right[None, :]) % points
    inside = (left < points)[:, None] & (right < points)[None, :]
    cos = tl.load(table + turn, mask=inside, other=0.0)
    sin = tl.load(table + points + turn, mask=inside, other=0.0)
    return cos, sin


@triton.jit
def _turned(cos, sin, re, im, yr, yi, PRECISION: tl.constexpr):
    """y + (C + i S) (re + i im).  An operand's products follow each other, so that it is split once."""
    yr = tl.dot(cos, re, yr, input_precision=PRECISION)
    yi = tl.dot(sin, re, yi, input_precision=PRECISION)
    yr = tl.dot(-sin, im, yr, input_precision=PRECISION)
    yi = tl.dot(cos, im, yi, input_precision=PRECISION)
    return yr, yi


@triton.jit
def _points(
    rows, first, top, planes, channels, height, by_image, by_channel, by_row, ROWS: tl.constexpr
):
    """Where the rows (planes x ROWS) of a program's planes are, from row ``top`` on, and which exist."""
    plane, row = first + rows // ROWS, top + rows % ROWS
    image, channel = (plane // channels).to(tl.int64), (plane % channels).to(tl.int64)
    at = image * by_image + channel * by_channel + row * by_row
    return at, (plane < planes) & (row < height)


@triton.jit
def _edges(height, edge, planes, first, paired_inner, HEIGHT: tl.constexpr, BP: tl.constexpr):
    """Of the edges' (HEIGHT, 2 x BP) numbers: places in ``own``, in ``paired``, and which are there."""
    row = tl.arange(0, HEIGHT)[:, None]
    column = tl.arange(0, 2 * BP)[None, :]
    which, plane = column // BP, first + column % BP
    there = (which < edge) & (plane < planes)
    alone = (row == 0) | (2 * row == height)
    own = tl.where(row > 0, edge, 0) + which
    boundary = paired_inner + (row - 1) * edge + which
    own_at, boundary_at = own.to(tl.int64) * planes + plane, boundary.to(tl.int64) * planes + plane
    is_own = there & alone & (row < height)
    return own_at, boundary_at, is_own, there & (row > 0) & (2 * row < height)


@triton.jit
def _inner(
    row, start, first, planes, height, count, BF: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr
):
    """Of (BF, BC x BP) numbers off the edges: places in ``paired``, and which are there."""
    row = row + tl.arange(0, BF)[:, None]
    lane = tl.arange(0, BC * BP)[None, :]
    k, plane = start + lane // BP, first + lane % BP
    number = row * count + k
    return number.to(tl.int64) * planes + plane, (row < height) & (k < count) & (plane < planes)


@triton.jit
def fourier_transform_kernel(
    signal,
    paired,
    own,
    wave_of_rows,
    wave_of_columns,
    planes,
    channels,
    height,
    width,
    by_image,
    by_channel,
    by_row,
    by_point,
    scale,
    HEIGHT: tl.constexpr,
    PRECISION: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
    BW: tl.constexpr,
    BF: tl.constexpr,
):
    """Spectra of signals.  Grid (tiles of planes, tiles of columns); the first column has the edges."""
    first = tl.program_id(0) * BP
    count = (width - 1) // 2
    edge = tl.minimum(width, 2 - width % 2)
    rows = tl.arange(0, BP * HEIGHT)
    at, there = _points(rows, first, 0, planes, channels, height, by_image, by_channel, by_row, HEIGHT)
    frequency = tl.arange(0, HEIGHT)
    if tl.program_id(1) == 0:  # it reads the planes first, and what follows finds them in cache
        sums = tl.zeros((BP * HEIGHT,), tl.float32)
        signed = tl.zeros((BP * HEIGHT,), tl.float32)
        for start in tl.range(0, width, BW, num_stages=1):
            points = start + tl.arange(0, BW)
            mask = there[:, None] & (points < width)[None, :]
            x = tl.load(signal + at[:, None] + points[None, :] * by_point, mask=mask, other=0.0)
            sums += tl.sum(x, 1)
            signed += tl.sum(x * (1.0 - 2.0 * (points % 2).to(tl.float32))[None, :], 1)
        ends = tl.permute(tl.reshape(tl.join(sums, signed), (BP, HEIGHT, 2)), (1, 2, 0))
        ends = scale * tl.reshape(ends, (HEIGHT, 2 * BP))
        own_at, boundary_at, is_own, is_boundary = _edges(
            height, edge, planes, first, height * count, HEIGHT, BP
        )
        if HEIGHT > 1:
            hcos, hsin = _wave(wave_of_columns, frequency, frequency, height)
            er = tl.dot(hcos, ends, input_precision=PRECISION)
            ei = tl.dot(hsin, ends, input_precision=PRECISION)
            tl.store(own + own_at, er, mask=is_own)
            tl.store(paired + 2 * boundary_at, 1.4142135623730951 * er, mask=is_boundary)
            tl.store(paired + 2 * boundary_at + 1, 1.4142135623730951 * ei, mask=is_boundary)
        else:
            tl.store(own + own_at, ends, mask=is_own)
    column = tl.program_id(1) * BC + tl.arange(0, BC)
    re = tl.zeros((BP * HEIGHT, BC), tl.float32)
    im = tl.zeros((BP * HEIGHT, BC), tl.float32)
    for start in tl.range(0, width, BW, num_stages=1):
        points = start + tl.arange(0, BW)
        mask = there[:, None] & (points < width)[None, :]
        x = tl.load(signal + at[:, None] + points[None, :] * by_point, mask=mask, other=0.0)
        rcos, rsin = _wave(wave_of_rows, points, column + 1, width)
        re = tl.dot(x, rcos, re, input_precision=PRECISION)
        im = tl.dot(x, rsin, im, input_precision=PRECISION)
    re = tl.reshape(tl.permute(tl.reshape(re, (BP, HEIGHT, BC)), (1, 2, 0)), (HEIGHT, BC * BP))
    im = tl.reshape(tl.permute(tl.reshape(im, (BP, HEIGHT, BC)), (1, 2, 0)), (HEIGHT, BC * BP))
    for at_row in tl.range(0, height, BF, num_stages=1):
        if HEIGHT > 1:
            cos, sin = _wave(wave_of_columns, at_row + tl.arange(0, BF), frequency, height)
            zero = tl.zeros((BF, BC * BP), tl.float32)
            zr, zi = _turned(cos, sin, re, im, zero, zero, PRECISION)
        else:
            zr = re
            zi = im
        place, mask = _inner(at_row, tl.program_id(1) * BC, first, planes, height, count, BF, BP, BC)
        tl.store(
            paired + 2 * place[:, :, None] + tl.arange(0, 2),
            1.4142135623730951 * scale * tl.join(zr, zi),
            mask=mask[:, :, None],
        )


@triton.jit
def fourier_inverse_kernel(
    paired,
    own,
    bias,
    signal,
    wave_of_rows,
    wave_of_columns,
    planes,
    channels,
    height,
    width,
    by_image,
    by_channel,
    by_row,
    by_point,
    scale,
    BIAS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
    BF: tl.constexpr,
):
    """Signals of spectra, plus the bias of their channel.  Grid (tiles of planes, tiles of BF rows)."""
    first, top = tl.program_id(0) * BP, tl.program_id(1) * BF
    count = (width - 1) // 2
    edge = tl.minimum(width, 2 - width % 2)
    own_at, boundary_at, is_own, is_boundary = _edges(
        height, edge, planes, first, height * count, HEIGHT, BP
    )
    ends = tl.load(own + own_at, mask=is_own, other=0.0)
    if HEIGHT > 1:
        er = 1.4142135623730951 * tl.load(paired + 2 * boundary_at, mask=is_boundary, other=0.0)
        ei = 1.4142135623730951 * tl.load(paired + 2 * boundary_at + 1, mask=is_boundary, other=0.0)
        every = tl.arange(0, HEIGHT)
        ecos, esin = _wave(wave_of_columns, top + tl.arange(0, BF), every, height)
        ends = tl.dot(ecos, ends + er, input_precision=PRECISION)
        ends = tl.dot(esin, ei, ends, input_precision=PRECISION)
    ends = tl.permute(tl.reshape(scale * ends, (BF, 2, BP)), (2, 0, 1))
    sums, signed = tl.split(tl.reshape(ends, (BP * BF, 2)))
    points = tl.arange(0, WIDTH)
    x = sums[:, None] + signed[:, None] * (1.0 - 2.0 * (points % 2).to(tl.float32))[None, :]
    scale *= 1.4142135623730951
    for start in tl.range(0, count, BC, num_stages=1):
        re = tl.zeros((BF, BC * BP), tl.float32)
        im = tl.zeros((BF, BC * BP), tl.float32)
        for low in tl.range(0, height, BF, num_stages=1):
            place, mask = _inner(low, start, first, planes, height, count, BF, BP, BC)
            pairs = tl.load(
                paired + 2 * place[:, :, None] + tl.arange(0, 2), mask=mask[:, :, None], other=0.0
            )
            zr, zi = tl.split(scale * pairs)
            if HEIGHT > 1:
                frequency = low + tl.arange(0, BF)
                hcos, hsin = _wave(wave_of_columns, top + tl.arange(0, BF), frequency, height)
                re, im = _turned(hcos, -hsin, zr, zi, re, im, PRECISION)
            else:
                re += zr
                im += zi
        re = tl.reshape(tl.permute(tl.reshape(re, (BF, BC, BP)), (2, 0, 1)), (BP * BF, BC))
        im = tl.reshape(tl.permute(tl.reshape(im, (BF, BC, BP)), (2, 0, 1)), (BP * BF, BC))
        cos, sin = _wave(wave_of_rows, start + 1 + tl.arange(0, BC), points, width)
        x = tl.dot(re, cos, x, input_precision=PRECISION)
        x = tl.dot(im, sin, x, input_precision=PRECISION)
    rows = tl.arange(0, BP * BF)
    at, there = _points(rows, first, top, planes, channels, height, by_image, by_channel, by_row, BF)
    if BIAS:
        x += tl.load(bias + (first + rows // BF) % channels, mask=there, other=0.0)[:, None]
    mask = there[:, None] & (points < width)[None, :]
    tl.store(signal + at[:, None] + points[None, :] * by_point, x, mask=mask)
