"""The polish in PyTorch."""

import torch
from torch import Tensor

NEAR = 0.5  # a Frobenius norm of E from which on the iteration could diverge


def polish_(weight: Tensor) -> Tensor:
    """One step on each matrix, in place, without waiting for a device; returns ``weight``."""
    with torch.no_grad():
        wide = weight.shape[-2] < weight.shape[-1]
        gram = weight @ weight.mH if wide else weight.mH @ weight
        error = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device) - gram
        near = torch.linalg.matrix_norm(error, keepdim=True) < NEAR
        correction = error @ weight if wide else weight @ error
        return weight.add_(torch.where(near, correction, 0.0), alpha=0.5)


def polish_when_due(weight: Tensor, step: Tensor, period: int, pairs: bool) -> None:
    """`polish_` if ``step`` is a multiple of ``period``.  (Waits for a device that ``step`` is on.)"""
    if step.item() % period == 0:
        polish_(torch.view_as_complex(weight) if pairs else weight)
