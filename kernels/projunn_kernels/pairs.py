"""Complex numbers as so many real ones: real and imaginary parts in turn, (..., 2 n).

Exporters to formats without complex numbers, and derivatives, take this arithmetic.
"""

import torch
from torch import Tensor


def real_matrix(pairs: Tensor) -> Tensor:
    """The real matrix (..., 2 m, 2 n) that does to parts what (..., m, n, 2) does to numbers."""
    real, imaginary = pairs.unbind(-1)
    rows = torch.stack([real, -imaginary], -1), torch.stack([imaginary, real], -1)
    return torch.stack(rows, -3).flatten(-2).flatten(-3, -2)


def parts(numbers: Tensor) -> Tensor:
    """The parts (..., 2 n) of real or complex numbers (..., n)."""
    if numbers.is_complex():
        return torch.view_as_real(numbers.resolve_conj()).flatten(-2)
    return torch.stack([numbers, torch.zeros_like(numbers)], -1).flatten(-2)


def complex_numbers(parts: Tensor) -> Tensor:
    """The complex numbers (..., n) that have these parts (..., 2 n)."""
    return torch.view_as_complex(parts.unflatten(-1, (-1, 2)).contiguous())
