"""A model that others keep orthogonal, before and after `projunn.convert`: the function, and a step.

    before   forward, backward and step with the other library's optimizer, torch.optim.SGD or geoopt's
    after    the same model, converted, with `projunn.optim.SGD` at rank 1

The model is two n x n linear layers with a tanh, 64 rows.  ``change`` is ‖y' - y‖ / ‖y‖ of the
outputs y before and y' after, in float32; ``defect`` and ``then`` are the weights', before and after.
"""

import copy
import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from bench.peers import LR
from bench.records import Results, timing_rows
from bench.timing import measure
from projunn import convert, unitarity_defect
from projunn.optim import SGD

ROWS = 64


def _torch(orthogonal_map: str) -> Callable[[nn.Linear], object]:
    return lambda layer: parametrizations.orthogonal(layer, "weight", orthogonal_map)


def _geotorch(layer: nn.Linear) -> None:
    importlib.import_module("geotorch").orthogonal(layer, "weight")


def _geoopt(layer: nn.Linear) -> None:
    geoopt = importlib.import_module("geoopt")
    nn.init.orthogonal_(layer.weight)
    layer.weight = geoopt.ManifoldParameter(layer.weight.data, manifold=geoopt.EuclideanStiefel())


KEPT: dict[str, Callable[[nn.Linear], object]] = {
    "torch matrix_exp": _torch("matrix_exp"),
    "torch cayley": _torch("cayley"),
    "torch householder": _torch("householder"),
    "geotorch": _geotorch,
    "geoopt": _geoopt,
}


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Callable[[], object]:
    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    return step


def run(results: Results, quick: bool = False) -> None:
    """Print and record a table for every size."""
    for n in (128,) if quick else (256, 1024):
        x, rows = torch.randn(ROWS, n), []
        for name, keep in KEPT.items():
            model = nn.Sequential(nn.Linear(n, n), nn.Tanh(), nn.Linear(n, n))
            try:
                for layer in (model[0], model[2]):
                    keep(layer)
            except ImportError as error:
                print(f"{name} is left out: {error}")
                continue
            package = importlib.import_module("geoopt").optim if name == "geoopt" else torch.optim
            rule = package.RiemannianSGD if name == "geoopt" else package.SGD
            before = _step(model, rule(model.parameters(), lr=LR), x)
            for _ in range(3):
                before()
            ours = copy.deepcopy(model)
            was = unitarity_defect(ours[0].weight.detach()).item()
            expected = model(x).detach()
            change = ((convert(ours)(x).detach() - expected).norm() / expected.norm()).item()
            is_now = unitarity_defect(ours[0].weight.detach()).item()
            after = _step(ours, SGD(ours.parameters(), lr=LR), x)
            times = measure({"after": after, "before": before}, 5 if quick else 15, seconds=20)
            case = {"n": n, "kept by": name, "change": change, "defect": was, "then": is_now}
            case = {key: float(f"{v:.1e}") if isinstance(v, float) else v for key, v in case.items()}
            rows += timing_rows(case, times, "after")
        title = f"a training step before and after convert, n = {n}, float32, {ROWS} rows"
        results.report("convert", title, rows)
