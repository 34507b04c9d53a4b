"""TODO."""

import torch
from torch import Tensor

from projunn_kernels.launching import floats, options
from projunn_kernels.polish.eager import NEAR
from projunn_kernels.polish.kernels import correct_kernel, residual_kernel, settle_kernel


def polish(weight: Tensor, step: Tensor, period: int) -> None:
    """`projunn_kernels.polish_` of (B, m, n), in place, if the device's ``step`` is due."""
    count, m, n = weight.shape
    if weight.numel() == 0:
        return
    size = min(m, n)
    error = weight.new_empty(count, size, size)
    moved = torch.empty_like(weight)
    sums = torch.zeros(count, dtype=torch.float32, device=weight.device)
    w, e, v = floats(weight), floats(error), floats(moved)
    pairs = weight.is_complex()
    constants = {"PAIRS": pairs, "B": 32} | options(8 if pairs else 4)
    tiles, rows, columns = -(-size // 32), -(-m // 32), -(-n // 32)
    wide = m < n
    residual_kernel[(tiles, tiles, count)](w, e, sums, step, period, m, n, WIDE=wide, **constants)
    correct_kernel[(rows, columns, count)](w, e, v, step, period, m, n, WIDE=wide, **constants)
    settle_kernel[(rows, columns, count)](w, v, sums, step, period, NEAR, m, n, **constants)
