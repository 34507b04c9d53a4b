"""The functions that every launch of a Triton kernel uses, and the layouts of what it passes.

Tensors arrive as the operations have them: matrices (B, m, n), contiguous, and factors (B, n, k), real
or complex.  ``active`` (A,) lists the matrices that take part; factors then have A in place of B.  The
kernels see complex numbers as interleaved real pairs, and factors column by column, (B, k, n).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from projunn_kernels import keeping, private, selfcheck
from projunn_kernels.backends import TooManyPrograms
from projunn_kernels.batches import as_matrices, within_reach
from projunn_kernels.configs import choice
from projunn_kernels.configs.choice import config_for
from projunn_kernels.configs.problem import Config, Problem, device_of
from projunn_kernels.constants import MAX_PROGRAMS
from projunn_kernels.keeping import Recent
from projunn_kernels.precision import setting_of

TRITON_DTYPES = {
    torch.float32: tl.float32,
    torch.complex64: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}
PRECISION = torch.finfo(torch.float32).eps

_tables: Recent[Tensor] = Recent(4096)
_in_graphs: dict[tuple[Any, ...], Tensor] = {}  # tables that a graph reads, for as long as one may
_stand_in: Callable[[Any], Any] | None = None


def launch(kernel: Any, grid: tuple[int, ...], /, **arguments: Any) -> None:
    """``kernel[grid](**arguments)``: the one place where a kernel is launched.

    ``arguments`` are those of the kernel, its constants in capitals, and Triton's options.

    Raises:
        TooManyPrograms: along an axis of the grid.
    """
    if max(grid[1:], default=0) > MAX_PROGRAMS:
        _three(grid)
    if _stand_in is not None:
        _stand_in(kernel)[grid](**arguments)
    else:
        _launched(kernel, grid, arguments)


def _launched(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> Any:
    """Launch a kernel; its binary, if that is known."""
    key = _binary_key(kernel, arguments)
    binary = _binaries.get(key)
    if binary is None:
        _remember(key, kernel[grid](**arguments))
        return _binaries.get(key)
    _run(binary, _three(grid), [_passed(arguments[name]) for name in kernel.arg_names])
    return binary


def _run(binary: Any, grid: tuple[int, ...], values: list[Any]) -> None:
    """Launch a binary on what `_passed` returned.  Triton's hooks, for its profilers, are not called."""
    stream = private.current_raw_stream()
    try:
        binary.run(*grid, stream, binary.function, binary.packed_metadata, None, None, None, *values)
    except TypeError:  # a Triton whose launcher takes other arguments
        binary[grid](*values)


def _passed(value: Any) -> Any:
    """An argument of a launch: of a tensor its address, if it is on a GPU."""
    if type(value) in _CONSTANTS or not isinstance(value, Tensor):
        return value
    if not value.is_cuda and torch.cuda.is_initialized():
        raise ValueError(f"got a tensor on {value.device} beside others on a GPU, wanted all on one")
    return value.data_ptr()


# Triton finds the binary of a launch anew each time, which takes the host longer than all else.  It is
# the same for the same constants and sizes, dtypes, and alignment of addresses.
_binaries: dict[tuple[Any, ...], Any] = {}


def _binary_key(kernel: Any, arguments: dict[str, Any]) -> tuple[Any, ...]:
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else -1
    parts: list[Any] = [id(kernel), device]
    for value in arguments.values():
        kind = type(value)
        if kind in _CONSTANTS:
            parts.append(value)
        elif kind is float:
            parts.append(kind)
        elif isinstance(value, Tensor):
            if value.is_cuda and value.get_device() != device:  # Triton would take its address
                raise ValueError(f"got a tensor on {value.device}, wanted all on the GPU {device}")
            parts += (value.dtype, value.data_ptr() % 16)
        else:
            parts.append(id(value))
    return tuple(parts)


_CONSTANTS = {bool, int, str}


def _remember(key: tuple[Any, ...], made: Any) -> None:
    """Keep what a launch returned, if it is a binary: the interpreter and a warm-up return none."""
    if hasattr(made, "packed_metadata") and not torch.version.hip:  # AMD: sizes of tensors matter too
        _binaries[key] = made


def _three(grid: tuple[int, ...]) -> tuple[int, ...]:
    """The grid with three axes, none of them too long."""
    if max(grid[1:], default=0) > MAX_PROGRAMS:
        raise TooManyPrograms(f"a grid of {grid} programs, {MAX_PROGRAMS} along its last axes at most")
    return (*grid, 1, 1)[:3]


class Launch:
    """A `launch` that can be made again: its grid, sizes and constants stay, tensors may be others.

    Arguments that a call does not name are those of the first call, not of the one before; or, where no
    binary is kept, those that it was made with.
    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], /, **arguments: Any) -> None:
        self.kernel, self.grid, self.arguments = kernel, _three(grid), arguments
        self._binary: Any = None
        self._places: dict[str, int] = {}
        self._values: list[Any] = []  # in the order of the kernel's parameters

    @property
    def takes_addresses(self) -> bool:
        """Whether a call may have the address of a tensor in its place: its dtype is known by now."""
        return self._binary is not None and _stand_in is None

    def __call__(self, **changed: Any) -> None:
        """Launch, with these arguments, of the same dtypes, in place of those given at first."""
        if self._binary is None or _stand_in is not None:
            self._first(self.arguments | changed)
            return
        values, places = self._values.copy(), self._places  # other threads may be here too
        for name, value in changed.items():
            values[places[name]] = value if type(value) is int else _passed(value)
        _run(self._binary, self.grid, values)

    def _first(self, arguments: dict[str, Any]) -> None:
        """Launch in the usual way, and keep the binary, once there is one."""
        kernel = self.kernel
        if _stand_in is not None:
            launch(kernel, self.grid, **arguments)
            return
        binary = _launched(kernel, self.grid, arguments)
        if binary is not None:
            self._places = {name: place for place, name in enumerate(kernel.arg_names)}
            self._values = [_passed(arguments[name]) for name in kernel.arg_names]
            self._binary = binary


class Chain:
    """Launches and calls of PyTorch, made one after the other; ``main`` may be given other arguments."""

    def __init__(
        self,
        before: Sequence[Callable[[], object]],
        main: Callable[..., object],
        after: Sequence[Callable[[], object]] = (),
    ) -> None:
        self.before, self.main, self.after = tuple(before), main, tuple(after)

    def __call__(self, **changed: Any) -> None:
        """Make them."""
        for run in self.before:
            run()
        self.main(**changed)
        for run in self.after:
            run()


@dataclass(frozen=True)
class Matrices:
    """The matrices (m, n) that a launch is for.

    Attributes:
        sample: a tensor of such matrices, (B, m, n), contiguous.
        count: how many there are.
        arguments: those of the kernel that tell where they are
            (`projunn_kernels.language.tiles.matrix_place`).
    """

    sample: Tensor
    count: int
    arguments: dict[str, Any]

    def __post_init__(self) -> None:
        within_reach(self.sample, single=True)

    @classmethod
    def of(cls, tensor: Tensor, active: Tensor | None = None) -> "Matrices":
        """All matrices of a tensor (B, m, n), or those of an active list."""
        kind = "all" if active is None else "active"
        arguments = {
            "listed": floats(tensor) if active is None else active.contiguous(),
            "matrices": 1,
            "LISTED": kind,
            "TYPE": TRITON_DTYPES[tensor.dtype],
        }
        return cls(tensor, tensor.shape[0] if active is None else active.shape[0], arguments)

    @classmethod
    def of_all(cls, tensors: Sequence[Tensor], pairs: bool = False) -> "Matrices":
        """All matrices of tensors of one shape, (*batch, m, n); complex ones as pairs if ``pairs``."""
        sample = as_matrices(torch.view_as_complex(tensors[0]) if pairs else tensors[0])
        arguments = {
            "listed": address_table(tensors),
            "matrices": sample.shape[0],
            "LISTED": "table",
            "TYPE": TRITON_DTYPES[sample.dtype],
        }
        return cls(sample, sample.shape[0] * len(tensors), arguments)

    @property
    def base(self) -> Tensor:
        """The argument for the matrices: the tensor, or the table, which is not read as one."""
        table: Tensor = self.arguments["listed"]
        return table if self.listed == "table" else floats(self.sample)

    @property
    def listed(self) -> str:
        """The variant ``listed`` of a kernel."""
        kind: str = self.arguments["LISTED"]
        return kind

    def config(self, operation: str, k: int, **variant: Any) -> Config:
        """The configuration in force for a launch on these matrices, at rank k."""
        return configured(operation, self.sample, k, self.count, **variant)


@contextmanager
def intercepted(stand_in: Callable[[Any], Any]) -> Iterator[None]:
    """Temporarily replaces every Triton kernel by ``stand_in(kernel)``: to count or time launches."""
    global _stand_in
    before, _stand_in = _stand_in, stand_in
    try:
        yield
    finally:
        _stand_in = before


def addresses_of_flat(tensors: Sequence[Tensor]) -> tuple[int, ...] | None:
    """The addresses of tensors that kernels can read as they are, or None.

    That is, contiguous ones that start where an allocation could, and hold the numbers that they show.
    """
    addresses = tuple(map(Tensor.data_ptr, tensors))
    if [at for at in addresses if at % 16] or not all(map(Tensor.is_contiguous, tensors)):
        return None
    conjugated = bool(tensors) and tensors[0].is_complex() and any(map(Tensor.is_conj, tensors))
    return None if conjugated else addresses


def address_table(tensors: Sequence[Tensor]) -> Tensor:
    """The addresses of the tensors, as an int64 tensor on their device.

    Tables are kept, so tensors that stay where they are, as parameters do, cost one copy from the host
    in all.  While a CUDA graph is captured those of all streams will do, because `torch.cuda.graph`
    captures on a stream of its own, and waits for all others first.  One that is found is kept for
    ever, because the graph reads it at every replay.  One that is made then is filled by launches of
    the graph, for each entry and at every replay, and not kept: to copy would need host memory that
    is long gone.
    """
    return table_of(tuple(map(Tensor.data_ptr, tensors)), tensors[0].device)


def table_of(
    values: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.int64
) -> Tensor:
    """`address_table` of tensors with these addresses on a device; or a table of other numbers."""
    key = (device, keeping.current_stream(device), dtype, values)
    table = _tables.found(key)
    if keeping.capturing(device):
        table = _tables.first_beside(key, 1) if table is None else table
        if table is not None:
            _in_graphs[key] = table
            return table
        table = torch.empty(len(values), dtype=dtype, device=device)
        for entry, value in zip(table.unbind(), values, strict=True):
            entry.fill_(value)
    elif table is None:
        host = torch.tensor(values, dtype=dtype, device="cpu")
        table = _tables.keep(key, keeping.sent(host, device))
    return table


def options(warps: int, programs: int = 1, overlap: bool = False) -> dict[str, int]:
    """Triton's options of a launch: the warps, and as many registers a thread as that leaves room for.

    Without a maximum, ptxas aims at an occupancy of its own choice and spills a few bytes to reach it.

    Args:
        warps: of a program.
        programs: how many of them share a multiprocessor.
        overlap: whether the launch may begin before the one before it ends; its kernel waits.
    """
    limit = {} if torch.version.hip else {"maxnreg": min(255, 2048 // (warps * programs))}
    return {"num_warps": warps} | limit | ({"launch_pdl": True} if overlap else {})


def dot_precision(dtype: torch.dtype) -> str:
    """The ``input_precision`` of a ``tl.dot`` that ``torch.set_float32_matmul_precision`` asks for.

    ``highest``, PyTorch's default, makes three TF32 products on tensor cores, with an error like
    float32's.  ``high`` and ``medium`` make one TF32 product, as PyTorch does on a GPU.  AMD's matrix
    cores multiply float32 as it is, and narrower dtypes are multiplied exactly.
    """
    if dtype != torch.float32 or torch.version.hip is not None:
        return "ieee"
    return "tf32x3" if setting_of("cuda") == "ieee" else "tf32"


def exact_dot() -> dict[str, str]:
    """The ``PRECISION`` of products that must be as accurate as float32, whatever PyTorch's setting."""
    return {"PRECISION": "ieee" if torch.version.hip is not None else "tf32x3"}


def product_setting(dtype: torch.dtype) -> str:
    """PyTorch's setting as far as `dot_precision` tells it apart: ``highest`` or ``high``."""
    return "high" if dot_precision(dtype) == "tf32" else "highest"


def configured(operation: str, matrix: Tensor, k: int, count: int, **variant: Any) -> Config:
    """The configuration in force for ``count`` matrices like ``matrix`` and rank k."""
    problem = Problem(operation, matrix.is_complex(), k, *matrix.shape[-2:], count)
    return choose(problem, matrix.device, **variant)


def choose(problem: Problem, device: torch.device, **variant: Any) -> Config:
    """The configuration in force for a problem, once the kernel of this variant has passed its check.

    Raises:
        Distrusted: it has not passed.
    """
    if not choice.settled() or selfcheck.is_checking():
        return _chosen(problem, device, variant)
    key = (problem, device, *variant.items(), choice.generation(), selfcheck.generation())
    config = _choices.found(key)
    if config is None:
        config = _chosen(problem, device, variant)
        if selfcheck.is_settled(problem, config, variant, device):
            _choices.keep(key, config)
    return config


def _chosen(problem: Problem, device: torch.device, variant: dict[str, Any]) -> Config:
    config = config_for(problem, device_of(device))[0]
    selfcheck.require(problem, config, variant, device)
    return config


_choices: Recent[Config] = Recent(1024)


def half_precision(matrix: Tensor) -> torch.dtype | None:
    """The dtype of a matrix of half precision, None for others: the variant ``gradient`` of a kernel."""
    return matrix.dtype if matrix.dtype in (torch.float16, torch.bfloat16) else None


def floats(tensor: Tensor) -> Tensor:
    """Complex numbers as interleaved pairs."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def as_columns(factor: Tensor) -> Tensor:
    """(B, n, k) as contiguous (B, k, n)."""
    return factor.mT.resolve_neg().contiguous().resolve_conj()
