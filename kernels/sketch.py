"""The low-rank factors of a linear layer's gradient, from its input and its output's gradient.

    G = g^T conj(x)      Y = orth(G^H R) = orth(x^T (conj(g) R))      X = G Y = g^T (conj(x) Y)

x is (*batch, rows, n), g (*batch, rows, m), the basis R (*batch, m, k); G ~ X Y^H with X (*batch, m, k)
and Y (*batch, n, k), orthonormal columns.  These are the factors that `projunn.kernels.factor` takes of
G, to rounding, but G, m x n, is never formed: x and g are read twice each, 4 k rows (m + n) flops in
place of 2 rows m n.  Section 3.3 of arXiv 2203.05483 has the sketch of a given G.
"""

import torch
from torch import Tensor

from projunn.kernels.backends import opaque
from projunn.kernels.factor import orthonormalize
from projunn.kernels.products import adjoint_product, product


def sketch_reference(inputs: Tensor, grads: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """The formula with G formed."""
    gradient = grads.mT @ inputs.conj()
    right = torch.linalg.qr(gradient.mH @ basis)[0]
    return gradient @ right, right


def sketch(inputs: Tensor, grads: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """X and Y of the formula above, contiguous, in the dtype of ``basis``.

    ``grads`` may have a lower precision, as under autocast: ``inputs`` is read in it, too.  Rows that
    are all zero, or none, give X = 0.
    """
    return (_operator if opaque(grads) else _sketch)(inputs, grads, basis)


def _sketch(inputs: Tensor, grads: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    x, r = inputs.to(grads.dtype), basis.to(grads.dtype)
    pulled = adjoint_product(x, product(grads, r.conj())).conj()
    right = orthonormalize(pulled.to(basis.dtype)).contiguous()
    left = adjoint_product(grads, product(x, right.to(x.dtype).conj())).conj()
    return left.to(basis.dtype).resolve_conj().contiguous(), right


@torch.library.custom_op("projunn::sketch", mutates_args=())
def _operator(inputs: Tensor, grads: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    return _sketch(inputs, grads, basis)


@_operator.register_fake
def _(inputs, grads, basis):  # type: ignore[no-untyped-def]
    right = basis.new_empty((*basis.shape[:-2], inputs.shape[-1], basis.shape[-1]))
    return torch.empty_like(basis, memory_format=torch.contiguous_format), right
