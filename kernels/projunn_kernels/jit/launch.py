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

from projunn_kernels.closed_form import row_splits
from projunn_kernels.factor import MAX_RANK
from projunn_kernels.jit.fused_step import plane_step_kernel, wide_step_kernel
from projunn_kernels.jit.plane import CAYLEY, EXP, POLAR
from projunn_kernels.jit.polish import correct_kernel, residual_kernel, settle_kernel
from projunn_kernels.jit.rank_update import rank_update_kernel
from projunn_kernels.jit.step_basis import (
    basis_kernel,
    plane_basis_kernel,
    warm_basis_kernel,
)
from projunn_kernels.jit.streaming import adjoint_product_kernel, product_kernel, turn_rows_kernel
from projunn_kernels.polish import NEAR
from projunn_kernels.problems import Config, Problem, device_of, power_of_two
from projunn_kernels.tuning import config_for

RETRACTION_CODES = {"exp": EXP.value, "polar": POLAR.value, "cayley": CAYLEY.value}
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


def _list(stand_in: Tensor, active: Tensor | None) -> Tensor:
    """The active list, or a tensor that is passed in its place and not read."""
    return floats(stand_in) if active is None else active


def _number(active: Tensor | None, matrix: Tensor) -> int:
    return matrix.shape[0] if active is None else active.shape[0]


def fused_step(
    weights: Sequence[Tensor],
    directions: Sequence[Tensor],
    bases: Sequence[Tensor],
    probes: Sequence[Tensor],
    skipped: Sequence[Tensor],
    rate: float,
    rate_tensor: Tensor | None,
    retraction: str,
    active: Tensor | None,
    warm: bool,
    config: Config | None = None,
) -> None:
    """One launch for parameters of one shape: weights (B, m, n), bases (B, m, k), counters ().

    With ``active`` (A,) one parameter, and its direction is (A, m, n).
    """
    w, k = weights[0], bases[0].shape[-1]
    blocks, m, n = w.shape
    count = blocks * len(weights) if active is None else active.shape[0]
    if count == 0 or w.numel() == 0:
        return
    c = chosen("fused_step", w, k, count, config)
    panels = -(-m // c.rows)
    pairs = w.is_complex()
    width = 2 if pairs else 1
    needed = panels > 1 or k > 1
    scratch = torch.empty(count * m * k * width if needed else 1, dtype=torch.float32, device=w.device)
    lists = (weights, directions, bases, probes, skipped)
    tables = [address_table(tensors) for tensors in lists]
    constants = {
        "D_TYPE": TRITON_DTYPES[directions[0].dtype],
        "RETRACTION": RETRACTION_CODES[retraction],
        "PAIRS": pairs,
        "ACTIVE": active is not None,
        "HAS_RATE": rate_tensor is not None,
        "WARM": warm,
        "BM": c.rows,
        "BN": power_of_two(n),
        "PANELS": panels,
    } | options(c.warps)
    others = (
        _list(tables[0], active),
        scratch,
        scratch if rate_tensor is None else rate_tensor,
        rate,
        PRECISION,
        blocks,
        m,
        n,
    )
    if k == 1:
        plane_step_kernel[(count,)](*tables, *others, **constants)
    else:
        wide_step_kernel[(count,)](*tables, *others, k, K=power_of_two(k), **constants)


def adjoint_partials(
    matrix: Tensor, columns: Tensor, active: Tensor | None, config: Config | None = None
) -> Tensor:
    """``M^H X`` as (A, splits, k, n) partial sums, from X as (A, k, m), k <= MAX_RANK."""
    count, k = _number(active, matrix), columns.shape[1]
    _, m, n = matrix.shape
    problem = problem_of("adjoint_product", matrix, k, count)
    c = chosen("adjoint_product", matrix, k, count, config)
    splits = row_splits(problem, c, device_of(matrix.device))
    rows_each = -(-m // (splits * c.rows)) * c.rows
    splits = -(-m // rows_each)
    partial = columns.new_empty(count, splits, k, n)
    adjoint_product_kernel[(-(-n // c.columns), splits, count)](
        floats(matrix),
        floats(columns),
        floats(partial),
        _list(partial, active),
        m,
        n,
        k,
        rows_each,
        splits,
        PAIRS=matrix.is_complex(),
        ACTIVE=active is not None,
        BM=c.rows,
        BN=c.columns,
        K=power_of_two(k),
        **options(c.warps),
    )
    return partial


def product_columns(
    matrix: Tensor, columns: Tensor, active: Tensor | None, config: Config | None = None
) -> Tensor:
    """``M Y`` as (A, k, m), from Y as (A, k, n), k <= MAX_RANK."""
    count, k = _number(active, matrix), columns.shape[1]
    _, m, n = matrix.shape
    c = chosen("product", matrix, k, count, config)
    result = columns.new_empty(count, k, m)
    product_kernel[(-(-m // c.rows), count)](
        floats(matrix),
        floats(columns),
        floats(result),
        _list(result, active),
        m,
        n,
        k,
        PAIRS=matrix.is_complex(),
        ACTIVE=active is not None,
        BM=c.rows,
        BN=c.columns,
        K=power_of_two(k),
        **options(c.warps),
    )
    return result


def adjoint_product(matrix: Tensor, factor: Tensor, active: Tensor | None = None) -> Tensor:
    """``M^H X``, (A, n, k), for any k."""
    parts = as_columns(factor).split(MAX_RANK, 1)
    sums = [adjoint_partials(matrix, p.contiguous(), active).sum(1) for p in parts]
    return torch.cat(sums, 1).mT


def product(matrix: Tensor, factor: Tensor, active: Tensor | None = None) -> Tensor:
    """``M Y``, (A, m, k), for any k."""
    parts = as_columns(factor).split(MAX_RANK, 1)
    return torch.cat([product_columns(matrix, p.contiguous(), active) for p in parts], 1).mT


def rank_update(
    weight: Tensor,
    left: Tensor,
    right: Tensor,
    active: Tensor | None = None,
    config: Config | None = None,
) -> None:
    """``W[i] += L[i] R[i]^H``, in place, for any k: one launch."""
    count, k = _number(active, weight), left.shape[-1]
    _, m, n = weight.shape
    if count == 0 or weight.numel() == 0 or k == 0:
        return
    c = chosen("rank_update", weight, min(k, MAX_RANK), count, config)
    columns = as_columns(left)
    rank_update_kernel[(-(-m // c.rows), -(-n // c.columns), count)](
        floats(weight),
        floats(columns),
        floats(as_columns(right)),
        _list(columns, active),
        m,
        n,
        k,
        PAIRS=weight.is_complex(),
        ACTIVE=active is not None,
        BM=c.rows,
        BN=c.columns,
        K=power_of_two(k),
        **options(c.warps),
    )


def turn(
    weight: Tensor,
    left: Tensor,
    right: Tensor,
    retraction: str,
    scale: float,
    active: Tensor | None = None,
    skipped: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """Retract ``W + scale X Y^H`` in place, k <= MAX_RANK; the mask (A,) of the steps taken.

    Three launches and 3 m n numbers for m <= n; the mirror image reads W twice and updates it once.
    """
    tall = weight.shape[-2] > weight.shape[-1]
    x, y = as_columns(left), as_columns(right)
    if tall:
        own, pulled = x, product_columns(weight, y, active).unsqueeze(1)
    else:
        own, pulled = y, adjoint_partials(weight, x, active)
    count, splits, k, length = pulled.shape
    rank = power_of_two(k)
    q, t = (pulled.new_empty(count, 2 * rank, length) for _ in range(2))
    taken = torch.empty(count, dtype=torch.int8, device=weight.device)
    c = chosen("basis", weight, k, count, None)
    tensors = [floats(tensor) for tensor in (own, pulled, q, t)]
    sizes = (length, splits, scale, PRECISION) if k == 1 else (length, k, splits, scale, PRECISION)
    constants = {
        "RETRACTION": RETRACTION_CODES[retraction],
        "PAIRS": weight.is_complex(),
        "COUNT": skipped is not None,
        "BN": c.columns,
    } | options(c.warps)
    counter = taken if skipped is None else skipped
    if k == 1:
        plane_basis_kernel[(count,)](*tensors, taken, counter, *sizes, **constants)
    else:
        basis_kernel[(count,)](*tensors, taken, counter, *sizes, K=rank, **constants)
    if tall:
        rank_update(weight, t.mT, adjoint_product(weight, q.mT, active), active)
    else:
        turn_rows(weight, q, t, taken, active, config)
    return taken.bool()


def turn_rows(
    weight: Tensor,
    q: Tensor,
    t: Tensor,
    taken: Tensor,
    active: Tensor | None,
    config: Config | None = None,
) -> None:
    """``W += (W Q) T^H`` from Q and T as (A, S, n), in place where ``taken``."""
    count, s, n = q.shape
    m = weight.shape[-2]
    c = chosen("turn_rows", weight, s // 2, count, config)
    turn_rows_kernel[(-(-m // c.rows), count)](
        floats(weight),
        floats(q),
        floats(t),
        taken,
        _list(taken, active),
        m,
        n,
        PAIRS=weight.is_complex(),
        ACTIVE=active is not None,
        BM=c.rows,
        BN=c.columns,
        S=s,
        HOLD=c.hold,
        **options(c.warps),
    )


def warm_basis(left: Tensor, basis: Tensor, probe: Tensor, taken: Tensor) -> None:
    """k = 1: ``R <- X / |X| + 0.01 probe`` in place, where ``taken``; all (B, m, 1) and contiguous."""
    count, m, _ = left.shape
    warm_basis_kernel[(count,)](
        floats(left.contiguous()),
        floats(basis),
        floats(probe),
        taken.to(torch.int8),
        m,
        PAIRS=left.is_complex(),
        BN=min(2048, power_of_two(m)),
        **options(4),
    )


def polish(weight: Tensor, step: Tensor, period: int) -> None:
    """`projunn_kernels.polish_` of (B, m, n), in place, if the device's ``step`` is due."""
    count, m, n = weight.shape
    if weight.numel() == 0:
        return
    size = min(m, n)
    error = weight.new_empty(count, size, size)
    moved = torch.empty_like(weight)
    sums = torch.zeros(count, dtype=torch.float32, device=weight.device)
    w, e, v = floats(weight), floats(error), floats(moved)
    pairs = weight.is_complex()
    constants = {"PAIRS": pairs, "B": 32} | options(8 if pairs else 4)
    tiles, rows, columns = -(-size // 32), -(-m // 32), -(-n // 32)
    wide = m < n
    residual_kernel[(tiles, tiles, count)](w, e, sums, step, period, m, n, WIDE=wide, **constants)
    correct_kernel[(rows, columns, count)](w, e, v, step, period, m, n, WIDE=wide, **constants)
    settle_kernel[(rows, columns, count)](w, v, sums, step, period, NEAR, m, n, **constants)
