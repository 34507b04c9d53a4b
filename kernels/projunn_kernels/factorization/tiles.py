"""How the kernel that orthonormalizes a few columns is tiled."""

import torch
from torch import Tensor

from projunn_kernels.configs.closed_form import (
    around,
    matrix_problem,
    sizes,
    squares,
    standard_matrices,
)
from projunn_kernels.configs.kernel import Case, Inputs, Kernel, Variant
from projunn_kernels.configs.problem import Config, Device, Problem, power_of_two
from projunn_kernels.constants import MAX_PARTS
from projunn_kernels.factorization import eager

# GPUs that make products of float64 tiles by ordinary multiplications; B200 does so with Triton 3.6.
_WITHOUT_TENSOR_CORES = ("8.6", "8.9", "10.0", "12.0")


def column_tiles(problem: Problem, device: Device) -> Config:
    """A tile of all columns: what the kernels take that go through (k, n) factors chunk by chunk."""
    p, n = problem, power_of_two(problem.n)
    if p.k == 1:  # a whole column, as long as registers hold it
        longest = 8192 // p.width**2
        columns = n if n <= longest else 2048
        return Config(1, columns, 16 if columns > 2048 // p.width else 8 if n > 256 else 4)
    # One warp: what it sums up stays in registers, where more of them meet in shared memory each time.
    # Matrices of 16 x 16 numbers fill the registers of one.  Products of tiles take 16 columns or more.
    size = p.columns * (2 if p.operation == "basis" else 1)
    warps = 4 if size == 16 else 1
    columns = 32 // p.width
    if p.operation == "basis" and device.capability in _WITHOUT_TENSOR_CORES:
        if p.pairs or size == 8:
            warps = max(warps, 2)  # one spilled 12 to 56 bytes on sm_89 and sm_120
        if size == 16:
            columns = 16  # 32 real ones spilled 20 bytes with Triton 3.6
    return Config(1, max(16, min(n, columns)), warps)


def column_candidates(problem: Problem, device: Device) -> list[Config]:
    """Widths and warps around the closed form, with 1 to 16 numbers a thread (complex k > 1: 4)."""
    p, first = problem, column_tiles(problem, device)
    found, n = [first], power_of_two(problem.n)
    least = 16 if p.k > 1 else min(16, n)
    rows = p.columns * (2 if p.k > 1 and p.operation == "basis" else 1)
    most = 16 if p.k == 1 else 32
    for columns in around(first.columns):
        for warps in (first.warps // 2, first.warps, first.warps * 2):
            config = Config(1, columns, warps)
            fits = 1 <= warps <= 16 and least <= columns <= max(n, first.columns)
            if fits and config not in found and 1 <= columns * rows * p.width // (32 * warps) <= most:
                found.append(config)
    return found


def small_columns(problem: Problem, config: Config) -> Problem:
    """Two tiles and a tail of each part of a column, of a matrix as high as its passes have to see.

    Columns of rank 1 that fit a tile are in registers, and stay so: a tile that is not full.
    """
    n = (2 if problem.k == 1 else 2 * MAX_PARTS) * config.columns + 5
    if problem.k == 1 and problem.n <= config.columns:
        n = config.columns - 5 if config.columns > 8 else config.columns
    return Problem(problem.operation, problem.pairs, problem.k, min(n, 131), n, 3)


def one_part(problem: Problem, variant: Variant) -> bool:
    """Columns of rank 1 have one part always."""
    return problem.k > 1 or not variant["alone"]


def _case(problem: Problem, inputs: Inputs, *, alone: bool) -> Case:
    """Compared by ``Y Y^H`` in a few columns, which is the same for every orthonormal basis."""
    p, splits = problem, 2

    def projector(columns: Tensor) -> list[Tensor]:
        """Y Y^H of each matrix, its first rows."""
        return list((columns[:, :8] @ columns.mH).unbind())

    def launch(partial: Tensor) -> list[Tensor]:
        from projunn_kernels.factorization.launch import orthonormal_launch

        run, result = orthonormal_launch(partial, alone)
        run()
        return projector(result.mT)

    def in_eager(partial: Tensor) -> list[Tensor]:
        return projector(eager.orthonormalize(partial.sum(1).mT))

    partial = inputs.normal(p.matrices, splits, p.k, p.n, dtype=p.dtype)
    return Case({"partial": inputs.last_nearly_dependent(partial)}, launch, in_eager)


def block_tiles(problem: Problem, device: Device) -> Config:
    """Blocks of 32 x 32 float64 numbers, four numbers a thread: eight spill with Triton 3.6."""
    return Config(32, 32, 8)


def _rows_case(problem: Problem, inputs: Inputs, *, keep: bool) -> Case:
    """P^H P of orthonormal rows P in a few columns or, with ``keep``, the rows that K P gives again."""
    p = problem

    def launch(rows: Tensor) -> list[Tensor]:
        from projunn_kernels.factorization.rows import gathered, orthonormal_rows

        gather, columns = gathered(rows.unsqueeze(1))
        result = torch.empty_like(rows)
        found = orthonormal_rows(columns, result, 1 if keep else 2, keep)
        gather()
        for run in found.runs:
            run()
        if not keep:
            return [one.mH @ one[:, :8] for one in result]
        k = found.coordinates
        if p.pairs:
            k = torch.complex(k[:, ::2, ::2], k[:, 1::2, ::2])
        return [k[:, : p.k, : p.k].to(p.dtype) @ result, k[:, : p.k, : p.k] @ found.rows]

    def in_eager(rows: Tensor) -> list[Tensor]:
        if keep:
            return [rows, rows]
        rows = eager.orthonormalize(rows.mT).mT
        return [one.mH @ one[:, :8] for one in rows]

    rows = inputs.last_nearly_dependent(inputs.normal(p.matrices, p.k, p.n, dtype=p.dtype))
    return Case({"rows": rows}, launch, in_eager)


ORTHONORMAL = Kernel(
    name="orthonormal",
    functions=("unit_kernel", "gram_kernel", "orthonormal_kernel"),
    closed_form=column_tiles,
    candidates=column_candidates,
    case=_case,
    small=small_columns,
    variants={"alone": (False, True)},
    allowed=one_part,
    problem=matrix_problem("orthonormal"),
    standard=standard_matrices("orthonormal"),
    compiled=squares("orthonormal", 1024, 9, 16384),
    numbers=lambda problem: 3 * problem.matrices * problem.k * problem.n,
)
TRIANGLE = Kernel(
    name="triangle",
    functions=("triangle_kernel", "gather_kernel", "combine_kernel"),
    closed_form=block_tiles,
    case=_rows_case,
    small=lambda problem, config: Problem("triangle", problem.pairs, problem.k, 150, 150, 2),
    variants={"keep": (False, True)},
    compiled=sizes("triangle", [(1, 1024, 1024), (3, 1000, 1000)], (32, 100)),
)
