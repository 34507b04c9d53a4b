"""Orthonormal rows for 8 < k <= 64, on a GPU: shifted Cholesky, with products of PyTorch.

    H = P P^H        H = (N L) (N L)^H        P <- (N L)^-1 P        as often as it takes

The rows of P (S, n) are the columns that a step has, in float64.  What has n columns is a batched GEMM
for all matrices of all parameters; what is S x S, one program for each matrix (`triangle_kernel`).
The number of launches does not depend on how many matrices there are, and nothing waits.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from projunn_kernels.configs.problem import Config, Problem, device_of
from projunn_kernels.factorization.kernels import triangle_kernel
from projunn_kernels.launching import Launch, choose, floats, options

Run = Callable[[], object]
_LEAST, _PARTS = 256, (16, 8, 4, 2)  # columns of a part of one matrix, and how many parts


class Rows(NamedTuple):
    """The calls that make rows orthonormal, and what they make.

    Attributes:
        runs: the calls, in their order.
        rows: the orthonormal rows, (A, S, n).
        gram: a place for their Gram matrices, (A, parts, S, S), which the sum of parts is.
        change: a place for matrices (A, S, S) that rows are multiplied with.
        coordinates: K with P = K rows, in the real form of the kernels; of use with ``keep`` only.
        finite: whether P was, (A,) int8.
    """

    runs: list[Run]
    rows: Tensor
    gram: Tensor
    change: Tensor
    coordinates: Tensor
    finite: Tensor


def precise(like: Tensor) -> torch.dtype:
    """The float64 or complex128 of a float32 or complex64 tensor."""
    return torch.complex128 if like.is_complex() else torch.float64


def total(partial_sums: Tensor, out: Tensor) -> Run:
    """A call that adds up (A, splits, k, n) to ``out``, (A, k, n), in float64."""
    return partial(torch.sum, partial_sums, 1, dtype=out.dtype, out=out)


def gram_of(rows: Tensor, out: Tensor) -> Run:
    """A call that makes P P^H in parts, (A, parts, S, S), of rows (A, S, n)."""
    count, size, _ = rows.shape
    parts = out.shape[1]
    if parts > 1:
        rows = rows[0].unflatten(-1, (parts, -1)).transpose(0, 1)
    return partial(torch.bmm, rows, rows.mH, out=out.view(count * parts, size, size))


def orthonormal_rows(rows: Tensor, times: int, keep: bool) -> Rows:
    """Calls that make the rows (A, S, n) orthonormal by ``times`` Cholesky factors; ``rows`` may change.

    Without ``keep`` rows that depend on those before them come out zero.
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
    scratch = scratch_for(2, count, side, rows.device)
    runs: list[Run] = []
    source, target = rows, torch.empty_like(rows)
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
            FIRST=time == 0,
            KEEP=keep,
            DROP=not keep and time > 0,
            PAIRS=rows.is_complex(),
            B=config.rows,
            num_stages=1,
            **options(config.warps),
        )
        runs += [gram_of(source, gram), made, partial(torch.bmm, change, source, out=target)]
        source, target = target, source
    return Rows(runs, source, gram, change, coordinates, finite)


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
    finite = torch.empty(count, dtype=torch.int8, device=rows.device)
    return Rows(runs, rows, change.unsqueeze(1), change, kept, finite)


def _side(length: int, config: Config) -> int:
    """The side of a matrix in whole blocks."""
    return -(-length // config.rows) * config.rows


def programs(count: int, device: torch.device) -> int:
    """How many programs share ``count`` matrices: as many as there are, or as run at once."""
    return min(count, 4 * device_of(device).processors)


def scratch_for(matrices: int, count: int, side: int, device: torch.device) -> Tensor:
    """Memory for some matrices of each program."""
    return torch.empty(
        programs(count, device) * matrices * side * side, dtype=torch.float64, device=device
    )
