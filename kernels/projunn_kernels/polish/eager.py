"""The polish in PyTorch."""

import torch
from torch import Tensor

from projunn_kernels.backends import on_device

NEAR = 0.5  # a Frobenius norm of E from which on the iteration could diverge


def polish_(weight: Tensor, due: Tensor | None = None) -> Tensor:
    """One Newton-Schulz step ``W <- W + W (I - W^H W)/2`` on each matrix, in place; returns ``weight``.

    The host waits for no device.  A matrix that is further than 0.5 from unitary (Frobenius norm of
    W^H W - I) stays as it is.

    Args:
        weight: W, (*batch, m, n), real or complex; wide matrices use W W^H.
        due: a 0-d mask; nothing changes where it is False.
    """
    with torch.no_grad():
        wide = weight.shape[-2] < weight.shape[-1]
        gram = weight @ weight.mH if wide else weight.mH @ weight
        error = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device) - gram
        near = torch.linalg.matrix_norm(error, keepdim=True) < NEAR
        if due is not None:
            near = near & due
        correction = error @ weight if wide else weight @ error
        return weight.add_(torch.where(near, correction, 0.0), alpha=0.5)


def polish_when_due(weight: Tensor, step: Tensor, period: int, pairs: bool) -> None:
    """`polish_` if ``step`` is a multiple of ``period``.

    If ``step`` is on a GPU, the polish is computed at every call and used only when it is due.
    """
    matrices = torch.view_as_complex(weight) if pairs else weight
    if on_device(step):
        polish_(matrices, step % period == 0)
    elif step.item() % period == 0:
        polish_(matrices)
