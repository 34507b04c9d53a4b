"""Tiles of row-major matrices, real or complex as interleaved pairs, and their products with columns.

Addresses are 64-bit.  A tile of pairs is one contiguous load of twice the width, split in registers, so
that the loads are as wide as for real matrices.
"""

import triton
import triton.language as tl


@triton.jit
def pointer(table, entry, DTYPE: tl.constexpr):
    """The tensor ``entry`` of a table of addresses; allocations are 16-byte aligned."""
    return tl.multiple_of(tl.load(table + entry).to(tl.pointer_type(DTYPE)), 16)


@triton.jit
def load_tile(base, rows, first, m, n, BN: tl.constexpr, PAIRS: tl.constexpr):
    """Rows ``rows`` and BN columns from ``first``, in float32; zero outside the m x n matrix."""
    if PAIRS:
        columns = 2 * first + tl.arange(0, 2 * BN)
        at = rows.to(tl.int64)[:, None] * (2 * n) + columns[None, :]
        inside = (rows < m)[:, None] & (columns < 2 * n)[None, :]
        both = tl.load(base + at, mask=inside, other=0.0).to(tl.float32)
        re, im = tl.split(tl.reshape(both, (rows.shape[0], BN, 2)))
    else:
        columns = first + tl.arange(0, BN)
        at = rows.to(tl.int64)[:, None] * n + columns[None, :]
        inside = (rows < m)[:, None] & (columns < n)[None, :]
        re = tl.load(base + at, mask=inside, other=0.0).to(tl.float32)
        im = re
    return re, im


@triton.jit
def store_tile(base, rows, first, m, n, re, im, BN: tl.constexpr, PAIRS: tl.constexpr):
    """The inverse of `load_tile`."""
    if PAIRS:
        both = tl.reshape(tl.join(re, im), (rows.shape[0], 2 * BN))
        columns = 2 * first + tl.arange(0, 2 * BN)
        at = rows.to(tl.int64)[:, None] * (2 * n) + columns[None, :]
        tl.store(base + at, both, mask=(rows < m)[:, None] & (columns < 2 * n)[None, :])
    else:
        columns = first + tl.arange(0, BN)
        at = rows.to(tl.int64)[:, None] * n + columns[None, :]
        tl.store(base + at, re, mask=(rows < m)[:, None] & (columns < n)[None, :])


@triton.jit
def load_floats(base, rows, first, m, n, BN: tl.constexpr):
    """Rows ``rows`` and BN floats from ``first`` of m x n floats, in float32; zero outside."""
    at = first + tl.arange(0, BN)
    inside = (rows < m)[:, None] & (at < n)[None, :]
    value = tl.load(base + rows.to(tl.int64)[:, None] * n + at[None, :], mask=inside, other=0.0)
    return value.to(tl.float32)


@triton.jit
def load_real_columns(base, parts, first, k, n, BN: tl.constexpr, PAIRS: tl.constexpr):
    """Rows ``parts`` and BN floats from ``first`` of the real form of a factor, stored as (k, n).

    A complex column is two real ones, [re, -im, ...] and [im, re, ...]: the product of a row of floats
    with them is the real and the imaginary part of the product.
    """
    at = first + tl.arange(0, BN)
    if PAIRS:
        column, part = (parts // 2)[:, None], (parts % 2)[:, None]
        inside = (column < k) & (at < 2 * n)[None, :]
        value = tl.load(
            base + column.to(tl.int64) * (2 * n) + (at[None, :] ^ part), mask=inside, other=0.0
        )
        value = tl.where(at[None, :] % 2 > part, -value, value)
    else:
        inside = (parts < k)[:, None] & (at < n)[None, :]
        value = tl.load(base + parts.to(tl.int64)[:, None] * n + at[None, :], mask=inside, other=0.0)
    return value


@triton.jit
def load_column(base, at, inside, PAIRS: tl.constexpr):
    """Numbers ``at`` (counted in numbers, not floats) of a factor, in float32."""
    if PAIRS:
        re = tl.load(base + 2 * at, mask=inside, other=0.0).to(tl.float32)
        im = tl.load(base + 2 * at + 1, mask=inside, other=0.0).to(tl.float32)
    else:
        re = tl.load(base + at, mask=inside, other=0.0).to(tl.float32)
        im = re
    return re, im


@triton.jit
def load_rows_as_columns(base, rows, columns, m, k, PAIRS: tl.constexpr):
    """Entries (columns, rows) of an m x k matrix stored by rows, in float32; zero outside of it."""
    at = rows.to(tl.int64)[None, :] * k + columns[:, None]
    inside = (rows < m)[None, :] & (columns < k)[:, None]
    return load_column(base, at, inside, PAIRS)


@triton.jit
def store_columns_as_rows(base, rows, columns, m, k, re, im, PAIRS: tl.constexpr):
    """The inverse of `load_rows_as_columns`."""
    at = rows.to(tl.int64)[None, :] * k + columns[:, None]
    inside = (rows < m)[None, :] & (columns < k)[:, None]
    store_column(base, at, inside, re, im, PAIRS)


@triton.jit
def load_stored(base, first, n, BN: tl.constexpr, PAIRS: tl.constexpr):
    """Numbers [first, first + BN) of a column of n, side by side as in memory; zero beyond n."""
    WIDTH: tl.constexpr = 2 if PAIRS else 1
    at = WIDTH * first + tl.arange(0, WIDTH * BN)
    return tl.load(base + at, mask=at < WIDTH * n, other=0.0)


@triton.jit
def parts(stored, PAIRS: tl.constexpr):
    """Real and imaginary parts of numbers as they are stored, in float32."""
    re = stored.to(tl.float32)
    im = re
    if PAIRS:
        re, im = tl.split(tl.reshape(re, (re.shape[0] // 2, 2)))
    return re, im


@triton.jit
def load_range(base, first, n, BN: tl.constexpr, PAIRS: tl.constexpr):
    """`load_stored` and its `parts`.  Threads exchange parts of pairs, and so wait for the load."""
    return parts(load_stored(base, first, n, BN, PAIRS), PAIRS)


@triton.jit
def store_range(base, first, n, re, im, BN: tl.constexpr, PAIRS: tl.constexpr):
    """The inverse of `load_range`."""
    if PAIRS:
        at = 2 * first + tl.arange(0, 2 * BN)
        tl.store(base + at, tl.reshape(tl.join(re, im), (2 * BN,)), mask=at < 2 * n)
    else:
        at = first + tl.arange(0, BN)
        tl.store(base + at, re, mask=at < n)


@triton.jit
def store_column(base, at, inside, re, im, PAIRS: tl.constexpr):
    """The inverse of `load_column`."""
    if PAIRS:
        tl.store(base + 2 * at, re, mask=inside)
        tl.store(base + 2 * at + 1, im, mask=inside)
    else:
        tl.store(base + at, re, mask=inside)


@triton.jit
def adjoint_times(re, im, xr, xi, PAIRS: tl.constexpr):
    """``M^H x`` for a tile M and a column x along its rows."""
    xr = xr[:, None]
    if PAIRS:
        xi = xi[:, None]
        zr = tl.sum(re * xr + im * xi, axis=0)
        zi = tl.sum(re * xi - im * xr, axis=0)
    else:
        zr = tl.sum(re * xr, axis=0)
        zi = zr
    return zr, zi


@triton.jit
def add_adjoint(sr, si, re, im, xr, xi, PAIRS: tl.constexpr):
    """Adds to (K, BM, BN) the products that ``M^H X`` sums, of a tile M and columns X (K, BM)."""
    re, xr = re[None, :, :], xr[:, :, None]
    if PAIRS:
        im, xi = im[None, :, :], xi[:, :, None]
        sr += re * xr + im * xi
        si += re * xi - im * xr
    else:
        sr += re * xr
    return sr, si


@triton.jit
def times(re, im, yr, yi, PAIRS: tl.constexpr):
    """``M y`` for a tile M and a column y along its columns."""
    yr = yr[None, :]
    if PAIRS:
        yi = yi[None, :]
        xr = tl.sum(re * yr - im * yi, axis=1)
        xi = tl.sum(re * yi + im * yr, axis=1)
    else:
        xr = tl.sum(re * yr, axis=1)
        xi = xr
    return xr, xi


@triton.jit
def add_outer(re, im, lr, li, tr, ti, PAIRS: tl.constexpr):
    """``M + l t^H``."""
    lr, tr = lr[:, None], tr[None, :]
    if PAIRS:
        li, ti = li[:, None], ti[None, :]
        re = re + lr * tr + li * ti
        im = im + li * tr - lr * ti
    else:
        re = re + lr * tr
        im = re
    return re, im


@triton.jit
def square_sum(re, im, PAIRS: tl.constexpr):
    """Sum of |.|^2 of a column, in float64."""
    r = re.to(tl.float64)
    total = tl.sum(r * r)
    if PAIRS:
        i = im.to(tl.float64)
        total += tl.sum(i * i)
    return total


@triton.jit
def matrix_place(
    matrix,
    listed,
    matrices,
    size,
    axis: tl.constexpr,
    LISTED: tl.constexpr,
    TYPE: tl.constexpr,
):
    """Where the matrix of a program begins, of ``size`` floats, and False if there is none.

    LISTED is ``"all"`` (every matrix of ``matrix``), ``"active"`` (those whose indices ``listed`` has, a
    negative one standing for none) or ``"table"`` (``listed`` has the addresses of tensors of TYPE, of
    ``matrices`` matrices each).
    """
    slot = tl.program_id(axis).to(tl.int64)
    present = slot >= 0
    if LISTED == "table":
        base = pointer(listed, slot // matrices, TYPE) + (slot % matrices) * size
    elif LISTED == "active":
        index = tl.load(listed + slot).to(tl.int64)
        present = index >= 0
        base = matrix + tl.maximum(index, 0) * size
    else:
        base = matrix + slot * size
    return base, present
