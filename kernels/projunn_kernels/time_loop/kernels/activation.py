"""The nonlinearities of the time loop and their gradients, elementwise on tensors of any shape.

A number is (re, im); of real numbers ``im`` is ``re`` and means nothing.
"""

import triton
import triton.language as tl

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
    """f(z); NaN stays NaN.  ``offset``: the bias of modReLU, broadcast against z."""
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
