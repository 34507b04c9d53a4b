"""How the products of matrices with a few columns are tiled."""

from typing import Any

from torch import Tensor

from projunn_kernels.configs.closed_form import (
    around,
    matrix_problem,
    neighbours,
    sizes,
    squares,
    standard_matrices,
)
from projunn_kernels.configs.kernel import (
    LISTED,
    LISTED_GRADIENTS,
    Case,
    Inputs,
    Kernel,
    no_complex_half,
)
from projunn_kernels.configs.problem import Config, Device, Problem, power_of_two
from projunn_kernels.constants import MAX_ROW
from projunn_kernels.products import eager

# An accumulator of a tile and a column is a float a thread; about 32 of them fit.
_ACCUMULATORS = 4096


def _adjoint_tiles(problem: Problem, device: Device) -> Config:
    p, columns = problem, min(power_of_two(problem.n), 64 if problem.columns <= 4 else 32)
    if p.k == 1 and power_of_two(p.n) * p.width <= MAX_ROW:
        columns = min(columns, 32 // p.width)  # higher tiles, fewer partial sums: all programs add them
    rows = _ACCUMULATORS // (p.columns * p.width * columns)
    return Config(max(1, min(power_of_two(p.m), rows)), columns, 4)


def _product_tiles(problem: Problem, device: Device) -> Config:
    p, columns = problem, max(16, min(power_of_two(problem.n), 512 // problem.columns))
    rows = _ACCUMULATORS // (p.columns * p.width * columns)
    return Config(max(1, min(power_of_two(p.m), rows)), columns, 4)


def _many_tiles(problem: Problem, device: Device) -> Config:
    """Tiles of the kernels for many columns: about 64 floats of the sum a thread."""
    p, floats = problem, max(16, problem.columns) * problem.width
    columns = 64 // p.width
    if p.operation == "adjoint_many":
        return Config(32 if floats < 128 else 16, columns, 8 if floats >= 128 else 4)
    columns = (32 if floats <= 128 else 16) // p.width
    return Config(64 if floats < 64 else 32, columns, 8 if floats >= 128 else 4)


def _candidates(problem: Problem, first: Config) -> list[Config]:
    return neighbours(problem, first, around(first.columns), tiles=problem.columns)


def small_product(problem: Problem, config: Config) -> Problem:
    """More than two tiles each way, with a tail; enough rows to be split."""
    m, n = max(2 * config.rows + 3, 131), 2 * config.columns + 5
    return Problem(problem.operation, problem.pairs, problem.k, m, n, 3)


def _small_many(problem: Problem, config: Config) -> Problem:
    """More turns of the loops too than the first and last ones, which are made ahead."""
    turns = (8, 2) if problem.operation == "adjoint_many" else (2, 4)  # rows are shared by two programs
    m, n = max(turns[0] * config.rows + 3, 131), turns[1] * config.columns + 5
    return Problem(problem.operation, problem.pairs, problem.k, m, n, 3)


def _matrix(problem: Problem, inputs: Inputs, dtype: object) -> Tensor:
    p = problem
    matrix_dtype = p.dtype if p.pairs or dtype is None else dtype
    return inputs.normal(p.matrices, p.m, p.n, dtype=matrix_dtype, scale=p.n**-0.5)  # type: ignore[arg-type]


def _where(inputs: Inputs, matrix: Tensor, active: Tensor | None, listed: str) -> tuple[Any, Any]:
    """The matrices as a launch gets them: those of a tensor, some of them, or tensors of their own.

    A table has their addresses only, so what comes second must be kept until they have been read.
    """
    from projunn_kernels.launching import Matrices

    if listed != "table":
        return Matrices.of(matrix, active), matrix
    parts = inputs.apart(matrix)
    return Matrices.of_all(parts), parts


def _adjoint_case(problem: Problem, inputs: Inputs, *, listed: str, gradient: object) -> Case:
    p, of_bases = problem, listed == "bases"
    chosen = inputs.indices(p.matrices, listed == "active")
    count = p.matrices if chosen is None else len(chosen)

    def launch(matrix: Tensor, columns: Tensor, active: Tensor | None) -> list[Tensor]:
        from projunn_kernels.launching import address_table
        from projunn_kernels.products.launch import adjoint_launch

        where, _kept = _where(inputs, matrix, active, "table" if of_bases else listed)
        bases = inputs.apart(columns.mT.contiguous()) if of_bases else []
        run, partial = adjoint_launch(
            where, p.k, address_table(bases) if of_bases else columns, of_bases
        )
        run()
        return [] if inputs.hollow else _named([partial.sum(1)], active)

    def in_eager(matrix: Tensor, columns: Tensor, active: Tensor | None) -> list[Tensor]:
        chosen = matrix if active is None else matrix[active.clamp_min(0)]
        return _named([eager.adjoint_product(chosen, columns.mT).mT], active)

    tensors = {
        "matrix": _matrix(p, inputs, gradient),
        "columns": inputs.normal(count, p.k, p.m, dtype=p.dtype),
        "active": chosen,
    }
    return Case(tensors, launch, in_eager)


def _product_case(problem: Problem, inputs: Inputs, *, listed: str, gradient: object) -> Case:
    p = problem
    chosen = inputs.indices(p.matrices, listed == "active")
    count = p.matrices if chosen is None else len(chosen)

    def launch(matrix: Tensor, columns: Tensor, active: Tensor | None) -> list[Tensor]:
        from projunn_kernels.products.launch import product_launch

        where, _kept = _where(inputs, matrix, active, listed)
        run, result = product_launch(where, columns)
        run()
        return [] if inputs.hollow else _named([result], active)

    def in_eager(matrix: Tensor, columns: Tensor, active: Tensor | None) -> list[Tensor]:
        chosen = matrix if active is None else matrix[active.clamp_min(0)]
        return _named([eager.product(chosen, columns.mT).mT], active)

    tensors = {
        "matrix": _matrix(p, inputs, gradient),
        "columns": inputs.normal(count, p.k, p.n, dtype=p.dtype),
        "active": chosen,
    }
    return Case(tensors, launch, in_eager)


def _named(results: list[Tensor], active: Tensor | None) -> list[Tensor]:
    """The results of entries that name a matrix; those of others are never written."""
    return results if active is None else [result[active >= 0] for result in results]


ADJOINT_PRODUCT = Kernel(
    name="adjoint_product",
    functions=("adjoint_product_kernel",),
    closed_form=_adjoint_tiles,
    candidates=lambda problem, device: _candidates(problem, _adjoint_tiles(problem, device)),
    case=_adjoint_case,
    small=small_product,
    variants={**LISTED_GRADIENTS, "listed": (*LISTED, "bases")},  # of directions, X being their bases
    allowed=no_complex_half,
    problem=matrix_problem("adjoint_product"),
    standard=standard_matrices("adjoint_product"),
    compiled=squares("adjoint_product", 1024, 9, 16384),
)
PRODUCT = Kernel(
    name="product",
    functions=("product_kernel",),
    closed_form=_product_tiles,
    candidates=lambda problem, device: _candidates(problem, _product_tiles(problem, device)),
    case=_product_case,
    small=small_product,
    variants=LISTED_GRADIENTS,
    allowed=no_complex_half,
    problem=matrix_problem("product"),
    standard=standard_matrices("product"),
    compiled=squares("product", 1024, 9, 16384),
)
ADJOINT_MANY = Kernel(
    name="adjoint_many",
    functions=("adjoint_many_kernel",),
    closed_form=_many_tiles,
    case=_adjoint_case,
    small=_small_many,
    variants={**LISTED_GRADIENTS, "listed": (*LISTED, "bases")},
    allowed=no_complex_half,
    compiled=sizes("adjoint_many", [(1, 1024, 1024)], (16, 32, 64, 128))
    + sizes("adjoint_many", [(1, 200, 200)], (16,)),
)
PRODUCT_MANY = Kernel(
    name="product_many",
    functions=("product_many_kernel",),
    closed_form=_many_tiles,
    case=_product_case,
    small=_small_many,
    variants=LISTED_GRADIENTS,
    allowed=no_complex_half,
    compiled=sizes("product_many", [(1, 1024, 1024)], (16, 32, 64, 128))
    + sizes("product_many", [(1, 200, 200)], (16,)),
)
