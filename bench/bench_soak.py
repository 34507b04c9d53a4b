"""Soak: a million hostile steps of every rule and size, past 2^24 of them; the largest defects.

A bank of 64 matrices n x n takes 15,625 steps, which are 10^6 steps of a matrix, for SGD with momentum,
RMSprop and AdamW, n = 4, 16 and 64, float32 and complex64.  That is some 1,000 times from one polish
against drift to the next (2,000 at n = 4), all with the same bound.  The count of steps starts at
2^24 - 1000, where one in float32 would stop.  In every step each matrix gets a gradient of another
kind: of norm 1 or n, of rank one, always the same one, the weight itself, tangent to the manifold, one
entry, tiny, 1e19, zero, or not finite.  Defects ‖W^H W - I‖_F / sqrt(n) are looked at
right before every polish.
"""

import time
from itertools import product

import torch
from torch import Tensor

from bench.records import Results, Row
from projunn import UnitaryParameter, init, optim, unitarity_defect
from projunn.optim.drift import polish_period

SIZES, BANK, STEPS = (4, 16, 64), 64, 15_625
RULES = {
    "SGD": {"lr": 1.0, "momentum": 0.9, "unitary_lr": 0.3},
    "RMSprop": {"lr": 1.0, "unitary_lr": 0.03},
    "AdamW": {"lr": 1.0, "unitary_lr": 0.03},
}
DTYPES = {"real": torch.float32, "complex": torch.complex64}
COLORS = {"SGD": "#0b6e99", "RMSprop": "#d9730d", "AdamW": "#448361"}
BOUND = 1e-6
COUNTED = 2**24 - 1000  # steps before the first one
POOL = 64  # gradients of each kind, drawn once
# How often a kind comes: averages remember 1e19 for thousands of steps.
KINDS = {
    **{"normal": 20, "large": 5, "rank one": 20, "same": 10, "weight": 10, "tangent": 20, "entry": 10},
    **{"tiny": 2, "zero": 1, "not finite": 1, "1e19": 0.002},
}

Curve = list[tuple[int, float]]


class Gradients:
    """Hostile gradients of a bank of weights: c G + W S, with c, G and S from a pool of each kind."""

    def __init__(self, weight: Tensor, source: torch.Generator) -> None:
        self.weight, self.source, n = weight, source, weight.shape[-1]

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=weight.dtype, generator=source)

        zero, skew = torch.zeros(POOL, n, n, dtype=weight.dtype), noise(POOL, n, n) / n
        normal, entry = noise(POOL, n, n) / n, zero.clone()
        entry.view(POOL, -1)[torch.arange(POOL), torch.arange(POOL) % n**2] = 1
        broken = normal.clone()
        broken[::2, 0, 0], broken[1::2, 0, -1] = torch.nan, torch.inf
        alone = {
            "normal": normal,
            "large": normal * n,
            "rank one": noise(POOL, n, 1) * noise(POOL, 1, n) / n,
            "same": normal[:1].expand_as(normal),
            "entry": entry,
            "tiny": normal * 1e-30,
            "not finite": broken,
            "1e19": normal * 1e19,
        }
        with_weight = {
            "weight": torch.eye(n, dtype=weight.dtype) + zero,
            "tangent": (skew - skew.mH) / 2,
        }
        self.alone = torch.cat([alone.get(kind, zero) for kind in KINDS])
        self.with_weight = torch.cat([with_weight.get(kind, zero) for kind in KINDS])
        self.odds = torch.tensor(list(KINDS.values()), dtype=torch.float64).repeat_interleave(POOL)

    def draw(self, out: Tensor) -> None:
        """Fill ``out``, a gradient of another kind for each matrix."""
        chosen = torch.multinomial(self.odds, len(out), True, generator=self.source)
        torch.bmm(self.weight, self.with_weight.index_select(0, chosen), out=out)
        out.add_(self.alone.index_select(0, chosen))


def soak(rule: str, n: int, field: str, steps: int) -> tuple[Curve, Row]:
    """The largest defect of each fortieth of the steps, and what was found."""
    source = torch.Generator().manual_seed(1)
    weight = UnitaryParameter(init.haar_(torch.empty(BANK, n, n, dtype=DTYPES[field]), source))
    optimizer = getattr(optim, rule)([weight], **RULES[rule])
    weight.grad = torch.zeros_like(weight.detach())
    optimizer.step()
    state = optimizer.state[weight]
    state["step"].fill_(COUNTED)
    gradients, period = Gradients(weight.detach(), source), polish_period(weight)
    curve: Curve = []
    worst, began, every = 0.0, time.perf_counter(), max(400, steps // 40)
    for step in range(1, steps + 1):
        gradients.draw(weight.grad)
        optimizer.step()
        if step % 97 == 0 or (COUNTED + step + 1) % period == 0 or step == steps:
            worst = max(worst, unitarity_defect(weight).max().item())  # NaN would show in what follows
            if not weight.isfinite().all():
                raise RuntimeError(f"{rule}, n = {n}, {field}: a weight is not finite at step {step}")
        if step % every == 0 or step == steps:
            curve.append((step, worst))
            worst = 0.0
    finite = all(bool(value.isfinite().all()) for value in state.values())
    row = {
        "rule": rule,
        "n": n,
        "dtype": str(DTYPES[field]).removeprefix("torch."),
        "matrices": BANK,
        "steps": steps,
        "worst_defect": max(defect for _, defect in curve),
        "skipped": optimizer.skipped_steps(),
        "counted": int(state["step"].double().max().item()) - COUNTED,
        "state_finite": finite,
        "seconds": round(time.perf_counter() - began),
    }
    return curve, row


def draw(results: Results, curves: dict[tuple[str, int, str], Curve]) -> None:
    """``soak.png``: the largest defect of each fortieth, a panel for each size."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9.5, 3.4), layout="constrained")
        panels = figure.subplots(1, len(SIZES), sharey=True)
        for (rule, n, field), curve in curves.items():
            panels[SIZES.index(n)].plot(
                *zip(*((step * BANK, defect) for step, defect in curve), strict=True),
                linestyle="-" if field == "real" else "--",
                color=COLORS[rule],
                linewidth=1,
                label=f"{rule}, {field}",
            )
        for axes, n in zip(panels, SIZES, strict=True):
            axes.axhline(BOUND, color="black", linestyle=":")
            axes.set(yscale="log", xlabel="steps of a matrix", title=f"n = {n}")
        panels[0].set_ylabel("largest unitarity defect")
        panels[-1].legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        figure.savefig(results.folder / "soak.png", dpi=130)


def run(results: Results, quick: bool = False, steps: int | None = None) -> None:
    """One case after another on one thread; print and record the largest defects, draw curves.

    ``steps`` is how many the bank takes; a matrix takes ``steps`` times the number in the bank.
    """
    steps = steps or (600 if quick else STEPS)
    threads, rows, curves = torch.get_num_threads(), [], {}
    torch.set_num_threads(1)
    for rule, n, field in product(RULES, SIZES, DTYPES):
        curves[rule, n, field], row = soak(rule, n, field, steps)
        rows.append(row)
    torch.set_num_threads(threads)
    results.report("soak", f"largest unitarity defect; wanted: under {BOUND:g}", rows)
    draw(results, curves)
