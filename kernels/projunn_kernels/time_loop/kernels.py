"""The whole time loop of a unitary RNN in one launch, and its backward in another.

    forward    h_t = f(x_t + h_{t-1} W^T)                                  t = 1..T
    backward   d_t = f'(h_t) (g_t + d_{t+1} conj(W)),  d_{T+1} = 0         t = T..1
               gradient of h_0 = d_1 conj(W)

x, h, g, d are (T, batch, n), W (n, n), f one of the codes below; f' is recovered from h = f(z).  d is
the gradient of x; that of W is a product of d and h, made elsewhere.

The rows of a batch have nothing to do with each other: a program takes BM of them through all of time,
and no program waits for another.  The operand of step t is what step t - 1 stored: the program reads
its own rows back, through L1, after a barrier among its threads.  W passes in panels of BK x BN, from
L1 while it fits there, else from L2.  With ``HOLD`` n fits one panel: W and the state then stay in
registers or shared memory for all of time, and global memory sees x and h alone.

The gradient of the modReLU bias is summed over time and rows by the program that has them, so that it
is the same in every run: partial sums (programs, n), added up elsewhere.
"""

import triton
import triton.language as tl

from projunn_kernels.language.tiles import load_tile, store_tile

IDENTITY: tl.constexpr = tl.constexpr(0)
RELU: tl.constexpr = tl.constexpr(1)
TANH: tl.constexpr = tl.constexpr(2)
MODRELU: tl.constexpr = tl.constexpr(3)
_TINY: tl.constexpr = tl.constexpr(1.1754943508222875e-38)  # of float32


@triton.jit
def real_tanh(x):
    """tanh x and 1 - tanh^2 x, both to a few units in the last place."""
    e = tl.exp(-2.0 * tl.abs(x))
    large = (1.0 - e) / (1.0 + e)
    s = x * x
    # Below 1/4 the difference cancels: the series, whose next term is 8e-9 of the first.
    series = x * (1.0 + s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835)))))
    value = tl.where(s < 0.0625, series, tl.where(x < 0, -large, large))
    return value, 4.0 * e / ((1.0 + e) * (1.0 + e))


@triton.jit
def phase(re, im):
    """|z| and z / |z|, 0 at 0, without overflow or underflow on the way."""
    largest = tl.maximum(tl.abs(re), tl.abs(im))
    safe = tl.where(largest > 0.0, largest, 1.0)
    a, b = re / safe, im / safe
    r = tl.sqrt(a * a + b * b)
    unit = tl.where(largest > 0.0, r, 1.0)
    return largest * r, a / unit, b / unit


@triton.jit
def activate(re, im, offset, F: tl.constexpr, PAIRS: tl.constexpr):
    """f(z); NaN stays NaN.  ``offset`` (1, BN): the bias of modReLU."""
    if F == RELU:
        re = tl.where(re <= 0.0, 0.0, re)
        im = re
    elif F == TANH:
        if PAIRS:
            # tanh(x + iy) = (t + i s c (1 - t^2)) / (c^2 + t^2 s^2)
            t, q = real_tanh(re)
            s, c = tl.sin(im), tl.cos(im)
            below = c * c + t * t * s * s
            re, im = t / below, s * c * q / below
        else:
            re, _q = real_tanh(re)
            im = re
    elif F == MODRELU:
        if PAIRS:
            size, ur, ui = phase(re, im)
            grown = size + offset
            grown = tl.where(grown <= 0.0, 0.0, grown)
            re, im = grown * ur, grown * ui
        else:
            grown = tl.abs(re) + offset
            grown = tl.where((grown <= 0.0) | (re == 0.0), 0.0, grown)
            re = tl.where(re < 0.0, -grown, grown)
            im = re
    return re, im


@triton.jit
def activation_gradient(gr, gi, hr, hi, offset, F: tl.constexpr, PAIRS: tl.constexpr):
    """The gradient at z from the gradient g at h = f(z), and that of the bias of modReLU (else 0)."""
    along = gr * 0.0
    if F == RELU:
        gr = tl.where(hr <= 0.0, 0.0, gr)
        gi = gr
    elif F == TANH:
        if PAIRS:
            qr, qi = 1.0 - hr * hr + hi * hi, 2.0 * hr * hi  # conj(1 - h^2)
            gr, gi = gr * qr - gi * qi, gr * qi + gi * qr
        else:
            gr = gr * (1.0 - hr * hr)
            gi = gr
    elif F == MODRELU:
        if PAIRS:
            # dz = dh + (b / |z|) (dh - u Re(conj(u) dh)) with u = h / |h|, where |h| = |z| + b > 0
            size, ur, ui = phase(hr, hi)
            active = size > 0.0
            along = tl.where(active, gr * ur + gi * ui, 0.0)
            ratio = offset / tl.maximum(size - offset, _TINY)
            gr = tl.where(active, gr + ratio * (gr - ur * along), 0.0)
            gi = tl.where(active, gi + ratio * (gi - ui * along), 0.0)
        else:
            gr = tl.where(hr == 0.0, 0.0, gr)
            gi = gr
            along = tl.where(hr < 0.0, -gr, gr)
    return gr, gi, along


@triton.jit
def load_operand(
    w,
    k,
    first,
    n,
    ADJOINT: tl.constexpr,
    PAIRS: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Rows k.. and columns first.. of ``W^T``, or of ``conj(W)`` (ADJOINT)."""
    if ADJOINT:
        wr, wi = load_tile(w, k + tl.arange(0, BK), first, n, n, BN, PAIRS)
        wi = -wi
    else:
        wr, wi = load_tile(w, first + tl.arange(0, BN), k, n, n, BK, PAIRS)
        wr, wi = tl.trans(wr), tl.trans(wi)
    return wr.to(OPERAND), wi.to(OPERAND)


@triton.jit
def multiply_add(re, im, ar, ai, wr, wi, PAIRS: tl.constexpr, PRECISION: tl.constexpr):
    """``acc + A W``, accumulated in float32."""
    ar = ar.to(wr.dtype)
    re = tl.dot(ar, wr, re, input_precision=PRECISION)
    if PAIRS:
        ai = ai.to(wr.dtype)
        im = tl.dot(ar, wi, im, input_precision=PRECISION)
        re = tl.dot(-ai, wi, re, input_precision=PRECISION)
        im = tl.dot(ai, wr, im, input_precision=PRECISION)
    else:
        im = re
    return re, im


@triton.jit
def add_product(
    re,
    im,
    a,
    w,
    rows,
    first,
    batch,
    n,
    depth,
    ADJOINT: tl.constexpr,
    PAIRS: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Columns first.. of ``acc + A W^T`` or ``acc + A conj(W)``, over ``depth`` columns of A."""
    for k in tl.range(0, depth, BK, num_stages=STAGES):
        ar, ai = load_tile(a, rows, k, batch, n, BK, PAIRS)
        wr, wi = load_operand(w, k, first, n, ADJOINT, PAIRS, BK, BN, OPERAND)
        re, im = multiply_add(re, im, ar, ai, wr, wi, PAIRS, PRECISION)
    return re, im


@triton.jit
def _offsets(bias, first, n, F: tl.constexpr, BN: tl.constexpr):
    columns = first + tl.arange(0, BN)
    if F == MODRELU:
        offset = tl.load(bias + columns, mask=columns < n, other=0.0).to(tl.float32)
    else:
        offset = tl.zeros((BN,), tl.float32)
    return offset[None, :]


@triton.jit
def recurrence_kernel(
    inputs,
    initial,
    w,
    bias,
    states,
    steps,
    batch,
    n,
    F: tl.constexpr,
    PAIRS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    HOLD: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Grid (row tiles,).  ``steps`` >= 1."""
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    stride = batch * n * WIDTH
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    if HOLD:
        wr, wi = load_operand(w, 0, 0, n, False, PAIRS, BN, BN, OPERAND)
        offset = _offsets(bias, 0, n, F, BN)
        hr, hi = load_tile(initial, rows, 0, batch, n, BN, PAIRS)
        for _t in range(steps):
            zr, zi = load_tile(inputs, rows, 0, batch, n, BN, PAIRS)
            zr, zi = multiply_add(zr, zi, hr, hi, wr, wi, PAIRS, PRECISION)
            hr, hi = activate(zr, zi, offset, F, PAIRS)
            store_tile(states, rows, 0, batch, n, hr, hi, BN, PAIRS)
            inputs += stride
            states += stride
    else:
        previous = initial
        for _t in range(steps):
            for first in range(0, n, BN):
                zr, zi = load_tile(inputs, rows, first, batch, n, BN, PAIRS)
                zr, zi = add_product(
                    zr, zi, previous, w, rows, first, batch, n, n, False, PAIRS, BN, BK, OPERAND,
                    PRECISION, STAGES,
                )  # fmt: skip
                hr, hi = activate(zr, zi, _offsets(bias, first, n, F, BN), F, PAIRS)
                store_tile(states, rows, first, batch, n, hr, hi, BN, PAIRS)
            tl.debug_barrier()  # what one thread stored is another's operand
            previous = states
            inputs += stride
            states += stride


@triton.jit
def recurrence_backward_kernel(
    grad,
    states,
    w,
    bias,
    grad_inputs,
    grad_initial,
    partial,
    steps,
    batch,
    n,
    F: tl.constexpr,
    PAIRS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    HOLD: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Grid (row tiles,); ``partial`` (row tiles, n) gets the sums for the bias of modReLU."""
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    stride = batch * n * WIDTH
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    last = tl.cast(steps - 1, tl.int64) * stride
    grad += last
    states += last
    grad_inputs += last
    partial += tl.program_id(0).to(tl.int64) * n
    if HOLD:
        wr, wi = load_operand(w, 0, 0, n, True, PAIRS, BN, BN, OPERAND)
        offset = _offsets(bias, 0, n, F, BN)
        dr = tl.zeros((BM, BN), tl.float32)
        di = tl.zeros((BM, BN), tl.float32)
        total = tl.zeros((BN,), tl.float32)
        for _t in range(steps):
            gr, gi = load_tile(grad, rows, 0, batch, n, BN, PAIRS)
            gr, gi = multiply_add(gr, gi, dr, di, wr, wi, PAIRS, PRECISION)
            hr, hi = load_tile(states, rows, 0, batch, n, BN, PAIRS)
            dr, di, along = activation_gradient(gr, gi, hr, hi, offset, F, PAIRS)
            store_tile(grad_inputs, rows, 0, batch, n, dr, di, BN, PAIRS)
            if F == MODRELU:
                total += tl.sum(along, axis=0)
            grad -= stride
            states -= stride
            grad_inputs -= stride
        if F == MODRELU:
            columns = tl.arange(0, BN)
            tl.store(partial + columns, total, mask=columns < n)
        gr, gi = tl.zeros((BM, BN), tl.float32), tl.zeros((BM, BN), tl.float32)
        gr, gi = multiply_add(gr, gi, dr, di, wr, wi, PAIRS, PRECISION)
        store_tile(grad_initial, rows, 0, batch, n, gr, gi, BN, PAIRS)
    else:
        # d_{t+1} is read at ``grad_inputs + stride``.  Triton would not carry a name for it that is
        # bound here and again in the loop: see `projunn_kernels.tuning.carried`.
        depth = 0  # there is no d_{T+1} to read
        for t in range(steps):
            for first in range(0, n, BN):
                gr, gi = load_tile(grad, rows, first, batch, n, BN, PAIRS)
                gr, gi = add_product(
                    gr, gi, grad_inputs + stride, w, rows, first, batch, n, depth, True, PAIRS, BN, BK,
                    OPERAND, PRECISION, STAGES,
                )  # fmt: skip
                hr, hi = load_tile(states, rows, first, batch, n, BN, PAIRS)
                offset = _offsets(bias, first, n, F, BN)
                gr, gi, along = activation_gradient(gr, gi, hr, hi, offset, F, PAIRS)
                store_tile(grad_inputs, rows, first, batch, n, gr, gi, BN, PAIRS)
                if F == MODRELU:  # behind the barrier of the step before
                    columns = first + tl.arange(0, BN)
                    before = tl.load(partial + columns, mask=(columns < n) & (t > 0), other=0.0)
                    tl.store(partial + columns, before + tl.sum(along, axis=0), mask=columns < n)
            tl.debug_barrier()  # what one thread stored is another's operand
            depth = n
            grad -= stride
            states -= stride
            grad_inputs -= stride
        for first in range(0, n, BN):
            gr, gi = tl.zeros((BM, BN), tl.float32), tl.zeros((BM, BN), tl.float32)
            gr, gi = add_product(
                gr, gi, grad_inputs + stride, w, rows, first, batch, n, n, True, PAIRS, BN, BK, OPERAND,
                PRECISION, STAGES,
            )  # fmt: skip
            store_tile(grad_initial, rows, first, batch, n, gr, gi, BN, PAIRS)
