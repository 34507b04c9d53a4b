"""Weights that are off the manifold: how they are noticed, and what is said."""

import warnings

import torch
from torch import Tensor

from projunn_kernels import private, seeded_normal

# What is said aloud.  The drift of training is a hundredth of it (docs/measured.md).
TOLERANCE = 1e-4
_PROBES = 8


class OffManifoldWarning(UserWarning):
    """A unitary weight is off the manifold: loaded so, averaged, edited, or stepped by another rule."""


@torch.no_grad()
def estimated_defect(matrix: Tensor) -> Tensor:
    """The largest ``‖W^H W - I‖_F / sqrt(n)`` of a batch, by products with 8 random columns X.

        ‖W^H (W X) - X‖_F / ‖X‖_F, whose square has the mean ‖W^H W - I‖_F^2 / n

    It costs O(m n), where the defect itself costs O(m n^2), and tells it to about a quarter of its size.
    Wide matrices use W W^H.  The columns are the same at every call, and no generator moves.

    Args:
        matrix: (*batch, m, n), real or complex.  Half precision is measured in float32.

    Returns:
        A real scalar, on the device of ``matrix``.
    """
    if matrix.dtype in (torch.float16, torch.bfloat16):
        matrix = matrix.float()
    if matrix.shape[-2] < matrix.shape[-1]:
        matrix = matrix.mH
    columns = seeded_normal(matrix, (matrix.shape[-1], _PROBES), 0)
    rest = matrix.mH @ (matrix @ columns) - columns
    ratios = torch.linalg.matrix_norm(rest) / torch.linalg.matrix_norm(columns)
    return ratios.max() if ratios.numel() else ratios.new_zeros(())


def off_manifold(matrix: Tensor) -> float | None:
    """The estimated defect of matrices if it is above `TOLERANCE`, else None.

    Returns None too where no numbers can be read: for tensors on the meta device or of a trace, and
    while a CUDA graph is captured.
    """
    if private.is_fake(matrix):
        return None
    if matrix.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    defect = float(estimated_defect(matrix))
    return None if defect <= TOLERANCE else defect


def say(found: list[tuple[str, float]], event: str) -> None:
    """Warns of weights off the manifold, by name and estimated defect; nothing if there are none."""
    if not found:
        return
    named = ", ".join(f"{name} ({defect:.2g})" for name, defect in found[:4])
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    warnings.warn(
        f"{event} these weights are not unitary (‖W^H W - I‖_F / sqrt(n), at most {TOLERANCE:g} wanted):"
        f" {named}{more}. projunn.project_(module) replaces each by the nearest unitary matrix,"
        " projunn.unconstrain(module) makes plain parameters of them",
        OffManifoldWarning,
        stacklevel=3,
    )
