"""Products of a matrix with a skinny factor: ``W^H X`` and ``W X``, each one read of W.

W is (*batch, m, n) and row-major; factors X have k << n columns.  On a CPU the orientation decides the
speed.  BLAS streams a row-major W at full bandwidth for ``X^H W``, and for ``W X`` with a column-major
X, and up to ten times more slowly for the other spellings of the same products.  One column of one
matrix goes to the matrix-vector routine (docs/measured.md).  Other code leaves the choice to the two
functions `adjoint_product` and `product`; where calls of PyTorch count (`projunn_kernels.step`), it asks
`is_faster_by_rows` or knows which one is right.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from projunn_kernels.products import processor

# Up to this size a real W is still cached, and one core is faster with two columns as rows; larger
# matrices and two cores are not (docs/measured.md).
_CACHED = 1 << 20
# Where MKL is fast at short products: up to three columns are faster as rows, in float32 up to four, and
# up to eight with a W of at most so many numbers; a tiny W is not.
_FAST, _FAST_CACHED, _CACHED_BEST, _TINY = 3, 8, 1 << 18, 1 << 14
# Rows of at least so many numbers are summed in as many parts, one core each.
_FEW, _PARTS = 1 << 18, 8
# Up to this many columns a product of complex matrices in a bank is faster as a real one.
_REAL = 2


def adjoint_product(weight: Tensor, factor: Tensor) -> Tensor:
    """``W^H X``: (*batch, m, n) and (*batch, m, k) give (*batch, n, k), stored column-major."""
    if weight.ndim == 2 and factor.shape[-1] == 1:
        if _in_parts(weight):
            x = factor.reshape(_PARTS, 1, -1)
            return torch.bmm(x, weight.view(_PARTS, -1, weight.shape[1])).sum(0).mT
        return torch.mv(weight.mT, factor.squeeze(-1).conj()).conj().unsqueeze(-1)
    return (factor.mH @ weight).mH


def _in_parts(weight: Tensor) -> bool:
    """True if rows are to be summed in parts: ``mv`` of a transposed matrix uses only one core."""
    if weight.is_complex() or weight.device.type != "cpu" or weight.numel() < _FEW:
        return False
    return weight.is_contiguous() and weight.shape[0] % _PARTS == 0 and torch.get_num_threads() > 1


def _is_bank(weight: Tensor) -> bool:
    contiguous = weight.is_contiguous() and not weight.is_conj() and weight.numel() > 0
    return weight.ndim > 2 and weight.is_complex() and contiguous and weight.device.type == "cpu"


def _complex_bank_product(weight: Tensor, factor: Tensor) -> Tensor:
    """W X as one real product: a row of W, stored [re, im, re, im, ...], times two real columns.

        Re (W X)_j = W_stored [Re x, -Im x]        Im (W X)_j = W_stored [Im x, Re x]

    Complex BLAS is slow with one or two columns; this takes 0.55 and 0.8 of its time.
    """
    *batch, m, n = weight.shape
    k = factor.shape[-1]
    stored = torch.view_as_real(weight).view(-1, m, 2 * n)
    x = torch.view_as_real(factor.mT.reshape(-1, k, n).resolve_conj())
    columns = x.new_empty(x.shape[0], k, 2, n, 2)
    columns[:, :, 0, :, 0] = columns[:, :, 1, :, 1] = x[..., 0]
    columns[:, :, 1, :, 0] = x[..., 1]
    torch.neg(x[..., 1], out=columns[:, :, 0, :, 1])
    result = torch.bmm(stored, columns.view(-1, 2 * k, 2 * n).mT)
    return torch.view_as_complex(result.view(*batch, m, k, 2))


def product(weight: Tensor, factor: Tensor) -> Tensor:
    """``W X``: (*batch, m, n) and (*batch, n, k) give (*batch, m, k)."""
    k = factor.shape[-1]
    if k == 1 and weight.ndim == 2:
        return torch.mv(weight, factor.squeeze(-1)).unsqueeze(-1)
    if _is_bank(weight) and 0 < k <= _REAL:
        return _complex_bank_product(weight, factor)
    if is_faster_by_rows(weight, k):
        return product_by_rows(weight, factor)
    # a batch of matrix-vector products: BLAS wants two columns
    columns = pad(factor.mT, (0, 0, 0, 1)).mT if k == 1 else factor.mT.contiguous().mT
    return (weight @ columns)[..., :k]


def is_faster_by_rows(weight: Tensor, k: int) -> bool:
    """Whether `product_by_rows` is the faster one for k columns on this processor."""
    if not 0 < k <= _FAST_CACHED or weight.is_complex() or weight.device.type != "cpu":
        return False
    size = weight.numel()
    if processor.short_products_are_fast():
        single = weight.dtype == torch.float32
        return size > _TINY and (k <= _FAST + single or (single and size <= _CACHED_BEST))
    return k == 2 and weight.ndim == 2 and size <= _CACHED and torch.get_num_threads() == 1


def product_by_rows(weight: Tensor, factor: Tensor) -> Tensor:
    """`product` as ``(X^T W^T)^T``: BLAS calls for a bank are the faster the fewer rows they have."""
    return (factor.mT.contiguous() @ weight.mT).mT
