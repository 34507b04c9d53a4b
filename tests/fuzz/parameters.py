"""Unitary parameters in every layout, and hostile gradients of them."""

from math import prod

import torch

from projunn import UnitaryParameter
from tests.fuzz.checks import flat

SIZES = (1, 2, 2, 3, 4, 4, 5, 9, 20)
LAYOUTS = ("plain", "plain", "pairs", "blocks", "strided", "batch last")
GRADIENTS = (
    *("normal", "normal", "normal", "one-hot", "rank one", "zero", "tiny", "subnormal"),
    *("nan", "inf", "huge", "one huge entry", "largest", "along the weight"),
)


def drawn_parameter(draw, number):
    """A parameter of some layout, which starts Haar-distributed."""
    dtype = draw.choice(
        f"dtype {number}",
        (torch.float32, torch.float32, torch.complex64, torch.float64, torch.complex128),
    )
    layout = draw.choice(f"layout {number}", LAYOUTS)
    m = draw.choice(f"m {number}", SIZES)
    n = m if draw.chance(f"square {number}", 0.6) else draw.choice(f"n {number}", SIZES)
    batch = draw.choice(f"batch {number}", ((), (), (3,), (5,), (2, 2)))
    if layout == "blocks":
        batch = batch or (2,)
    sparse = bool(batch) and layout in ("plain", "pairs") and draw.chance(f"sparse {number}", 0.4)
    return Parameter(draw.haar(*batch, m, n, dtype=dtype), layout, sparse)


class Parameter:
    """A unitary parameter, and its gradients as matrices (B, m, n) and as it takes them."""

    def __init__(self, matrices, layout, sparse):
        self.batch, self.shape = matrices.shape[:-2], matrices.shape[-2:]
        self.dtype, self.layout, self.sparse = matrices.dtype, layout, sparse
        self.pairs = layout == "pairs" and self.dtype.is_complex
        data, self.blocks = self.laid_out(matrices), self.batch[-1] if layout == "blocks" else 1
        self.weight = UnitaryParameter(data, pairs=self.pairs, blocks=self.blocks)

    def laid_out(self, matrices):
        if self.pairs:
            return torch.view_as_real(matrices)
        if self.layout == "blocks":
            return matrices.flatten(-3, -2)
        if self.layout == "strided":
            return matrices.mT.contiguous().mT
        if self.layout == "batch last":
            order = (matrices.ndim - 2, matrices.ndim - 1, *range(matrices.ndim - 2))
            return matrices.permute(order).contiguous().permute(*range(2, matrices.ndim), 0, 1)
        return matrices

    def gradient(self, draw):
        """A gradient of some kind for each matrix, (B, m, n), and which matrices have one, (B,)."""
        count = prod(self.batch)
        gradient = draw.randn(count, *self.shape, dtype=self.dtype)
        weight = flat(self.numbers())
        kinds = [hostile(draw, gradient[i], weight[i]) for i in range(count)]
        draw.said.setdefault("gradients", []).append(" ".join(kinds))
        listed = torch.ones(count, dtype=torch.bool)
        if self.sparse:
            listed = torch.tensor([draw.below(2) == 1 for _ in range(count)])
            listed[draw.below(count)] = True
        return gradient, listed

    def numbers(self):
        data = self.weight.detach()
        data = torch.view_as_complex(data) if self.pairs else data
        return data.unflatten(-2, (self.blocks, -1)) if self.blocks > 1 else data

    def stored(self, gradient, listed):
        """The gradient as the parameter takes it: sparse, if so, over the matrices that have one."""
        matrices = gradient.view(*self.batch, *self.shape)
        if not self.sparse:
            return self.laid_out(matrices.clone())
        indices = torch.nonzero(listed.view(self.batch)).mT
        values = gradient[listed]
        values = torch.view_as_real(values) if self.pairs else values
        return torch.sparse_coo_tensor(indices, values, self.weight.shape, check_invariants=True)


def hostile(draw, matrix, weight):
    """Make a random matrix a gradient of some kind, in place; says which."""
    kind, entry = draw.unnamed(GRADIENTS), (draw.below(matrix.shape[0]), draw.below(matrix.shape[1]))
    if kind == "one-hot":
        matrix.zero_()
        matrix[entry] = 1
    elif kind == "rank one":
        matrix.copy_(torch.outer(matrix[:, 0].clone(), matrix[0].clone()))
    elif kind == "zero":
        matrix.zero_()
    elif kind == "tiny":
        matrix.mul_(1e-30)
    elif kind == "subnormal":
        matrix.mul_(1e-40)
    elif kind in ("nan", "inf"):
        matrix[entry] = float(kind)
    elif kind == "huge":
        matrix.mul_(1e19)
    elif kind == "one huge entry":
        matrix[entry] = 3e19
    elif kind == "largest":
        matrix.zero_()
        matrix[entry] = 3e38 if torch.finfo(matrix.dtype).max < 1e300 else 1e308
    elif kind == "along the weight":
        matrix.copy_(weight)
    return kind


def numbers(weight, value, shape):
    """A tensor of the state as matrices (B, m, n), if it is one of averages; else None."""
    if not isinstance(value, torch.Tensor) or value.numel() not in (prod(shape), 2 * prod(shape)):
        return None
    if value.numel() == 2 * prod(shape):
        value = torch.view_as_complex(value.contiguous())
    return value.reshape(shape) if value.shape[-2:] == shape[-2:] else None
