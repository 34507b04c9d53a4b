"""Tile sizes and warps that always work, from the sizes of a problem; and what the autotuner tries.

What is chosen here spills on none of the architectures of ``make aot``.
"""

from projunn_kernels.problems import (
    SPECTRAL_OPERATIONS,
    TIME_LOOPS,
    Config,
    Device,
    Problem,
    power_of_two,
)


def closed_form(problem: Problem, device: Device) -> Config:
    """A configuration that always works: about 32 floats of the matrix a thread."""
    p, operation = problem, problem.operation
    n, m = power_of_two(p.n), power_of_two(p.m)
    if operation in TIME_LOOPS:
        return _time_loop(p)
    if operation in SPECTRAL_OPERATIONS:  # channels x images or channels; a frequency a warp
        return Config(16, 32, 8)
    if operation == "fused_step":
        if p.columns >= 4 and not p.pairs:  # twice the rows spill: float32 8 bytes, bfloat16 48
            floats, each = (1024, 4) if n <= 64 else (512, 2)
            rows = max(1, min(m, floats // n))
            return Config(rows, n, _warps(rows * n, each))
        budget = 8192 if p.k == 1 else 2048
        rows = max(1, min(m, budget // (n * p.width)))
        return Config(rows, n, _warps(rows * n * p.width, 32 if p.k == 1 else 8))
    if operation == "basis":
        if p.k == 1:
            return Config(1, min(n, 2048), 8 if n > 256 else 4)
        if not p.pairs and p.k > 2:
            return Config(1, min(n, 64), 4)
        # 2 float64 numbers a thread: 4 spill on some architectures, and so do 16 columns for 8 warps
        columns = min(n, max(16, 512 // (p.columns * p.width)))
        return Config(1, columns, 8 if columns > 16 else 4)
    if operation == "turn_rows":
        if n * p.width <= 16384 // p.columns and p.k <= 4:
            rows = max(1, min(m, 4096 // (n * p.width)))
            each = 32 if p.columns * p.width <= 2 else 16  # compilers load all columns at once
            return Config(rows, n, _warps(rows * n * p.width, each), hold=True)
        columns = max(16, min(n, 1024 // (2 * p.columns * p.width)))
        return Config(min(m, 4), columns, 4)
    if operation == "rank_update":
        columns = min(n, 128 // p.width)
        return Config(max(1, min(m, 2048 // (columns * p.width))), columns, 4)
    floats = 4096 // (p.columns * p.width)  # accumulators: columns x tile
    if operation == "product":
        columns = max(16, min(n, 512 // p.columns))
        return Config(max(1, min(m, floats // columns)), columns, 4)
    columns = min(n, 64 if p.columns <= 4 else 32)  # adjoint_product
    return Config(max(1, min(m, floats // columns)), columns, 4)


def _time_loop(problem: Problem) -> Config:
    """16 rows a program, the least that tensor cores take: the rows are what runs in parallel.

    The tiles are those that spill on no architecture with any precision (docs/measured.md).
    """
    n, pairs = max(16, power_of_two(problem.n)), problem.pairs
    if n <= 32:
        return Config(16, n, 8, hold=True)
    return Config(16, min(n, 64 if pairs else 128), 8, depth=16 if pairs else 32)


def _time_loop_candidates(problem: Problem, device: Device) -> list[Config]:
    """Tiles of 2 to 16 accumulators and 4 to 32 numbers of W a thread; more panels beyond L1 only."""
    first, width = _time_loop(problem), problem.width
    n = max(16, power_of_two(problem.n))
    stages = (1, 3) if problem.n**2 * width * 4 > 128 << 10 else (1,)
    found = [first]
    for rows, warps in ((16, 4), (16, 8), (16, 16), (32, 8), (32, 16)):
        panels = [(n, 1, True, 1)] if first.hold else []
        panels += [(c, d, False, s) for c in (32, 64, 128) if c <= n for d in (16, 32) for s in stages]
        for columns, depth, hold, stage in panels:
            config = Config(rows, columns, warps, hold, depth, stage)
            sums = rows * columns * width // (32 * warps)
            panel = columns * (columns if hold else depth) * width // (32 * warps)
            memory = (rows + columns) * depth * width * 4 * stage
            fits = 2 <= sums <= 16 and 4 <= panel <= 32 and memory <= device.shared_memory
            if fits and config not in found:
                found.append(config)
    return found


def _warps(floats: int, each: int) -> int:
    """Warps such that a thread has about ``each`` floats of the tile."""
    return min(16, max(1, power_of_two(floats // (32 * each))))


def candidates(problem: Problem, device: Device) -> list[Config]:
    """What the autotuner tries: neighbours of the closed form that fit the registers."""
    if problem.operation in TIME_LOOPS:
        return _time_loop_candidates(problem, device)
    if problem.operation in SPECTRAL_OPERATIONS:  # larger tiles spill
        sizes = [(16, 32), (16, 16)] + [(32, 16)] * (problem.operation == "spectral_gradient")
        return [Config(rows, columns, warps) for rows, columns in sizes for warps in (8, 4)]
    first = closed_form(problem, device)
    found = [first]
    for rows in (first.rows // 4, first.rows // 2, first.rows, first.rows * 2, first.rows * 4):
        for columns in _column_choices(problem, first):
            for warps in (first.warps // 2, first.warps, first.warps * 2):
                config = Config(rows, columns, warps, first.hold)
                if config not in found and _fits(config, problem):
                    found.append(config)
    return found


def _column_choices(problem: Problem, first: Config) -> tuple[int, ...]:
    if first.hold or problem.operation == "fused_step":
        return (first.columns,)  # the whole width
    return (first.columns // 2, first.columns, first.columns * 2)


def _fits(config: Config, problem: Problem) -> bool:
    """Sizes in range, and a tile of 4 to 32 floats a thread (16 where k > 1 adds columns)."""
    p = problem
    if not 1 <= config.warps <= 16 or config.rows < 1 or config.rows > power_of_two(p.m):
        return False
    if config.columns < min(16, power_of_two(p.n)) or config.columns > power_of_two(p.n):
        return False
    floats = config.rows * config.columns * p.width
    if p.operation in ("adjoint_product", "product"):
        floats *= p.columns
    if p.operation == "turn_rows" and not config.hold:
        floats *= 2 * p.columns
    if p.operation == "basis":
        floats = config.columns * p.columns * p.width
        narrow, broad = (1, 16) if p.k == 1 else (1, 4)
        return config.rows == 1 and narrow <= floats // (32 * config.warps) <= broad
    each = floats / (32 * config.warps)
    most = 32
    if p.operation == "fused_step" and p.k > 1:
        most = 8
    if config.hold and p.columns * p.width > 2:
        most = 16
    least = min(4.0, power_of_two(p.m) * power_of_two(p.n) * p.width / 128)
    return least <= each <= most


def row_splits(problem: Problem, config: Config, device: Device) -> int:
    """Programs that share the rows of an adjoint product: enough to fill the GPU four times.

    At least 64 rows each, so that the partial sums stay a few percent of the traffic.
    """
    tiles = -(-problem.n // config.columns) * max(1, problem.blocks)
    wanted = -(-4 * device.processors // tiles)
    return max(1, min(wanted, problem.m // 64))
