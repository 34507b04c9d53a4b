"""How the kernels of a retraction are tiled."""

from typing import Any

import torch
from torch import Tensor

from projunn_kernels.configs.closed_form import (
    around,
    matrix_problem,
    neighbours,
    sizes,
    squares,
    standard_matrices,
    warps_for,
)
from projunn_kernels.configs.kernel import LISTED, Case, Inputs, Kernel, Variant
from projunn_kernels.configs.problem import Config, Device, Problem, power_of_two
from projunn_kernels.constants import PROBE
from projunn_kernels.factorization.eager import orthonormalize
from projunn_kernels.factorization.tiles import (
    block_tiles,
    column_candidates,
    column_tiles,
    one_part,
    small_columns,
)
from projunn_kernels.retraction import eager, rotations
from projunn_kernels.retraction.rotations import WITH_KERNELS

_REFRESHED = ("basis", "skipped", "missed")


def _basis_case(
    problem: Problem,
    inputs: Inputs,
    *,
    retraction: str,
    scaled: bool,
    alone: bool = False,
    warm: bool = False,
) -> Case:
    """A whole retraction, whose result does not depend on the choice of the basis.

    With ``warm`` also, of the steps taken, 1 / |x| of the columns x or, at higher ranks, the projection
    on their span, in a few columns.
    """
    p, rate = problem, -1.0 if not scaled else 2.0

    def of_left(found: Tensor, taken: Tensor) -> list[Tensor]:
        """What was found of the columns of X, where the step is taken."""
        if p.k == 1:
            return [torch.where(taken, found, 0.0)]
        return list(torch.where(taken[:, None, None], found[..., :8].mH @ found, 0.0).unbind())

    def launch(weight: Tensor, left: Tensor, right: Tensor, scale: Tensor | None) -> list[Tensor]:
        from projunn_kernels.launching import Matrices, as_columns
        from projunn_kernels.products.launch import adjoint_partials
        from projunn_kernels.retraction.launch import Warm, rotation_launch, rows_launch

        where, pulled = Matrices.of(weight), adjoint_partials(weight, as_columns(left), None)
        kept = Warm.of(as_columns(left), *[weight] * 4) if warm else None
        way = retraction, rate, scale, alone, kept
        run, found = rotation_launch(where, as_columns(right), pulled, *way)
        run()
        rows_launch(where, found)()
        if kept is None or inputs.hollow:
            return [weight, found.taken.to(weight.dtype)]
        more = of_left(kept.found.float() if p.k == 1 else kept.found, found.taken > 0)
        return [weight, found.taken.to(weight.dtype), *more]

    def in_eager(weight: Tensor, left: Tensor, right: Tensor, scale: Tensor | None) -> list[Tensor]:
        moved = left if scale is None else left * (-rate * scale)
        taken = eager.retract(weight, moved, right, retraction)
        if not warm:
            return [weight, taken.to(weight.dtype)]
        if p.k == 1:
            found = 1 / torch.linalg.vector_norm(left, dim=(-2, -1))
        else:
            found = orthonormalize(left.nan_to_num(0.0, 0.0, 0.0)).mT
        return [weight, taken.to(weight.dtype), *of_left(found, taken)]

    left = inputs.normal(p.matrices, p.m, p.k, dtype=p.dtype, scale=0.3 * p.m**-0.5)
    right = inputs.normal(p.matrices, p.k, p.n, dtype=p.dtype, scale=p.n**-0.5)
    right = inputs.last_nearly_dependent(right) if p.operation == "basis" else right
    left = inputs.last_nearly_dependent(left.mT).mT.contiguous() if warm else left
    if p.matrices > 1 and not inputs.hollow:
        left[-1] *= 0.25 * p.k**-0.5  # below the `limit` of all retractions, which the others exceed
        left[1:-1] = torch.inf  # a step that is not taken
    tensors = {
        "weight": inputs.unitary(p.matrices, p.m, p.n, p.dtype),
        "left": left,
        "right": right.mT.contiguous(),
        "scale": inputs.full(0.5) if scaled else None,
    }
    return Case(tensors, launch, in_eager, changed=("weight",))


def _row_tiles(problem: Problem, device: Device) -> Config:
    """Tiles of rows, each of which reads Q and T: as many numbers as 4k rows have.

    Above rank 1 that is most of the traffic where a tile has one row: 155 µs for 4096 x 4096 at k = 4 on
    an H100, whose memory needs 40.  So tiles have up to 2k rows, if every multiprocessor gets one.
    """
    p, n, m = problem, power_of_two(problem.n), power_of_two(problem.m)
    floats, share = n * p.width, -(-p.m * max(1, p.matrices) // device.processors)
    wanted = min(2 * p.columns, 1 << share.bit_length() - 1)
    held = (4096 if p.k == 1 else 16384 if p.columns * p.width <= 4 else 8192) // floats
    if floats <= 16384 // p.columns and (p.k == 1 or p.columns <= min(4, held)):
        rows = max(1, min(m, max(4096 // floats, min(wanted, held))))
        each = 32 if p.columns * p.width <= 2 else 16  # compilers load all columns at once
        warps = 8 if rows * floats > 4096 and p.k > 1 else warps_for(rows * floats, each)
        return Config(rows, n, warps, hold=True)
    rows = 8 if floats <= 128 or wanted >= 8 else 4
    return Config(min(m, rows), max(16, min(n, 512 // (p.columns * p.width))), 4)


def _row_candidates(problem: Problem, device: Device) -> list[Config]:
    """The closed form, and tiles around that of the largest problem of the bucket.

    An entry of a table is for a bucket, and is left out unless it would be tried for that.
    """
    p = Problem.of_bucket(problem.bucket)
    first, center = _row_tiles(problem, device), _row_tiles(p, device)
    columns = (center.columns,) if center.hold else around(center.columns)
    most = 16 if center.hold and p.columns * p.width > 2 else 32
    found = neighbours(p, center, columns, tiles=1 if center.hold else 2 * p.columns, most=most)
    return [first, *(config for config in found if config != first)]


def _small_rows(problem: Problem, config: Config) -> Problem:
    """A tile of rows and a tail: as wide as they are where rows are held, else two tiles and a tail."""
    n = problem.n if config.hold else 2 * config.columns + 5
    return Problem(problem.operation, problem.pairs, problem.k, config.rows + 1, n, 3)


def _rows_case(problem: Problem, inputs: Inputs, *, listed: str, warm: bool) -> Case:
    p, chosen = problem, inputs.indices(problem.matrices, listed == "active")
    count, s = p.matrices if chosen is None else len(chosen), 2 * p.columns
    taken = inputs.full(1.0, count)
    if count > 1 and not inputs.hollow:
        taken[0] = 0  # one step is not taken

    def launch(**tensors: Any) -> list[Tensor]:
        from projunn_kernels.launching import Matrices, address_table
        from projunn_kernels.retraction.launch import Warm, rows_launch
        from projunn_kernels.retraction.many import Rotation

        changed = [tensors[name] for name in ("weight", *_REFRESHED[: 3 if warm else 0])]
        parts = [inputs.apart(t) for t in changed] if listed == "table" else []
        kept = None
        if warm:
            columns, probes = tensors["columns"], inputs.apart(tensors["probe"])
            bases, *counters = (address_table(each) for each in parts[1:])
            inverses = 1 / torch.linalg.vector_norm(columns, dim=(-2, -1)).double()
            found = inverses if p.k == 1 else columns
            kept = Warm(columns, found, bases, address_table(probes), *counters)
        weight = tensors["weight"]
        where = Matrices.of_all(parts[0]) if parts else Matrices.of(weight, tensors["active"])
        rows_launch(where, Rotation(tensors["q"], tensors["t"], tensors["taken"].char()), kept)()
        return changed if not parts or inputs.hollow else [torch.cat(each) for each in parts]

    def in_eager(*, weight: Tensor, q: Tensor, t: Tensor, taken: Tensor, **others: Any) -> list[Tensor]:
        active = others["active"]
        for slot in range(len(q)):
            index = slot if active is None else int(active[slot])
            if index >= 0 and taken[slot] > 0:
                weight[index] += (weight[index] @ q[slot].mT) @ t[slot].conj()
        if not warm:
            return [weight]
        columns, probe = others["columns"], others["probe"]
        if p.k == 1:
            columns = columns / torch.linalg.vector_norm(columns, dim=-1, keepdim=True)
        fresh = torch.where(taken[:, None, None] > 0, columns.mT + PROBE * probe, others["basis"])
        return [weight, fresh, others["skipped"] + 1 - taken, others["missed"] + (1 - taken).long()]

    tensors = {
        "weight": inputs.normal(p.matrices, p.m, p.n, dtype=p.dtype, scale=p.n**-0.5),
        "q": inputs.normal(count, s, p.n, dtype=p.dtype, scale=p.n**-0.5),
        "t": inputs.normal(count, s, p.n, dtype=p.dtype, scale=p.n**-0.5),
        "taken": taken,
        "active": chosen,
    }
    if warm:
        tensors |= {
            "columns": inputs.normal(count, p.k, p.m, dtype=p.dtype),
            "basis": inputs.normal(count, p.m, p.k, dtype=p.dtype),
            "probe": inputs.normal(count, p.m, p.k, dtype=p.dtype),
            "skipped": inputs.full(0.0, count),
            "missed": inputs.full(0, count, dtype=torch.int64),
        }
    return Case(tensors, launch, in_eager, changed=("weight", *_REFRESHED[: 3 if warm else 0]))


def _rows_allowed(problem: Problem, variant: Variant) -> bool:
    """Whole steps have the tensors of several parameters."""
    return not variant["warm"] or variant["listed"] == "table"


def _basis_allowed(problem: Problem, variant: Variant) -> bool:
    return one_part(problem, variant)


def rotations_of(problem: Problem, variant: Any) -> list[Any]:
    """The functions that make F of E."""
    from projunn_kernels.retraction.launch import device_function

    return [device_function(variant["retraction"], problem.k)]


def _small_turn(problem: Problem, config: Config) -> Problem:
    """A step in a basis of its own, or of the whole space where it is one of that: as many blocks."""
    length = max(problem.m, problem.n)
    n = 150 if 2 * problem.k < length else length
    return Problem("turn", problem.pairs, problem.k, n, n, 3)


def _functions_of_many(problem: Problem, variant: Any) -> list[Any]:
    how = rotations.named(variant["retraction"])
    names = ["terms"] if how.squared else ["terms", "many"]
    return [rotations.device_function(how.name, name) for name in names]


BASIS = Kernel(
    name="basis",
    functions=("plane_basis_kernel", "basis_kernel"),
    closed_form=column_tiles,
    candidates=column_candidates,
    case=_basis_case,
    small=small_columns,
    variants={"retraction": WITH_KERNELS, **dict.fromkeys(("scaled", "alone", "warm"), (False, True))},
    allowed=_basis_allowed,
    passed=rotations_of,
    problem=matrix_problem("basis"),
    standard=standard_matrices("basis"),
    compiled=squares("basis", 1024, 9, 16384),
    numbers=lambda problem: 3 * problem.matrices * problem.m * problem.n,  # of the whole retraction
)
TURN = Kernel(
    name="turn",
    functions=("turn_kernel", "follow_kernel", "begin_kernel", "small_product_kernel", "defect_kernel"),
    closed_form=block_tiles,
    case=_basis_case,
    small=_small_turn,
    variants={"retraction": WITH_KERNELS, "scaled": (False, True), "alone": (False, True)},
    passed=_functions_of_many,
    compiled=sizes("turn", [(1, 1024, 1024), (3, 1000, 1000)], (16, 50)),
)
TURN_ROWS = Kernel(
    name="rotate_rows",
    functions=("rotate_rows_kernel",),
    closed_form=_row_tiles,
    candidates=_row_candidates,
    case=_rows_case,
    small=_small_rows,
    variants={"listed": LISTED, "warm": (False, True)},
    allowed=_rows_allowed,
    problem=matrix_problem("rotate_rows"),
    standard=standard_matrices("rotate_rows"),
    compiled=squares("rotate_rows", 1024, 64, 9, 1000, 4096, 2048, 16384, 32768),
    numbers=lambda problem: 2 * problem.matrices * problem.m * problem.n,
)
