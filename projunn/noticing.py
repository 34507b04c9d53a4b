"""Weights that are off the manifold: how they are noticed, and what is said."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from projunn_kernels import private, seeded_normal
from projunn_kernels.precision import exact_product

# What is said aloud.  The drift of training is a hundredth of it (docs/measured.md).
TOLERANCE = 1e-4
_PROBES = 8
NO_PATHS: Mapping[int, str] = {}


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
    rest = exact_product(matrix.mH, exact_product(matrix, columns)) - columns
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


def paths_of(groups: list[dict[str, Any]]) -> dict[int, str]:
    """The dotted names of an optimizer's parameters by ``id``, if it got ``named_parameters()``."""
    named = [group for group in groups if "param_names" in group]
    return {id(p): name for g in named for name, p in zip(g["param_names"], g["params"], strict=True)}


def say(found: list[tuple[str, float]], event: str) -> None:
    """Warns of weights off the manifold, by name and estimated defect; nothing if there are none."""
    if not found:
        return
    named = first_few([f"{name} ({defect:.2g})" for name, defect in found])
    warn(
        f"{event} these weights are not unitary (‖W^H W - I‖_F / sqrt(n), at most {TOLERANCE:g} wanted):"
        f" {named}. projunn.project_(module) replaces each by the nearest unitary matrix,"
        " projunn.unconstrain(module) makes plain parameters of them",
        OffManifoldWarning,
    )


def say_cut(names: list[str], event: str) -> None:
    """Warns of weights that were stepped and are cut through, so that no process can measure them."""
    if not names:
        return
    warn(
        f"{event} these weights cannot be measured and are taken not to be unitary any more, since each"
        f" process holds parts of their matrices: {', '.join(names)}. Wanted an optimizer of"
        " projunn.optim and weights that every process holds: projunn.distributed.replicate(model), and"
        " then fully_shard(model, ignored_params=set(projunn.unitary_parameters(model)));"
        " projunn.unconstrain(model) before it is sharded makes plain parameters of them",
        OffManifoldWarning,
    )


def first_few(names: Sequence[str]) -> str:
    """The first four names, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the line of the user's call.

    Python shows a text that it has shown for a line only once.  Two weights may have one name and one
    defect, so that no such record is kept here (``registry=None``): the filters of the user decide.
    """
    filename, line = caller()
    warnings.warn_explicit(text, category, filename, line, registry=None)


def caller() -> tuple[str, int]:
    """The file and the line of the call that led here from outside of this library and of PyTorch."""
    frame = inspect.currentframe()
    inside = ("projunn", "projunn_kernels", "torch")
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] in inside:
        frame = frame.f_back
    return ("<unknown>", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)
