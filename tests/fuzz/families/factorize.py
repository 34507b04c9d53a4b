"""Factorizations by every method, of matrices of every rank and size.

What a method promises of its factors is checked against products in float64: the factor without
orthonormal columns is the product of the matrix with the other one; ``subspace`` spans D^H R; matrices
of low rank are reproduced; ``svd`` is the best approximation.
"""

import torch

from projunn import factorize
from projunn.lowrank import FACTORIZATIONS
from tests.dense import precise
from tests.fuzz.checks import check, eps, finite, flat, same
from tests.fuzz.draw import BATCHES, SIZES

SHARE = 14
KINDS = ("random", "random", "low rank", "low rank", "equal columns", "one-hot", "steep", "zero")
ERROR = 400  # of a factor, in units of eps times the norm of the matrix


def case(draw):
    dtype, method = draw.dtype(), draw.choice("method", FACTORIZATIONS)
    batch, m, n = draw.choice("batch", BATCHES), draw.choice("m", SIZES), draw.choice("n", SIZES)
    k = draw.choice("k", sorted({1, 1 + draw.below(min(m, n, 8)), min(m, n)}))
    matrix, rank = drawn(draw, batch, m, n, dtype)
    basis = None
    if method == "subspace" and draw.chance("basis", 0.7):
        basis = draw.randn(*batch, m, k, dtype=dtype) * draw.choice("basis size", (1.0, 1e-20, 1e15))
    ordinary = matrix
    matrix = draw.spoiled(matrix, 0.1)
    matrix, _ = draw.laid_out("layout", matrix)
    kept = matrix.clone()
    try:
        left, right = factorize(matrix, k, method, basis=basis, generator=draw.generator)
    except ValueError as error:
        check(not matrix.isfinite().all() and "matrix" in str(error), f"refused: {error}")
        return
    check(same(matrix, kept), "the matrix changed")
    check(left.shape == (*batch, m, k) and right.shape == (*batch, n, k), "shapes of the factors")
    check(left.dtype == right.dtype == dtype, "dtypes of the factors")
    left, right, matrix, norms, fits = (flat(t) for t in (left, right, matrix, *sizes(ordinary, basis)))
    norms, fits, sound = norms.flatten(), fits.flatten(), finite(matrix)
    check(
        (finite(left) & finite(right))[sound & fits].all(), "factors of a finite matrix are not finite"
    )
    # Squares of smaller numbers are subnormal, and those of larger ones overflow.
    compared = (
        sound
        & fits
        & (norms < 1e150)
        & ((norms > torch.finfo(dtype).tiny ** 0.5 / eps(matrix)) | (norms == 0))
    )
    left, right, matrix, norms = (t[compared] for t in (left, right, matrix, norms))
    compare(matrix, left, right, method, norms, rank)
    if basis is not None:
        check_span(matrix, right, flat(basis)[compared])


def sizes(matrix, basis):
    """Norms of the matrices, and whether no sum over their rows or columns overflows, (*batch, 1, 1)."""
    entries = matrix.abs().double().amax((-2, -1), keepdim=True)
    # Scaled: squares of the smallest numbers are zero.
    scaled = precise(matrix) / entries.clamp_min(torch.finfo(torch.float64).tiny)
    norms = torch.linalg.matrix_norm(scaled, keepdim=True) * entries
    largest = 1.0 if basis is None else torch.linalg.matrix_norm(precise(basis), keepdim=True)
    room = torch.finfo(matrix.dtype).max / (8.0 * max(1, *matrix.shape))
    return norms, (norms < room) & (norms * largest < room)


def drawn(draw, batch, m, n, dtype):
    """A matrix, and a bound of its rank."""
    kind, rank = draw.choice("kind", KINDS), min(m, n)
    matrix = draw.randn(*batch, m, n, dtype=dtype)
    if kind == "low rank":
        rank = 1 + draw.below(min(m, n))
        draw.said["rank"] = rank
        matrix = draw.randn(*batch, m, rank, dtype=dtype) @ draw.randn(*batch, rank, n, dtype=dtype)
    elif kind == "equal columns":
        matrix, rank = matrix[..., :1].expand_as(matrix), 1
    elif kind == "one-hot":
        matrix = torch.zeros_like(matrix)
        matrix[..., draw.below(m), draw.below(n)] = 1
        rank = 1
    elif kind == "steep":  # singular values down to 1e-12
        steps = torch.linspace(0, -12, min(m, n), dtype=torch.float64)
        u, v = (draw.haar(*batch, rows, min(m, n), dtype=dtype) for rows in (m, n))
        matrix = (u * (10**steps).to(dtype)) @ v.mH
    elif kind == "zero":
        matrix, rank = torch.zeros_like(matrix), 0
    return matrix * draw.scale("size", dtype), rank


def compare(matrix, left, right, method, norms, rank):
    """Compare factors of matrices (B, m, n) with products in float64."""
    d, x, y = precise(matrix), precise(left), precise(right)
    scale, k = norms.clamp_min(torch.finfo(matrix.dtype).tiny), x.shape[-1]
    unit, other, product = (x, y, d.mH @ x) if method == "column" else (y, x, d @ y)
    bound = ERROR * eps(matrix)
    gram = unit.mH @ unit
    sizes = gram.diagonal(dim1=-2, dim2=-1).real
    off = gram - torch.diag_embed((sizes > 0.5).to(gram.dtype))
    check(size_of(off) < bound * k, lambda: f"columns are off orthonormal by {size_of(off):.2g}")
    error = torch.linalg.matrix_norm(product - other) / scale
    check((error < bound).all(), lambda: f"a factor is no product with the other: {error.max():.2g}")
    rest = torch.linalg.matrix_norm(d - x @ y.mH) / scale
    if method == "svd":
        tail = torch.linalg.svdvals(d / scale[:, None, None])[:, k:].square().sum(-1).sqrt()
        check((rest <= tail + bound).all(), "there is a better approximation than that of svd")
    elif rank <= k - 2 or k == min(matrix.shape[-2:]):
        exact = method != "column" or k == matrix.shape[-1] or rank == 0
        check(
            (rest < 1e3 * bound).all() or not exact, lambda: f"of rank {rank}, off by {rest.max():.2g}"
        )


def check_span(matrix, right, basis):
    """Check that the columns of Y span those of D^H R."""
    wanted, y = precise(matrix).mH @ precise(basis), precise(right)
    rest = torch.linalg.matrix_norm(wanted - y @ (y.mH @ wanted))
    sizes = torch.linalg.matrix_norm(precise(matrix)) * torch.linalg.matrix_norm(precise(basis))
    bound = ERROR * eps(matrix) * sizes
    check((rest <= bound).all(), lambda: f"right does not span D^H R: {(rest / sizes).max():.2g}")


def size_of(tensor):
    return tensor.abs().max().item() if tensor.numel() else 0.0
