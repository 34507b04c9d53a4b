"""Figure 2a: the time of one step of an orthogonal n x n weight against n."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import projunn
from projunn.reproduce.recipe import Measured, Row

_SIZES = {"paper": (128, 256, 512, 1024, 2048, 4096, 8192), "cpu": (64, 128, 256, 512, 1024)}
_DRY_SIZES = (8, 16)
_ROUNDS = 7
_COLORS = {
    "projUNN-T, k = 1": "#0b6e99",
    "projUNN-D, k = 1": "#e0a100",
    "polar factor by SVD": "#8f6ac0",
    "exponential map": "#d9730d",
    "unconstrained SGD": "#7a7a7a",
}


def measure_runtime(measured: Measured) -> list[Row]:
    """Each method's least time of a step from a given gradient, in milliseconds.

    The least of seven, because other programs on the machine only ever make a step longer.
    """
    name = "cuda" if measured.device == "auto" and torch.cuda.is_available() else measured.device
    device = torch.device("cpu" if name == "auto" else name)
    rows: list[Row] = []
    for n in _DRY_SIZES if measured.dry else _SIZES[measured.scale]:
        torch.manual_seed(measured.seed)
        weight = projunn.init.haar_(torch.empty(n, n, device=device))
        gradient = torch.randn(n, n, device=device) / n
        for method, step in _steps(weight, gradient).items():
            rows.append({"method": method, "n": n, "ms": round(_time(step, device), 4)})
        shown = "  ".join(f"{row['method']} {row['ms']:.3g} ms" for row in rows if row["n"] == n)
        print(f"n = {n}: {shown}", flush=True)
    _draw(measured, rows)
    return rows


def _steps(weight: Tensor, gradient: Tensor) -> dict[str, Callable[[], object]]:
    def ours(retraction: str) -> Callable[[], object]:
        parameter = projunn.UnitaryParameter(weight.clone())
        parameter.grad = gradient.clone()
        return projunn.optim.SGD([parameter], unitary_lr=1e-2, lr=1e-2, retraction=retraction).step

    def svd() -> object:
        u, _, vh = torch.linalg.svd(weight - 1e-2 * gradient)
        return u @ vh

    layer = nn.Linear(len(weight), len(weight), bias=False, device=weight.device)
    parametrizations.orthogonal(layer, orthogonal_map="matrix_exp", use_trivialization=False)
    rule = torch.optim.SGD(layer.parameters(), lr=1e-2)

    def exponential() -> None:
        rule.zero_grad()
        layer.weight.backward(gradient)
        rule.step()

    plain = nn.Parameter(weight.clone())
    plain.grad = gradient.clone()
    return {
        "projUNN-T, k = 1": ours("exp"),
        "projUNN-D, k = 1": ours("polar"),
        "polar factor by SVD": svd,
        "exponential map": exponential,
        "unconstrained SGD": torch.optim.SGD([plain], lr=1e-2).step,
    }


def _time(step: Callable[[], object], device: torch.device) -> float:
    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    step()
    taken = []
    for _ in range(_ROUNDS):
        started = wait()
        step()
        taken.append(1e3 * (wait() - started))
    return min(taken)


def _draw(measured: Measured, rows: list[Row]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for method, color in _COLORS.items():
        points = [(row["n"], row["ms"]) for row in rows if row["method"] == method]
        axes.plot(*zip(*points, strict=True), color=color, label=method, marker="o", markersize=3)
    axes.set(xlabel="n", ylabel="milliseconds of a step", xscale="log", yscale="log")
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(measured.folder / "runtime.png", dpi=120)
