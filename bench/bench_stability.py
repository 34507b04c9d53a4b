"""Does the weight stay unitary?  Ten thousand full-size steps in float32 with drift control off.

Learn a Haar-random unitary matrix, n = 128, from batches of 16 normalised vectors by steps of learning
rate 1 (half the squared error summed over the batch); every retraction, real and complex, rank 1 and 4.
"""

from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure

from bench.records import RESULTS, record, show
from projunn import factorize, init, retract_, unitarity_defect

SIZE, BATCH, EVERY = 128, 16, 100
BOUND = 1e-5


def defects(retraction: str, dtype: torch.dtype, rank: int, steps: int) -> list[float]:
    """The defect after every hundredth step."""
    source = torch.Generator().manual_seed(1)
    target, weight = (init.haar_(torch.empty(SIZE, SIZE, dtype=dtype), source) for _ in range(2))
    curve = []
    for step in range(1, steps + 1):
        x = torch.randn(BATCH, SIZE, dtype=dtype, generator=source)
        x /= torch.linalg.vector_norm(x, dim=1, keepdim=True)
        gradient = (x @ (weight - target).mT).mT @ x.conj()
        left, right = factorize(gradient, rank, "lsi", generator=source)
        retract_(weight, -left, right, retraction)
        if step % EVERY == 0:
            curve.append(unitarity_defect(weight).item())
    return curve


def run(quick: bool = False) -> None:
    """Print and record the largest defects; draw the curves."""
    steps = 1000 if quick else 10_000
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        for dtype, line in ((torch.float32, "-"), (torch.complex64, "--")):
            for retraction, color in (("exp", "#0b6e99"), ("polar", "#d9730d"), ("cayley", "#448361")):
                for rank, width in ((1, 1.0), (4, 2.0)):
                    curve = defects(retraction, dtype, rank, steps)
                    name = str(dtype).removeprefix("torch.")
                    row = {"n": SIZE, "dtype": name, "retraction": retraction, "rank": rank}
                    rows.append({**row, "steps": steps, "worst_defect": max(curve)})
                    label = f"{retraction}, {'complex' if dtype.is_complex else 'real'}, rank {rank}"
                    x = range(EVERY, steps + 1, EVERY)
                    axes.plot(x, curve, line, color=color, linewidth=width, label=label)
        axes.axhline(BOUND, color="black", linestyle=":")
        axes.set(xscale="log", yscale="log", xlabel="step", ylabel="unitarity defect")
        axes.set_title(f"full-size float32 steps, n = {SIZE}, drift control off")
        axes.legend(fontsize=7, ncols=2, frameon=False)
        if not quick:
            RESULTS.mkdir(exist_ok=True)
            figure.savefig(RESULTS / "stability.png", dpi=130)
    torch.set_num_threads(threads)
    show(f"largest unitarity defect (bound {BOUND:g})", rows)
    record("stability", rows)
