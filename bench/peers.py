"""One orthogonal n x n weight trained by others: each a callable that does a whole update step.

Every peer gets the gradient of the weight as given, and does what it needs to move the weight and
keep it orthogonal.  Peers that are not installed are left out, with a word about it.
"""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

LR = 1e-3


def parametrized(weight: Tensor, gradient: Tensor, orthogonal_map: str) -> Callable[[], None]:
    """``torch.nn.utils.parametrizations.orthogonal``: weight from its parameter, backward, SGD."""
    layer = nn.Linear(*weight.shape, bias=False, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    parametrizations.orthogonal(layer, orthogonal_map=orthogonal_map, use_trivialization=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=LR)

    def step() -> None:
        optimizer.zero_grad()
        layer.weight.backward(gradient)
        optimizer.step()

    return step


def pogo(weight: Tensor, gradient: Tensor) -> Callable[[], None]:
    """POGO (``pogo-torch``) with its SGD as base optimizer."""
    package = importlib.import_module("pogo")
    parameter = nn.Parameter(weight.clone().unsqueeze(0))
    base = importlib.import_module("pogo.base")
    optimizer = package.POGO([parameter], base.SGD(), LR)

    def step() -> None:
        parameter.grad = gradient.unsqueeze(0)
        optimizer.step()

    return step


def geoopt(weight: Tensor, gradient: Tensor, canonical: bool) -> Callable[[], None]:
    """geoopt's RiemannianSGD on the Stiefel manifold."""
    package = importlib.import_module("geoopt")
    manifold = package.CanonicalStiefel() if canonical else package.EuclideanStiefel()
    parameter = package.ManifoldParameter(weight.clone(), manifold=manifold)
    optimizer = package.optim.RiemannianSGD([parameter], lr=LR)

    def step() -> None:
        parameter.grad = gradient.clone()
        optimizer.step()

    return step


def peers(weight: Tensor, gradient: Tensor) -> dict[str, Callable[[], None]]:
    """All that are installed and take this dtype."""
    found: dict[str, Callable[[], None]] = {}
    makers = {
        "pogo": lambda: pogo(weight, gradient),
        "geoopt euclidean": lambda: geoopt(weight, gradient, canonical=False),
        "geoopt canonical": lambda: geoopt(weight, gradient, canonical=True),
        "torch matrix_exp": lambda: parametrized(weight, gradient, "matrix_exp"),
        "torch cayley": lambda: parametrized(weight, gradient, "cayley"),
        "torch householder": lambda: parametrized(weight, gradient, "householder"),
    }
    for name, make in makers.items():
        try:
            step = make()
            step()
        except ImportError as error:
            print(f"{name}: left out, {error.name} is not installed")
        else:
            found[name] = step
    return found
