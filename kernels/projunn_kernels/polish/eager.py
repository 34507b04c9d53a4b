"""The polish in PyTorch."""

import torch
from torch import Tensor

from projunn_kernels.backends import on_device
from projunn_kernels.precision import exact_product

NEAR = 1.0  # a Frobenius norm of E below which the whole step converges


def polish_(weight: Tensor, due: Tensor | None = None) -> Tensor:
    """One Newton-Schulz step ``W <- W + c W (I - W^H W)`` on each matrix, in place; returns ``weight``.

    c is 1/2 where the Frobenius norm of E = W^H W - I is below 1, and 1 / (1 + that) elsewhere.  The
    host waits for no device.  A matrix that is not finite stays as it is.

    Args:
        weight: W, (*batch, m, n), real or complex; wide matrices use W W^H.
        due: a mask, 0-d or (*batch); nothing changes where it is False.
    """
    with torch.no_grad():
        wide = weight.shape[-2] < weight.shape[-1]
        gram = exact_product(weight, weight.mH) if wide else exact_product(weight.mH, weight)
        error = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device) - gram
        size = torch.linalg.matrix_norm(error, keepdim=True)
        sound = size.isfinite()
        if due is not None:
            sound = sound & (due if due.ndim == 0 else due[..., None, None])
        length = torch.where(size < NEAR, 0.5, 1 / (1 + size))
        correction = exact_product(error, weight) if wide else exact_product(weight, error)
        return weight.add_(torch.where(sound, correction * length, 0.0))


def polish_near_(weight: Tensor, tolerance: float) -> bool:
    """`polish_` on a CPU, if the defect ‖E‖_F / sqrt(n) of each matrix is below ``tolerance``.

    Returns:
        Whether it was; if not, nothing has changed.
    """
    wide = weight.shape[-2] < weight.shape[-1]
    error = exact_product(weight, weight.mH) if wide else exact_product(weight.mH, weight)
    error.diagonal(dim1=-2, dim2=-1).sub_(1)
    numbers = torch.view_as_real(error).flatten(-3) if error.is_complex() else error.flatten(-2)
    size = torch.linalg.vector_norm(numbers, dim=-1)
    if size.numel() and not size.max().item() < tolerance * error.shape[-1] ** 0.5:
        return False
    weight.sub_(exact_product(error, weight) if wide else exact_product(weight, error), alpha=0.5)
    return True


def polish_when_due(
    weights: list[Tensor],
    steps: list[Tensor],
    period: int,
    pairs: bool,
    missed: list[Tensor],
    taken: Tensor | None = None,
) -> None:
    """`polish_` of matrices whose count is a multiple of ``period``, one parameter after the other.

    If the counters are on a GPU, the polish is computed at every call and used only when it is due.
    """
    for i, (weight, step) in enumerate(zip(weights, steps, strict=True)):
        matrices = torch.view_as_complex(weight) if pairs else weight
        due = (step - missed[i] if missed else step) % period == 0
        if taken is not None:
            due = due & (taken if len(weights) == 1 else taken[i]).view(matrices.shape[:-2])
        if on_device(step) or due.any():
            polish_(matrices, due)
