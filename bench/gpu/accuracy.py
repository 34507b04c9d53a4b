"""Whether a result is as accurate as it has to be: by the error of PyTorch in the same precision."""

import torch
from torch import Tensor

# Error against float64, as a multiple of that of PyTorch in float32, and a floor for lucky zeros.
FACTOR, FLOOR = 8.0, 2e-6


def double(tensor: Tensor) -> Tensor:
    """On the CPU, in float64 or complex128."""
    return tensor.cpu().to(torch.complex128 if tensor.is_complex() else torch.float64)


def share(own: Tensor, plain: Tensor, exact: Tensor) -> float:
    """Error of ``own`` against ``exact``, as a multiple of what is allowed: passes up to 1.

    Allowed is `FACTOR` times the error of ``plain``, PyTorch's in float32, plus `FLOOR` times the
    largest number of ``exact``, or times 1 if that is larger.
    """

    def error(values: Tensor) -> float:
        return (double(values) - exact).abs().max().item()

    return error(own) / (FACTOR * error(plain) + FLOOR * max(1.0, exact.abs().max().item()))
