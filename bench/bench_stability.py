"""Does the weight stay unitary?  Ten thousand full-size float32 steps with drift control off.

Learn a Haar-random unitary matrix U, n = 128, from batches of 16 vectors x of norm 1, by full-size
steps, learning rate 1 on 1/2 sum_b |W x_b - U x_b|^2: every retraction, real and complex, rank 1
and 4.  The largest defect met and the final error ‖W - U‖_F / ‖U‖_F are recorded, the curves drawn.
"""

from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context

import torch

from bench.records import Results
from projunn import factorize, init, retract_, unitarity_defect

SIZE, BATCH, EVERY = 128, 16, 10
BOUND = 1e-5
DTYPES = {"real": torch.float32, "complex": torch.complex64}
COLORS = {"exp": "#0b6e99", "polar": "#d9730d", "cayley": "#448361"}
WIDTHS = {1: 1.0, 4: 2.0}

Curve = list[tuple[int, float]]


def learn(field: str, retraction: str, rank: int, steps: int) -> tuple[Curve, float]:
    """Defect at every tenth step, and the final error."""
    source = torch.Generator().manual_seed(1)
    empty = torch.empty(SIZE, SIZE, dtype=DTYPES[field])
    target, weight = (init.haar_(empty.clone(), source) for _ in range(2))
    curve: Curve = []
    for step in range(1, steps + 1):
        x = torch.randn(BATCH, SIZE, dtype=weight.dtype, generator=source)
        x = torch.nn.functional.normalize(x, dim=1)
        gradient = (x @ (weight - target).mT).mT @ x.conj()
        left, right = factorize(gradient, rank, "lsi", generator=source)
        retract_(weight, -left, right, retraction)
        if step == 1 or step % EVERY == 0:
            curve.append((step, unitarity_defect(weight).item()))
    error = torch.linalg.matrix_norm(weight - target) / torch.linalg.matrix_norm(target)
    return curve, error.item()


def draw(results: Results, curves: dict[tuple[str, str, int], Curve]) -> None:
    """``stability.png``: defect against step."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(6.5, 4.2), layout="constrained")
        axes = figure.subplots()
        for (field, retraction, rank), curve in curves.items():
            axes.plot(
                *zip(*curve, strict=True),
                linestyle="-" if field == "real" else "--",
                color=COLORS[retraction],
                linewidth=WIDTHS[rank],
                label=f"{retraction}, {field}, rank {rank}",
            )
        axes.axhline(BOUND, color="black", linestyle=":")
        axes.set(xscale="log", yscale="log", xlabel="step", ylabel="unitarity defect", xlim=1)
        axes.set_title(f"full-size float32 steps, n = {SIZE}, drift control off")
        axes.legend(fontsize=7, ncols=2, frameon=False)
        figure.savefig(results.folder / "stability.png", dpi=130)


def run(results: Results, quick: bool = False) -> None:
    """Two runs at a time, one thread each; print and record the largest defects, draw curves."""
    steps = 1000 if quick else 10_000
    cases = list(product(DTYPES, COLORS, WIDTHS))
    with ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        waiting = {case: pool.submit(learn, *case, steps) for case in cases}
        done = {case: future.result() for case, future in waiting.items()}
    rows = [
        {
            "n": SIZE,
            "dtype": str(DTYPES[field]).removeprefix("torch."),
            "retraction": retraction,
            "rank": rank,
            "steps": steps,
            "worst_defect": max(defect for _, defect in curve),
            "final_error": error,
        }
        for (field, retraction, rank), (curve, error) in done.items()
    ]
    results.report("stability", f"largest unitarity defect; wanted: under {BOUND:g}", rows)
    draw(results, {case: curve for case, (curve, _) in done.items()})
