"""Low-rank factors of a gradient: ``D ~ X Y^H`` with X (*batch, m, k) and Y (*batch, n, k).

Every method but ``svd`` reads D twice.  ``lsi`` and ``column`` are from section 3.3 of arXiv 2203.05483.
``subspace`` starts from the factors of the last call, so that each call is one step of block power
iteration.
"""

import torch
from torch import Tensor

from projunn.arguments import check_generator, is_whole, one_of, tensor
from projunn_kernels import adjoint_product, factor, orthonormalize
from projunn_kernels.precision import in_full_precision

FACTORIZATIONS = ("lsi", "column", "subspace", "svd")


@in_full_precision
def factorize(
    matrix: Tensor,
    rank: int,
    method: str = "lsi",
    *,
    basis: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Low-rank factors ``(left, right)`` of a matrix, with k columns: ``matrix ~ left @ right.mH``.

    ==========  ================================================================================
    method      left, right
    ==========  ================================================================================
    "lsi"       Y = orth(D^H R), X = D Y, with R random (m x k)
    "subspace"  the same with R = ``basis``, or a random R if that is None.  If each call gets the
                ``left`` of the one before, the factors converge to the leading singular subspace of
                a slowly changing D.
    "column"    X = orth(C), Y = D^H X, with k columns C of D drawn without replacement with
                probability proportional to their norms
    "svd"       the best approximation (Eckart-Young): X = U_k S_k, Y = V_k
    ==========  ================================================================================

    Args:
        matrix: D, (*batch, m, n), real or complex.  float16 and bfloat16 are converted to float32.
        rank: k, from 1 to min(m, n).
        method: one of the table; orth(C) is an orthonormal basis of the columns of C.
        basis: R for "subspace", (*batch, m, k), of full column rank; its scale does not matter.
        generator: source of the random numbers, on the device of ``matrix``.

    Returns:
        left (*batch, m, k) and right (*batch, n, k), in the dtype of the (converted) matrix.  ``right``
        (for "column", ``left``) has orthonormal columns, unless the matrix has a rank below k: columns
        may then be zero.  A zero matrix gives a zero ``left`` (for "column", ``right``).  "svd", "lsi"
        and "subspace" without ``basis`` reproduce a matrix of rank k or less to rounding.  A finite
        matrix gives finite factors, unless sums over its rows or columns overflow; one that is not
        finite gives factors of which one is not, and leaves the other matrices of the batch alone.

    Raises:
        ValueError: unknown ``method``, ``rank`` out of range, a ``basis`` of the wrong shape or for
            another method, or a ``matrix`` of fewer than two axes.
        TypeError: ``matrix`` is neither real nor complex floating-point.
    """
    rank = _check(matrix, rank, method, basis)
    check_generator(generator)
    if matrix.dtype in (torch.float16, torch.bfloat16):
        matrix = matrix.float()
    if method == "svd":
        return _best(matrix, rank)
    if method == "column":
        left = orthonormalize(_sample_columns(matrix, rank, generator))
        return left, adjoint_product(matrix, left)
    if basis is None:
        shape = (*matrix.shape[:-1], rank)
        basis = torch.randn(shape, dtype=matrix.dtype, device=matrix.device, generator=generator)
    return factor(matrix, basis.to(matrix.dtype))


def _best(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """X = U_k S_k and Y = V_k; X is NaN for matrices that are not finite."""
    finite = matrix.isfinite().flatten(-2).all(-1)[..., None, None]
    matrix = torch.where(finite, matrix, 0.0)
    try:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        left, right = u[..., :rank] * s[..., None, :rank].to(u.dtype), vh[..., :rank, :].mH
        found = bool((left.isfinite().all() & right.isfinite().all()).item())
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        found = False
    if not found:  # LAPACK's, of complex matrices with dependent columns: by the eigenvectors of D^H D
        precise = matrix.to(torch.complex128 if matrix.is_complex() else torch.float64)
        size = precise.abs().amax((-2, -1), keepdim=True)
        precise = precise / size.clamp_min(torch.finfo(precise.dtype).tiny)
        vectors = torch.linalg.eigh(precise.mH @ precise).eigenvectors
        right = vectors[..., -rank:].flip(-1)
        left, right = (precise @ right * size).to(matrix.dtype), right.to(matrix.dtype)
    return torch.where(finite, left, torch.nan), right


def _sample_columns(matrix: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Draws ``count`` columns without replacement, with probabilities proportional to their norms."""
    norms = torch.linalg.vector_norm(matrix, dim=-2)
    # Exponential clocks whose rates are the norms: the columns whose clocks ring first are such a draw.
    clocks = torch.empty_like(norms).exponential_(generator=generator)
    chosen = (norms / clocks).topk(count, dim=-1).indices
    return matrix.gather(-1, chosen.unsqueeze(-2).expand(*matrix.shape[:-1], count))


def _check(matrix: Tensor, rank: int, method: str, basis: Tensor | None) -> int:
    one_of("method", method, FACTORIZATIONS)
    tensor("matrix", matrix)
    if not (matrix.is_floating_point() or matrix.is_complex()):
        raise TypeError(f"matrix: got {matrix.dtype}, wanted a real or complex floating-point dtype")
    if matrix.ndim < 2:
        raise ValueError(f"matrix: got shape {tuple(matrix.shape)}, wanted (*batch, m, n)")
    if not is_whole(rank) or not 1 <= rank <= max(1, min(matrix.shape[-2:])):
        raise ValueError(
            f"rank: got {rank!r}, wanted 1 to {min(matrix.shape[-2:])} for a matrix of shape"
            f" {tuple(matrix.shape)}"
        )
    if basis is None:
        return int(rank)
    tensor("basis", basis)
    if method != "subspace":
        raise ValueError(f'basis: only method="subspace" takes one, got method={method!r}')
    if basis.shape != (*matrix.shape[:-1], rank):
        raise ValueError(f"basis: got shape {tuple(basis.shape)}, wanted {(*matrix.shape[:-1], rank)}")
    return int(rank)
