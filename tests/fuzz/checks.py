"""What every case checks, and the bounds."""

from math import prod

import torch

from tests.dense import precise

# Of ‖W^H W - I‖_F / sqrt(n) after a few steps from a weight that is unitary to one rounding.
DEFECT = {torch.float32: 2e-6, torch.float64: 1e-13}


class Violation(AssertionError):
    """A promise of the library is broken."""


def check(holds, what):
    """Raise `Violation` unless a condition holds."""
    if not bool(holds):
        raise Violation(what() if callable(what) else what)


def flat(matrices):
    """(*batch, m, n) as (B, m, n), whatever the layout."""
    return matrices.reshape(prod(matrices.shape[:-2]), *matrices.shape[-2:])


def bits(tensor):
    """The bytes of each matrix of (B, m, n): equal only where nothing changed, NaN included."""
    numbers = tensor.detach().resolve_conj()
    numbers = torch.view_as_real(numbers) if numbers.is_complex() else numbers
    rows = torch.empty(len(numbers), prod(numbers.shape[1:]), dtype=numbers.dtype)
    return rows.copy_(numbers.reshape(rows.shape)).view(torch.uint8)


def unchanged(before, after):
    """Which matrices of (B, m, n) have the bits that they had, as (B,)."""
    return (bits(before) == bits(after)).all(-1)


def same(before, after):
    """Whether a tensor has the bits that it had."""
    return before.shape == after.shape and bool(unchanged(before[None], after[None]).all())


def finite(tensor):
    """Which matrices of (B, m, n) are finite, as (B,)."""
    return tensor.isfinite().flatten(1).all(-1)


def defects(weight):
    """‖W^H W - I‖_F / sqrt(n) of each matrix, over its smaller side, in float64."""
    w = precise(flat(weight))
    w = w.mH if w.shape[-2] < w.shape[-1] else w
    gram = w.mH @ w
    gram.diagonal(dim1=-2, dim2=-1).sub_(1)
    return torch.linalg.matrix_norm(gram) / max(1, w.shape[-1]) ** 0.5


def check_unitary(weight, what, slack=1.0):
    """Check that every matrix is finite and unitary to `DEFECT`, times a slack."""
    check(weight.isfinite().all(), f"{what} is not finite")
    bound = slack * DEFECT[weight.dtype.to_real()]
    found = defects(weight)
    check((found < bound).all(), lambda: f"{what} has a defect of {found.max():.2g}, above {bound:.2g}")


def eps(tensor):
    return torch.finfo(tensor.dtype).eps
