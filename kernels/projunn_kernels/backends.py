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
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from projunn_kernels import private
from projunn_kernels.triton_kernels import kernels

BACKENDS = ("auto", "torch", "triton", "interpret")
_SINGLE = (torch.float32, torch.complex64, torch.float16, torch.bfloat16)
_REMEMBERED = 64  # of the calls below; a call that becomes a ``with`` block is among the last ones

Choice = tuple[str, str]  # the backend, and who chose it


class backend:
    """Chooses the backend: for the process from now on, or inside a ``with`` block.

        projunn.backend("torch")
        with projunn.backend("triton"): ...

    A ``with`` block holds for the thread that it is in, or for the task of asyncio, and for nobody else:
    threads that start inside of it have the choice of the process.  Blocks may be nested, and one object
    may be entered again.  The backward of an operation has the backend of its forward, wherever it runs.
    A function compiled by ``torch.compile`` reads the choice in each call; its backward reads that of
    the thread that runs it, which on a GPU is one of autograd's: choose for the process there.

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
        private.break_graph("projunn.backend: wanted a choice outside of what torch.compile traces")
        _check("name", name)
        self._choice = name, "projunn.backend"
        with _changing_calls():
            _calls.append(self)
            del _calls[:-_REMEMBERED]

    def __enter__(self) -> "backend":
        with _changing_calls(), suppress(ValueError):  # it is there until it is entered first
            _calls.remove(self)
        _blocks.set((*_blocks.get(), self._choice))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        blocks = _blocks.get()
        last = max((i for i, choice in enumerate(blocks) if choice is self._choice), default=None)
        if last is not None:  # a generator may close its block elsewhere, where there is none
            _blocks.set((*blocks[:last], *blocks[last + 1 :]))


# The calls of `backend` that are no ``with`` blocks; the last one holds for the process.  From its call
# to its entry a block is among them, because a call cannot see whether it is one.
_calls: list[backend] = []
_lock = threading.Lock()
_of_process: Choice | None = None
# The blocks that this thread or task is in, the innermost one last.
_blocks: ContextVar[tuple[Choice, ...]] = ContextVar("projunn.backend", default=())


@contextmanager
def _changing_calls() -> Iterator[None]:
    global _of_process
    with _lock:
        yield
        _of_process = _calls[-1]._choice if _calls else None


def chosen_backend() -> Choice:
    """The backend in force and who chose it: `backend`, the environment, or nobody."""
    if blocks := _blocks.get():
        return blocks[-1]
    return _of_process or at_start()


def run_under(choice: Choice | None, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Calls a function under a choice that was in force before, on whatever thread; None: as it is."""
    if choice is None or chosen_backend() is choice:
        return function(*arguments, **named)
    token = _blocks.set((choice,))
    try:
        return function(*arguments, **named)
    finally:
        _blocks.reset(token)


@cache
def at_start() -> Choice:
    """The backend that the process starts with, read once: it is asked for several times a step."""
    name = os.environ.get("PROJUNN_BACKEND")
    if name is None:
        return "auto", "default"
    _check("PROJUNN_BACKEND", name)
    return name, "PROJUNN_BACKEND"


class TooManyPrograms(Exception):
    """A launch has a longer grid than GPUs take, or matrices that are too large for its kernel.

    Its operation is then PyTorch's to carry out.
    """


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
    return tensor.dtype in _SINGLE and (name != "auto" or kernels_work())


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


@cache
def kernels_work() -> bool:
    """True if triton is installed, and neither broken nor too old for the kernels; warns if it is."""
    if not triton_installed():
        return False
    try:
        kernels()
    except Exception as error:
        warnings.warn(
            "triton is installed, but the kernels cannot be imported with it, and PyTorch operations run"
            f" in their place, which are slower: {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


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
