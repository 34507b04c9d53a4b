"""How the kernels of `projunn_kernels.step.kernels.rows` are tiled, and for which steps they are."""

from collections.abc import Callable

import torch
from torch import Tensor

from projunn_kernels.configs.closed_form import matrix_problem, neighbours, sizes, warps_for
from projunn_kernels.configs.kernel import LISTED_GRADIENTS, Case, Inputs, Kernel, no_complex_half
from projunn_kernels.configs.problem import Config, Device, Problem, power_of_two
from projunn_kernels.constants import MAX_ROW, PROBE
from projunn_kernels.retraction import eager as retraction_eager
from projunn_kernels.retraction.rotations import WITH_KERNELS
from projunn_kernels.retraction.tiles import rotations_of

_HELD = 8192  # floats of the rows of a program
_RATE = 0.7


def _tiles(problem: Problem, device: Device) -> Config:
    """A program for each multiprocessor, if so few can hold all rows: each makes the columns anew."""
    p, n = problem, power_of_two(problem.n)
    floats, share = n * p.width, -(-p.m * max(1, p.matrices) // device.processors)
    rows = max(1, min(power_of_two(p.m), power_of_two(share), _HELD // floats))
    return Config(rows, n, max(warps_for(rows * floats, 32), warps_for(floats, 4)))


def _candidates(problem: Problem, device: Device) -> list[Config]:
    """The closed form, and tiles around that of the largest problem of the bucket.

    An entry of a table is for a bucket, and is left out unless it would be tried for that.
    """
    largest = Problem.of_bucket(problem.bucket)
    first, center = _tiles(problem, device), _tiles(largest, device)
    found = neighbours(largest, center, (center.columns,))
    return [first, *(config for config in found if config != first)]


def fits_rows(problem: Problem, device: Device) -> bool:
    """Whether these kernels take the step of a problem: short rows, two programs a multiprocessor.

    Otherwise the columns that all programs make cost more than the launches that make them once.
    """
    p, floats = problem, power_of_two(problem.n) * problem.width
    if p.k > 1 or floats > MAX_ROW:
        return False
    return -(-p.m // (_HELD // floats)) * p.matrices <= 2 * device.processors


def _small(problem: Problem, config: Config) -> Problem:
    """Two tiles of rows and a tail, if there are so many, of columns that do not fill the tile."""
    n = config.columns - 5 if config.columns > 8 else config.columns
    return Problem(problem.operation, problem.pairs, problem.k, min(n, 2 * config.rows + 3), n, 3)


def _product_case(
    problem: Problem, inputs: Inputs, *, listed: str, gradient: torch.dtype | None
) -> Case:
    p, splits = problem, max(2, problem.m // 128)  # about as many as there are in a step

    def launch(matrix: Tensor, partial: Tensor) -> list[Tensor]:
        from projunn_kernels.launching import Matrices
        from projunn_kernels.step.rows import unit_product_launch

        parts = inputs.apart(matrix) if listed == "table" else []
        where = Matrices.of_all(parts) if parts else Matrices.of(matrix)
        run, right, left = unit_product_launch(where, partial)
        run()
        return [right, left]

    def in_eager(matrix: Tensor, partial: Tensor) -> list[Tensor]:
        total = partial.sum(1)
        right = total / torch.linalg.vector_norm(total, dim=-1, keepdim=True)
        return [right, right @ matrix.to(right.dtype).mT]

    dtype = p.dtype if gradient is None else gradient
    tensors = {
        "matrix": inputs.normal(p.matrices, p.m, p.n, dtype=dtype, scale=p.n**-0.5),
        "partial": inputs.normal(p.matrices, splits, 1, p.n, dtype=p.dtype),
    }
    return Case(tensors, launch, in_eager)


def _rows_case(problem: Problem, inputs: Inputs, *, retraction: str, scaled: bool) -> Case:
    """Of one parameter, so that what is timed in tuning has no copies of matrices beside the launch."""
    p, rate = problem, 1.0 if scaled else _RATE

    def launch(
        scale: Tensor | None, left: Tensor, right: Tensor, probe: Tensor, **changed: Tensor
    ) -> list[Tensor]:
        from projunn_kernels.launching import Matrices, address_table
        from projunn_kernels.products.launch import adjoint_partials
        from projunn_kernels.retraction.launch import Warm
        from projunn_kernels.step.rows import plane_rows_launch

        weight, basis, *counters = changed.values()
        tables = [address_table([t]) for t in (basis, probe, *counters)]
        pulled = adjoint_partials(weight, left, None)
        where, step = Matrices.of_all([weight]), (retraction, rate, scale)
        run, taken = plane_rows_launch(where, right, pulled, Warm.of(left, *tables), *step)
        run()
        return [*changed.values(), taken]

    def in_eager(
        scale: Tensor | None, left: Tensor, right: Tensor, probe: Tensor, **changed: Tensor
    ) -> list[Tensor]:
        weight, basis, skipped, missed = changed.values()
        moved = left * (-rate if scale is None else -rate * scale)
        taken = retraction_eager.retract(weight, moved.mT, right.mT, retraction)
        fresh = left.mT / torch.linalg.vector_norm(left, dim=-1)[..., None] + PROBE * probe
        basis = torch.where(taken[:, None, None], fresh, basis)
        lost = (~taken).to(missed.dtype)
        return [weight, basis, skipped + lost.sum(), missed + lost, taken.to(torch.int8)]

    left = inputs.normal(p.matrices, 1, p.m, dtype=p.dtype, scale=0.3 * p.m**-0.5)
    if p.matrices > 1 and not inputs.hollow:
        left[-1] *= 0.25
        left[1:-1] = torch.inf  # a step that is not taken
    changed = {
        "weight": inputs.unitary(p.matrices, p.m, p.n, p.dtype),
        "basis": inputs.normal(p.matrices, p.m, 1, dtype=p.dtype),
        "skipped": inputs.full(0.0),
        "missed": inputs.full(0, p.matrices, dtype=torch.int64),
    }
    tensors = {
        "scale": inputs.full(_RATE) if scaled else None,
        "left": left,
        "right": inputs.normal(p.matrices, 1, p.n, dtype=p.dtype, scale=p.n**-0.5),
        "probe": inputs.normal(p.matrices, p.m, 1, dtype=p.dtype),
    }
    return Case(tensors | changed, launch, in_eager, changed=tuple(changed))


def _problem(name: str) -> Callable[..., Problem | None]:
    def problem(matrices: int, m: int, n: int, k: int, pairs: bool) -> Problem | None:
        made = matrix_problem(name, MAX_ROW // (2 if pairs else 1))(matrices, m, n, k, pairs)
        return made if k == 1 else None

    return problem


def _standard(name: str) -> list[Problem]:
    real = [Problem(name, False, 1, n, n, matrices) for n, matrices in ((1024, 1), (256, 20), (512, 1))]
    return [*real, Problem(name, True, 1, 512, 512, 1)]


def _compiled(name: str) -> list[Problem]:
    found = sizes(name, [(1, 512, 512), (20, 256, 256), (1, 190, 190), (3, 60, 200), (9, 9, 9)], (1,))
    return [*found, *sizes(name, [(1, 1024, 1024), (1, 1000, 1000)], (1,))[:2]]


UNIT_PRODUCT = Kernel(
    name="unit_product",
    functions=("unit_product_kernel",),
    closed_form=_tiles,
    candidates=_candidates,
    case=_product_case,
    small=_small,
    variants={**LISTED_GRADIENTS, "listed": ("all", "table")},
    allowed=no_complex_half,
    problem=_problem("unit_product"),
    standard=_standard("unit_product"),
    compiled=_compiled("unit_product"),
)
PLANE_ROWS = Kernel(
    name="plane_rows",
    functions=("plane_rows_kernel",),
    closed_form=_tiles,
    candidates=_candidates,
    case=_rows_case,
    small=_small,
    variants={"retraction": WITH_KERNELS, "scaled": (False, True)},
    passed=rotations_of,
    problem=_problem("plane_rows"),
    standard=_standard("plane_rows"),
    compiled=_compiled("plane_rows"),
    numbers=lambda problem: 2 * problem.matrices * problem.m * problem.n,
)
