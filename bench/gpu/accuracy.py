"""Whether a result is as accurate as it has to be: by the error of PyTorch in the same precision."""

import torch
from torch import Tensor

from projunn_kernels import selfcheck

FLOOR = 2e-6  # error against float64 that is allowed where that of PyTorch in float32 is zero by luck


def double(tensor: Tensor) -> Tensor:
    """On the CPU, in float64 or complex128."""
    return tensor.cpu().to(torch.complex128 if tensor.is_complex() else torch.float64)


def share(own: Tensor, plain: Tensor, exact: Tensor) -> float:
    """Error of ``own`` against ``exact``, as a multiple of what is allowed: passes up to 1.

    Allowed is the multiple that kernels' own checks allow of the error of ``plain``, PyTorch's in
    float32, plus `FLOOR` times the largest number of ``exact``, or times 1 if that is larger.
    """
    return selfcheck.error_share(own, double(plain), exact, FLOOR)
