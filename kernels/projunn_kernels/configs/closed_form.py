"""Tile sizes and warps from the sizes of a problem: those that always work, and those to try.

Each kernel declares its own formula; `closed_form` and `candidates` look it up, and the rest of this
file is what such formulas have in common.  With the newest Triton, closed forms spill registers on no
architecture that ``make aot`` compiles for; docs/measured.md has the exceptions with the oldest.
"""

from collections.abc import Callable, Iterable

from projunn_kernels.configs.kernel import KERNELS
from projunn_kernels.configs.problem import Config, Device, Problem, power_of_two


def closed_form(problem: Problem, device: Device) -> Config:
    """The configuration that always works, from the formula of the problem's kernel."""
    return KERNELS[problem.operation].closed_form(problem, device)


def candidates(problem: Problem, device: Device) -> list[Config]:
    """The configurations that the autotuner tries for a problem, the closed form first."""
    kernel = KERNELS[problem.operation]
    return (kernel.candidates or _only_closed_form)(problem, device)


def _only_closed_form(problem: Problem, device: Device) -> list[Config]:
    return [closed_form(problem, device)]


def tuned() -> tuple[str, ...]:
    """The names of the kernels that the autotuner tunes."""
    return tuple(name for name, kernel in KERNELS.items() if kernel.candidates is not None)


def standard_problems() -> list[Problem]:
    """The problems of usual networks.  Rank 1 comes first, because a time limit may cut off the rest."""
    found = [problem for name in tuned() for problem in KERNELS[name].standard]
    return sorted(found, key=lambda problem: problem.k)


def problems_of(
    operations: Iterable[str],
    shapes: Iterable[tuple[int, int, int]],
    ranks: Iterable[int],
    kinds: Iterable[bool],
) -> list[Problem]:
    """Every combination that a kernel takes.

    Args:
        operations: names of kernels.
        shapes: (number of matrices, m, n).
        ranks: k.
        kinds: True for complex matrices, False for real ones.
    """
    shapes, kinds, names = list(shapes), list(kinds), list(operations)
    found: dict[Problem, None] = {}
    for k in ranks:
        for pairs in kinds:
            for shape in shapes:
                for name in names:
                    make = KERNELS[name].problem
                    problem = None if make is None else make(*shape, k, pairs)
                    if problem is not None:
                        found[problem] = None
    return list(found)


def warps_for(floats: int, each: int) -> int:
    """As many warps as give each thread about ``each`` of the floats of a tile."""
    return min(16, max(1, power_of_two(floats // (32 * each))))


def neighbours(
    problem: Problem, first: Config, columns: Iterable[int], tiles: int = 1, most: int = 32
) -> list[Config]:
    """Configurations around the closed form ``first`` whose tiles fit into registers.

    Args:
        columns: the widths of tiles to try.
        tiles: how many numbers are in registers for each one of a tile.
        most: the most floats that one thread may have in them.
    """
    found = [first]
    least = min(4.0, power_of_two(problem.m) * power_of_two(problem.n) * problem.width / 128)
    for rows in (first.rows // 4, first.rows // 2, first.rows, first.rows * 2, first.rows * 4):
        for width in columns:
            for warps in (first.warps // 2, first.warps, first.warps * 2):
                config = Config(rows, width, warps, first.hold)
                if config in found or not _in_range(config, problem):
                    continue
                floats = tiles * rows * width * problem.width
                if least <= floats / (32 * warps) <= most:
                    found.append(config)
    return found


def _in_range(config: Config, problem: Problem) -> bool:
    rows, columns = power_of_two(problem.m), power_of_two(problem.n)
    return (
        1 <= config.warps <= 16
        and 1 <= config.rows <= rows
        and min(16, columns) <= config.columns <= columns
    )


def around(columns: int) -> tuple[int, ...]:
    """The widths of tiles to try where a tile need not be as wide as the matrix."""
    return columns // 2, columns, columns * 2


def matrix_problem(name: str, largest_n: int | None = None) -> Callable[..., Problem | None]:
    """The ``problem`` of a kernel for matrices of any shape, or of up to ``largest_n`` columns."""

    def problem(matrices: int, m: int, n: int, k: int, pairs: bool) -> Problem | None:
        if k > min(m, n) or (largest_n is not None and not m <= n <= largest_n):
            return None
        return Problem(name, pairs, k, m, n, matrices)

    return problem


def standard_matrices(name: str) -> list[Problem]:
    """The standard problems of a kernel of a pass: single matrices and, for k > 1, a bank."""
    large, larger, bank = ((1024, 1), (4096, 1)), ((2048, 1), (8192, 1), (16384, 1)), (64, 544)
    shapes = {1: (*large, *larger), 2: (bank, *large, *larger), 4: (bank, *large), 8: (bank, *large)}
    return [
        Problem(name, pairs, k, n, n, matrices)
        for k, all_of_rank in shapes.items()
        for pairs in (False, True)
        for n, matrices in all_of_rank
    ]


def sizes(
    name: str, shapes: Iterable[tuple[int, int, int]], ranks: Iterable[int] = (1, 2, 4, 8)
) -> list[Problem]:
    """Problems of the shapes (number of matrices, m, n), real and complex, of each rank that fits."""
    shapes = list(shapes)
    return [
        Problem(name, pairs, k, m, n, matrices)
        for pairs in (False, True)
        for k in ranks
        for matrices, m, n in shapes
        if k <= min(m, n)
    ]


def squares(name: str, *lengths: int) -> list[Problem]:
    """`sizes` of square matrices, one of each size."""
    return sizes(name, [(1, n, n) for n in lengths])
