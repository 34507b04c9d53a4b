"""Orthonormal rows for 8 < k <= 64, on a GPU: shifted Cholesky.

    H = P P^H        H = (N L) (N L)^H        P <- (N L)^-1 P        once, or twice

The rows of P (S, n) are the columns that a step has, in float64.  H is a batched product of PyTorch for
all matrices of all parameters, (N L)^-1 one program for each (`triangle_kernel`), and what that makes of
P one for each of its tiles (`combine_kernel`).
The number of launches does not depend on how many matrices there are, and nothing waits.

Once is enough for the columns of a step: what depends on the others, to 1e-7 or so, is left short by the
shift, and counts for less.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from projunn_kernels.batches import programs
from projunn_kernels.configs.problem import Config, Problem
from projunn_kernels.factorization.kernels import combine_kernel, gather_kernel, triangle_kernel
from projunn_kernels.launching import Launch, choose, floats, options

Run = Callable[[], object]
_LEAST, _PARTS = 256, (16, 8, 4, 2)  # columns of a part of one matrix, and how many parts
_CHUNK = 256  # floats of a row that a program adds up


class Rows(NamedTuple):
    """The calls that make rows orthonormal, and what they make.

    Attributes:
        runs: the calls, in their order.
        rows: the orthonormal rows in float64, (A, S, n), with ``keep``.
        gram: a place for their Gram matrices, (A, parts, S, S), which the sum of parts is.
        change: a place for matrices (A, S, S) that rows are multiplied with.
        coordinates: K with P = K rows, in the real form of the kernels, with ``keep``.
        finite: whether P was, (A,) int8, with ``keep``.
        config: that of the launches.
    """

    runs: list[Run]
    rows: Tensor
    gram: Tensor
    change: Tensor
    coordinates: Tensor
    finite: Tensor
    config: Config


def precise(like: Tensor) -> torch.dtype:
    """The float64 or complex128 of a float32 or complex64 tensor."""
    return torch.complex128 if like.is_complex() else torch.float64


def gathered(partial_sums: Tensor, factor: Tensor | None = None) -> tuple[Launch, Tensor]:
    """A launch that adds up (A, splits, k, n) in float64, and its result (A, k, n).

    With ``factor``, (A, k, n), the rows of that come before those of the sums, (A, 2k, n).
    """
    count, splits, k, n = partial_sums.shape
    rows, width = (k if factor is None else 2 * k), (2 if partial_sums.is_complex() else 1)
    columns = partial_sums.new_empty(count, rows, n, dtype=precise(partial_sums))
    made = Launch(
        gather_kernel,
        (-(-n * width // _CHUNK), rows, count),
        factor=floats(partial_sums if factor is None else factor),
        partial=floats(partial_sums),
        columns=floats(columns),
        n=n * width,
        k=k,
        splits=splits,
        rows=rows,
        BOTH=factor is not None,
        BN=_CHUNK,
        **options(2),
    )
    return made, columns


def combined(
    change: Tensor,
    source: Tensor,
    rows: Tensor | None,
    kept: Tensor | None,
    config: Config,
    *,
    lower: bool,
) -> Launch:
    """A launch that makes C P, (A, S, n), of C and P in float64: float32 ``rows``, ``kept``, or both."""
    (count, size, n), pairs = source.shape, source.is_complex()
    grid = -(-n // config.rows), -(-size * (2 if pairs else 1) // config.rows), count
    return Launch(
        combine_kernel,
        grid,
        change=floats(change),
        source=floats(source),
        rows=floats(source if rows is None else rows),
        precise_rows=floats(source if kept is None else kept),
        size=size,
        n=n,
        LOWER=lower,
        KEEP=kept is not None,
        ROUND=rows is not None,
        PAIRS=pairs,
        B=config.rows,
        **options(config.warps),
    )


def gram_of(rows: Tensor, out: Tensor) -> Run:
    """A call that makes P P^H in parts, (A, parts, S, S), of rows (A, S, n)."""
    count, size, _ = rows.shape
    parts = out.shape[1]
    if parts > 1:
        rows = rows[0].unflatten(-1, (parts, -1)).transpose(0, 1)
    return partial(torch.bmm, rows, rows.mH, out=out.view(count * parts, size, size))


def orthonormal_rows(rows: Tensor, result: Tensor, times: int = 1, keep: bool = False) -> Rows:
    """Calls that make the rows P (A, S, n) orthonormal, to ``result``, by ``times`` Cholesky factors.

    Of two or more, rows that depend on those before them come out zero, and ``rows`` change.  ``keep``
    is for one.
    """
    count, size, n = rows.shape
    problem = Problem("triangle", rows.is_complex(), size, n, n, count)
    config = choose(problem, rows.device, keep=keep)
    each = next((p for p in _PARTS if count == 1 and n % p == 0 and n // p >= _LEAST), 1)
    gram = rows.new_empty(count, each, size, size)
    change = rows.new_empty(count, size, size)
    finite = torch.empty(count, dtype=torch.int8, device=rows.device)
    side = _side(size * (2 if rows.is_complex() else 1), config)
    coordinates = torch.empty(count if keep else 1, side, side, dtype=torch.float64, device=rows.device)
    scratch = torch.empty(
        programs(count, rows.device) * 2 * side * side, dtype=torch.float64, device=rows.device
    )
    runs: list[Run] = []
    source, target = rows, torch.empty_like(rows) if keep or times > 1 else rows
    for time in range(times):
        made = Launch(
            triangle_kernel,
            (programs(count, rows.device),),
            gram=floats(gram),
            change=floats(change),
            coordinates=coordinates,
            finite_mask=finite,
            scratch=scratch,
            count=count,
            size=size,
            blocks=side // config.rows,
            splits=each,
            KEEP=keep,
            DROP=time > 0,
            PAIRS=rows.is_complex(),
            B=config.rows,
            num_stages=1,
            **options(config.warps),
        )
        last = time == times - 1
        kept = target if keep or not last else None
        applied = combined(change, source, result if last else None, kept, config, lower=True)
        runs += [gram_of(source, gram), made, applied]
        source, target = target, source
    return Rows(runs, source, gram, change, coordinates, finite, config)


def whole_space(rows: Tensor) -> Rows:
    """The same of S >= n rows (A, S, n), whose basis is the identity: K = P in the real form."""
    count, size, n = rows.shape
    width = 2 if rows.is_complex() else 1
    config = choose(Problem("triangle", width == 2, size, n, n, count), rows.device, keep=True)
    side = _side(n * width, config)
    kept = torch.zeros(count, size * width, side, dtype=torch.float64, device=rows.device)
    runs: list[Run] = []
    if width == 1:
        runs.append(lambda: kept[..., :n].copy_(rows))
    else:
        inside = kept[..., : 2 * n].unflatten(1, (size, 2)).unflatten(3, (n, 2))
        parts = torch.view_as_real(rows)
        runs.append(lambda: inside[:, :, 0, :, 0].copy_(parts[..., 0]))
        runs.append(lambda: inside[:, :, 1, :, 1].copy_(parts[..., 0]))
        runs.append(lambda: inside[:, :, 1, :, 0].copy_(parts[..., 1]))
        runs.append(lambda: torch.neg(parts[..., 1], out=inside[:, :, 0, :, 1]))
    change = rows.new_empty(count, n, n)
    identity = torch.eye(n, dtype=rows.dtype, device=rows.device).repeat(count, 1, 1, 1)
    finite = torch.ones(count, dtype=torch.int8, device=rows.device)
    return Rows(runs, rows, identity, change, kept, finite, config)


def _side(length: int, config: Config) -> int:
    """The side of a matrix in whole blocks."""
    return -(-length // config.rows) * config.rows
