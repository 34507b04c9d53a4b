"""The choice of what runs the operations: the one place where it is made and checked.

``auto`` is Triton on GPU tensors and PyTorch elsewhere, once there are Triton kernels; this version
runs PyTorch everywhere.  ``PROJUNN_BACKEND`` gives the choice a process starts with.
"""

import os
from types import TracebackType

BACKENDS = ("auto", "torch", "triton", "interpret")
_MISSING = ("triton", "interpret")
_chosen: str | None = None


class backend:
    """Choose the backend: ``projunn.backend("torch")`` from now on, or inside a ``with`` block.

    Args:
        name: ``"auto"`` (default of every process), ``"torch"``, ``"triton"`` or ``"interpret"``
            (Triton's interpreter, on CPU tensors).

    Raises:
        ValueError: ``name`` is none of these.
        RuntimeError: an explicit choice that cannot be met; ``auto`` never raises.
    """

    def __init__(self, name: str) -> None:
        global _chosen
        _check("name", name)
        self._previous, _chosen = _chosen, name

    def __enter__(self) -> "backend":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _chosen
        _chosen = self._previous


def chosen_backend() -> tuple[str, str]:
    """The backend in force and who chose it, for ``projunn info``."""
    if _chosen is not None:
        return _chosen, "projunn.backend"
    name = os.environ.get("PROJUNN_BACKEND")
    if name is None:
        return "auto", "default"
    _check("PROJUNN_BACKEND", name)
    return name, "PROJUNN_BACKEND"


def _check(argument: str, name: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{argument}: got {name!r}, wanted one of {', '.join(BACKENDS)}")
    if name in _MISSING:
        raise RuntimeError(
            f"{argument}: backend {name!r} is not available: this version has no Triton kernels"
        )
