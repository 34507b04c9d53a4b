"""Which backend runs the operations: the one place where that is chosen and checked.

========== =================================================================================
backend    what runs
========== =================================================================================
auto       Triton kernels on GPU tensors where triton is installed, PyTorch elsewhere
torch      PyTorch everywhere
triton     Triton kernels; a tensor that is not on a GPU raises
interpret  Triton kernels in Triton's interpreter, on CPU tensors: slow, for checking
========== =================================================================================

float64 and complex128 run in PyTorch whatever the choice.  ``PROJUNN_BACKEND`` gives the choice that a
process starts with.
"""

import importlib.util
import os
import sys
from functools import cache
from types import TracebackType

import torch
from torch import Tensor

BACKENDS = ("auto", "torch", "triton", "interpret")
_SINGLE = (torch.float32, torch.complex64, torch.float16, torch.bfloat16)
_chosen: str | None = None


class backend:
    """Chooses the backend: for the process from now on, or inside a ``with`` block.

        projunn.backend("torch")
        with projunn.backend("triton"): ...

    Args:
        name: ``"auto"`` takes Triton kernels on GPU tensors where triton is installed, and PyTorch
            elsewhere; it is the default.  ``"torch"`` takes PyTorch everywhere.  ``"triton"`` takes
            Triton kernels, and raises for a tensor that is not on a GPU.  ``"interpret"`` runs them on
            CPU tensors in Triton's interpreter, which must be asked for before anything imports triton,
            or by ``TRITON_INTERPRET=1`` when the process starts.  float64 and complex128 run in PyTorch
            whatever the choice.

    A process starts with the choice of the variable ``PROJUNN_BACKEND``, or with ``"auto"``.

    Raises:
        ValueError: ``name`` is none of these.
        RuntimeError: an explicit choice that cannot be met: triton is not installed, there is no GPU, or
            triton was imported without its interpreter.  ``auto`` never raises.
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
    return at_start() if _chosen is None else (_chosen, "projunn.backend")


@cache
def at_start() -> tuple[str, str]:
    """The backend that the process starts with, read once: it is asked for several times a step."""
    name = os.environ.get("PROJUNN_BACKEND")
    if name is None:
        return "auto", "default"
    _check("PROJUNN_BACKEND", name)
    return name, "PROJUNN_BACKEND"


def uses_triton(tensor: Tensor) -> bool:
    """True if operations on this tensor run as Triton kernels.

    Raises:
        RuntimeError: backend ``triton`` and a tensor that is not on a GPU.
    """
    name, by = chosen_backend()
    if name == "torch" or (name == "auto" and not tensor.is_cuda):
        return False
    if name == "triton" and not tensor.is_cuda:
        raise RuntimeError(f"{by}: backend 'triton' needs GPU tensors, got one on {tensor.device}")
    return tensor.dtype in _SINGLE and (name != "auto" or triton_installed())


def on_device(tensor: Tensor) -> bool:
    """True if work on this tensor must neither wait for numbers nor loop over matrices on the host.

    That holds on a GPU, and on a CPU under the backend ``interpret``, which takes the paths that a GPU
    takes.  The decompositions of ``torch.linalg`` (``qr``, ``svd``, ``eigh``, LU) do both on a GPU.
    """
    return tensor.device.type != "cpu" or chosen_backend()[0] == "interpret"


@cache
def triton_installed() -> bool:
    """True if triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """True if this process runs Triton kernels in the interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def _check(argument: str, name: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{argument}: got {name!r}, wanted one of {', '.join(BACKENDS)}")
    if name in ("auto", "torch"):
        return
    problem = _problem(name)
    if problem:
        raise RuntimeError(f"{argument}: backend {name!r} is not available: {problem}")


def _problem(name: str) -> str | None:
    if not triton_installed():
        return "triton is not installed (pip install 'projunn[triton]')"
    if name == "triton":
        if interpreting():
            return "this process runs Triton's interpreter (TRITON_INTERPRET is set)"
        return None if torch.cuda.is_available() else "there is no GPU"
    if not interpreting():
        if "triton" in sys.modules:
            return "triton was imported without its interpreter; start with TRITON_INTERPRET=1"
        os.environ["TRITON_INTERPRET"] = "1"
    return None
