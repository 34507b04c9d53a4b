"""Launches: tables of addresses, grids, configurations, and factors of any rank.

Tensors arrive as the ops have them: matrices (B, m, n) and factors (B, n, k), real or complex, matrices
contiguous.  ``active`` (A,) lists the matrices that take part; factors then have A in place of B.  The
kernels see complex numbers as pairs and factors column by column, (B, k, n).
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import triton.language as tl
from torch import Tensor

from projunn_kernels.configs.choice import config_for
from projunn_kernels.configs.problem import Config, Problem, device_of

TRITON_DTYPES = {
    torch.float32: tl.float32,
    torch.complex64: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}
PRECISION = torch.finfo(torch.float32).eps

_MAX_TABLES = 4096
_tables: OrderedDict[tuple[object, ...], Tensor] = OrderedDict()


def address_table(tensors: Sequence[Tensor]) -> Tensor:
    """Their addresses as an int64 tensor on their device.

    Tables are kept: tensors that stay where they are, as parameters do, cost one copy from the host in
    all.  A table made while a CUDA graph is captured is filled by launches of the graph and not kept: a
    replay would copy from host memory that is long gone.
    """
    device = tensors[0].device
    key = (device, *(t.data_ptr() for t in tensors))
    table = _tables.get(key)
    if table is None and _capturing(device):
        table = torch.empty(len(tensors), dtype=torch.int64, device=device)
        for entry, tensor in zip(table.unbind(), tensors, strict=True):
            entry.fill_(tensor.data_ptr())
    elif table is None:
        host = torch.tensor(key[1:], dtype=torch.int64)
        table = host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)
        _tables[key] = table
        while len(_tables) > _MAX_TABLES:
            _tables.popitem(last=False)
    else:
        _tables.move_to_end(key)
    return table


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def options(warps: int) -> dict[str, int]:
    """Options of a launch: warps, and all the registers that a thread of so many warps can have.

    Where no maximum is given, ptxas aims at an occupancy and spills a few bytes to reach it.
    """
    limit = {} if torch.version.hip else {"maxnreg": min(255, 2048 // warps)}
    return {"num_warps": warps} | limit


def problem_of(operation: str, matrix: Tensor, k: int, count: int) -> Problem:
    return Problem(operation, matrix.is_complex(), k, matrix.shape[-2], matrix.shape[-1], count)


def chosen(operation: str, matrix: Tensor, k: int, count: int, given: Config | None) -> Config:
    """The configuration ``given`` (by the autotuner), or the one in force."""
    if given is not None:
        return given
    return config_for(problem_of(operation, matrix, k, count), device_of(matrix.device))[0]


def floats(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def as_columns(factor: Tensor) -> Tensor:
    """(B, n, k) as contiguous (B, k, n)."""
    return factor.mT.contiguous().resolve_conj()


def active_list(stand_in: Tensor, active: Tensor | None) -> Tensor:
    """The active list, or a tensor that is passed in its place and not read."""
    return floats(stand_in) if active is None else active


def active_count(active: Tensor | None, matrix: Tensor) -> int:
    return matrix.shape[0] if active is None else active.shape[0]
