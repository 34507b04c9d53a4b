"""The transforms of planes in slices: for tall planes where products read operands from registers.

They compute what `planes` does in two loops of products, each with a tile of the constants at a time.
The first adds up slices of what is read, and the second makes slices of what is written, so that no
thread holds constants or sums of a whole plane.  Along the columns there are half as many products:
real and imaginary parts of a column are transformed as two real signals, of which frequencies up to
height / 2 are enough:

    p_f + i q_f of the real parts, r_f + i s_f of the imaginary parts   (sums with cosines and sines)
    z_f = (p_f - s_f) + i (q_f + r_f)          z_-f = (p_f + s_f) + i (r_f - q_f)      for f > 0

q_0 and s_0 are zero.  Their places have the sums at f = height / 2, so that z_0 = p_0 + i r_0 and
z_height/2 = q_0 + i s_0.  Slot 0, with two real columns in the places of the real and the imaginary
parts (the edges of `planes`), has the bins p_f + i q_f of the first and r_f + i s_f of the second.

So each pair (slot, f) has four numbers and two bins, here called near and far: z_f and z_-f, or those
of the two edges.
"""

import triton
import triton.language as tl

from projunn_kernels.convolution.kernels.planes import within
from projunn_kernels.convolution.kernels.points import signals
from projunn_kernels.convolution.kernels.products import constants, halves, product


@triton.jit
def _sum(z, x, x_rest, y, y_rest, PRECISION: tl.constexpr):
    """z and the product of two matrices that are given by their halves."""
    if PRECISION == "ieee":
        z = tl.dot(x, y, z, input_precision="ieee")
    elif PRECISION == "tf32":
        z = tl.dot(x, y, z, input_precision="tf32")
    else:
        z = tl.dot(x_rest, y, z, input_precision="tf32")
        z = tl.dot(x, y_rest, z, input_precision="tf32")
        z = tl.dot(x, y, z, input_precision="tf32")
    return z


@triton.jit
def _bins(f, slot, lane, planes, height, width):
    """Where the near and the far bins lie among the paired ones, (f, slot, lane), and which exist."""
    count = (width - 1) // 2
    edges = 2 - width % 2
    edge = (slot == 0)[None, :]
    later = (f > 0)[:, None]
    opposite = tl.where(f > 0, height - f, height // 2)
    of_edges = (height * count + (f - 1) * edges)[:, None]
    near = tl.where(edge, of_edges, f[:, None] * count + (slot - 1)[None, :])
    far = tl.where(edge, of_edges + 1, opposite[:, None] * count + (slot - 1)[None, :])
    exists = (2 * f < height)[:, None] & (slot <= count)[None, :] & (later | ~edge)
    both = exists & tl.where(edge, edges == 2, later | (height % 2 == 0))
    there = (lane < 2 * planes)[None, None, :]
    near = (near.to(tl.int64) * (2 * planes))[:, :, None] + lane[None, None, :]
    far = (far.to(tl.int64) * (2 * planes))[:, :, None] + lane[None, None, :]
    return near, exists[:, :, None] & there, far, both[:, :, None] & there


@triton.jit
def _own_bins(lane, planes, height, width):
    """Where slot 0 has its own bins at f = 0, and which exist: those of the first edge, p_0 and q_0.

    Those of the second edge, r_0 and s_0, follow them after as many numbers as there are planes.
    """
    edges = 2 - width % 2
    at = (lane % 2 * edges).to(tl.int64) * planes + lane // 2
    exists = (lane < 2 * planes) & ((lane % 2 == 0) | (height % 2 == 0))
    return at, exists, exists & (edges == 2)


@triton.jit
def _of_slice(first, STEP: tl.constexpr, HEIGHT: tl.constexpr):
    """The cosines and then the sines of a slice of frequencies in the constants along the columns."""
    k = tl.arange(0, 2 * STEP)
    return k // STEP * (HEIGHT // 2) + first + k % STEP


@triton.jit
def sliced_transform_kernel(
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
    SLICE: tl.constexpr,
):
    """Spectra of signals.  Grid (tiles of planes).

    ``along_rows`` is (2, WIDTH, 2 SLOTS) and ``along_columns`` (2, HEIGHT, HEIGHT), cosines and sines.
    """
    SLOTS: tl.constexpr = WIDTH // 2
    POINTS: tl.constexpr = 16  # the least that `tl.dot` sums over
    STEP: tl.constexpr = SLICE // 2
    first = tl.program_id(0) * BP
    _, there, _, start = signals(first, planes, channels, by_image, by_channel, BP)
    h = tl.arange(0, HEIGHT)
    slot = tl.arange(0, SLOTS)
    lane = 2 * first + tl.arange(0, 2 * BP)
    rows = tl.zeros((HEIGHT * BP, WIDTH), tl.float32)
    for begin in range(0, WIDTH, POINTS):
        w = begin + tl.arange(0, POINTS)
        at = start[None, :, None] + within(h, w, by_row, by_point)[:, None, :]
        mask = there[None, :, None] & (h < height)[:, None, None] & (w < width)[None, None, :]
        x = tl.reshape(tl.load(signal + at, mask=mask, other=0.0), (HEIGHT * BP, POINTS))
        x, x_rest = halves(x, PRECISION)
        wave, wave_rest = constants(along_rows, w, tl.arange(0, WIDTH), WIDTH, WIDTH, PRECISION)
        rows = _sum(rows, x, x_rest, wave, wave_rest, PRECISION)
    columns = tl.permute(tl.reshape(rows, (HEIGHT, BP, 2, SLOTS)), (3, 1, 2, 0))
    columns, rest = halves(tl.reshape(columns, (SLOTS * BP * 2, HEIGHT)), PRECISION)
    edge = (slot == 0)[:, None, None]
    own_at, is_first, is_second = _own_bins(lane, planes, height, width)
    own_at = own_at[None, None, :] + tl.zeros((STEP, SLOTS, 1), tl.int32)
    for begin in range(0, HEIGHT // 2, STEP):
        f = begin + tl.arange(0, STEP)
        k = _of_slice(begin, STEP, HEIGHT)
        wave, wave_rest = constants(along_columns, h, k, HEIGHT, HEIGHT, PRECISION)
        sums = product(columns, rest, wave, wave_rest, PRECISION)
        sums = tl.permute(tl.reshape(sums, (SLOTS, BP, 2, 2, STEP)), (0, 1, 4, 3, 2))
        of_real, of_imaginary = tl.split(sums)
        p, q = tl.split(of_real)
        r, s = tl.split(of_imaginary)
        zero = (f == 0)[None, None, :]
        near = tl.join(
            tl.where(edge | zero, p, p - s),
            tl.where(edge, q, tl.where(zero, r, q + r)),
        )
        far = tl.join(
            tl.where(edge, r, tl.where(zero, q, p + s)),
            tl.where(edge | zero, s, r - q),
        )
        near = tl.reshape(tl.permute(near, (2, 0, 1, 3)), (STEP, SLOTS, 2 * BP))
        far = tl.reshape(tl.permute(far, (2, 0, 1, 3)), (STEP, SLOTS, 2 * BP))
        near_at, exists, far_at, both = _bins(f, slot, lane, planes, height, width)
        tl.store(paired + near_at, near, mask=exists)
        tl.store(paired + far_at, far, mask=both)
        here = ((f == 0)[:, None] & (slot == 0)[None, :])[:, :, None]
        root = 0.7071067811865476
        tl.store(own + own_at, root * near, mask=here & is_first[None, None, :])
        tl.store(own + own_at + planes, root * far, mask=here & is_second[None, None, :])


@triton.jit
def sliced_inverse_kernel(
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
    SLICE: tl.constexpr,
):
    """Signals of spectra, plus the bias of their channel.  Grid (tiles of planes).

    ``along_rows`` is (2, 2 SLOTS, WIDTH) and ``along_columns`` (2, HEIGHT, HEIGHT), cosines and sines.
    """
    SLOTS: tl.constexpr = WIDTH // 2
    STEP: tl.constexpr = 8  # frequencies, of which the products sum over cosines and sines
    first = tl.program_id(0) * BP
    _, there, channel, start = signals(first, planes, channels, by_image, by_channel, BP)
    h = tl.arange(0, HEIGHT)
    slot = tl.arange(0, SLOTS)
    lane = 2 * first + tl.arange(0, 2 * BP)
    edge = (slot == 0)[None, :, None]
    own_at, is_first, is_second = _own_bins(lane, planes, height, width)
    near_own = 0.7071067811865476 * tl.load(own + own_at, mask=is_first, other=0.0)
    far_own = 0.7071067811865476 * tl.load(own + own_at + planes, mask=is_second, other=0.0)
    columns = tl.zeros((SLOTS * BP * 2, HEIGHT), tl.float32)
    for begin in range(0, HEIGHT // 2, STEP):
        f = begin + tl.arange(0, STEP)
        near_at, exists, far_at, both = _bins(f, slot, lane, planes, height, width)
        near = tl.load(paired + near_at, mask=exists, other=0.0)
        far = tl.load(paired + far_at, mask=both, other=0.0)
        zero = (f == 0)[:, None, None]
        near = tl.where(edge & zero, near_own[None, None, :], near)
        far = tl.where(edge & zero, far_own[None, None, :], far)
        near_re, near_im = tl.split(tl.reshape(near, (STEP, SLOTS, BP, 2)))
        far_re, far_im = tl.split(tl.reshape(far, (STEP, SLOTS, BP, 2)))
        p = tl.where(edge | zero, near_re, near_re + far_re)
        q = tl.where(edge, near_im, tl.where(zero, far_re, near_im - far_im))
        r = tl.where(edge, far_re, tl.where(zero, near_im, near_im + far_im))
        s = tl.where(edge | zero, far_im, far_re - near_re)
        sums = tl.permute(tl.join(tl.join(p, r), tl.join(q, s)), (1, 2, 3, 4, 0))
        sums, rest = halves(tl.reshape(sums, (SLOTS * BP * 2, 2 * STEP)), PRECISION)
        k = _of_slice(begin, STEP, HEIGHT)
        wave, wave_rest = constants(along_columns, k, h, HEIGHT, HEIGHT, PRECISION)
        columns = _sum(columns, sums, rest, wave, wave_rest, PRECISION)
    rows = tl.permute(tl.reshape(columns, (SLOTS, BP, 2, HEIGHT)), (3, 1, 2, 0))
    rows, rest = halves(tl.reshape(rows, (HEIGHT * BP, WIDTH)), PRECISION)
    for begin in range(0, WIDTH, SLICE):
        w = begin + tl.arange(0, SLICE)
        wave, wave_rest = constants(along_rows, tl.arange(0, WIDTH), w, WIDTH, WIDTH, PRECISION)
        x = tl.reshape(product(rows, rest, wave, wave_rest, PRECISION), (HEIGHT, BP, SLICE))
        if BIAS:
            x += tl.load(bias + channel, mask=there, other=0.0)[None, :, None]
        at = start[None, :, None] + within(h, w, by_row, by_point)[:, None, :]
        mask = there[None, :, None] & (h < height)[:, None, None] & (w < width)[None, None, :]
        tl.store(signal + at, x, mask=mask)
