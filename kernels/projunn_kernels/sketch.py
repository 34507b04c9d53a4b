"""The low-rank factors of a linear layer's gradient, from its input and its output's gradient.

    G = sum g^T conj(x)    Y = orth(G^H R) = orth(sum x^T (conj(g) R))    X = G Y = sum g^T (conj(x) Y)

x is (*batch, rows, n), g (*batch, rows, m), the basis R (*batch, m, k); G ~ X Y^H with X (*batch, m, k)
and Y (*batch, n, k), orthonormal columns.  These are the factors that `projunn_kernels.factor` takes of
G, to rounding, but G, m x n, is never formed: x and g are read twice each, 4 k rows (m + n) flops in
place of 2 rows m n.  Section 3.3 of arXiv 2203.05483 has the sketch of a given G.

On a GPU, for k up to `MAX_RANK`, the kernels are those of `factor`: four launches for each x and g, and
one for all.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from projunn_kernels.backends import opaque, operator, uses_triton
from projunn_kernels.blocks import as_blocks
from projunn_kernels.factor import MAX_RANK, orthonormalize
from projunn_kernels.products import adjoint_product, product


def sketch_reference(inputs: Tensor, grads: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """The formula for one x and g, with G formed."""
    gradient = grads.mT @ inputs.conj()
    right = torch.linalg.qr(gradient.mH @ basis)[0]
    return gradient @ right, right


def sketch(
    inputs: Sequence[Tensor], grads: Sequence[Tensor], basis: Tensor, pairs: bool = False
) -> tuple[Tensor, Tensor]:
    """X and Y of the formula above, contiguous, in the dtype of ``basis``.

    The sums go over the x of ``inputs`` and the g of ``grads``, at least one of each.  With ``pairs``,
    R, X and Y are complex numbers stored as real pairs, with a trailing axis of size 2; x and g may be.
    The g may have a lower precision than R, as under autocast: x is read in it, too.  Rows that are all
    zero, or none, give X = 0.
    """
    run = _operator if opaque(basis) else _sketch
    return run(list(inputs), list(grads), basis, pairs)


def _sketch(
    inputs: list[Tensor], grads: list[Tensor], basis: Tensor, pairs: bool
) -> tuple[Tensor, Tensor]:
    if pairs:
        basis = torch.view_as_complex(basis)
        grads, inputs = ([_numbers(t) for t in tensors] for tensors in (grads, inputs))
    inputs = [x.to(grads[0].dtype) for x in inputs]
    if _on_device(inputs, basis):
        from projunn_kernels.jit import launch_factors

        blocks = [[as_blocks(t.resolve_conj().contiguous()) for t in ts] for ts in (inputs, grads)]
        left, right = launch_factors.sketch(blocks[0], blocks[1], as_blocks(basis))
        batch = basis.shape[:-2]
        left, right = (t.reshape(*batch, *t.shape[-2:]).resolve_conj() for t in (left, right))
    else:
        right = orthonormalize(through(inputs, grads, basis))
        left = through(grads, inputs, right)
    left, right = left.contiguous(), right.contiguous()
    return (torch.view_as_real(left), torch.view_as_real(right)) if pairs else (left, right)


def _on_device(inputs: list[Tensor], basis: Tensor) -> bool:
    few = 0 < basis.shape[-1] <= MAX_RANK
    return few and uses_triton(basis) and all(x.numel() > 0 for x in inputs) and basis.numel() > 0


def through(outer: Sequence[Tensor], inner: Sequence[Tensor], columns: Tensor) -> Tensor:
    """``sum a^T (conj(b) C)`` over the a of ``outer`` and the b of ``inner``, in the dtype of C."""
    turned = columns.to(inner[0].dtype).conj()
    terms = [adjoint_product(a, product(b, turned)) for a, b in zip(outer, inner, strict=True)]
    return sum(terms[1:], terms[0]).conj().to(columns.dtype).resolve_conj()


def _numbers(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_complex() else torch.view_as_complex(tensor.contiguous())


_operator = operator("projunn::sketch", mutates_args=())(_sketch)


@_operator.register_fake
def _(inputs, grads, basis, pairs):  # type: ignore[no-untyped-def]
    n = inputs[0].shape[-1 if inputs[0].is_complex() or not pairs else -2]
    batch, rest = (basis.shape[:-3], basis.shape[-2:]) if pairs else (basis.shape[:-2], basis.shape[-1:])
    right = basis.new_empty((*batch, n, *rest))
    return torch.empty_like(basis, memory_format=torch.contiguous_format), right
