"""One orthogonal n x n weight trained by others: each a callable that does a whole update step.

Every peer gets the gradient of the weight as given, and does what it needs to move the weight and
keep it orthogonal, in the cheapest of its configurations.  Peers that are not installed are left
out, with a word about it.
"""

import importlib
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

LR = 1e-3

T = TypeVar("T")
Step = Callable[[], object]


def parametrized(weight: Tensor, gradient: Tensor, orthogonal_map: str) -> Step:
    """``torch.nn.utils.parametrizations.orthogonal``: the map, its backward, and SGD."""
    layer = nn.Linear(*weight.shape, bias=False, dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        layer.weight.copy_(weight)
    parametrizations.orthogonal(layer, orthogonal_map=orthogonal_map, use_trivialization=False)
    return _through_autograd(layer, gradient)


def geotorch(weight: Tensor, gradient: Tensor) -> Step:
    """geotorch's orthogonal layer: the exponential of a skew-symmetric matrix."""
    package = importlib.import_module("geotorch")
    layer = nn.Linear(*weight.shape, bias=False, dtype=weight.dtype, device=weight.device)
    package.orthogonal(layer, "weight")
    layer.weight = weight
    return _through_autograd(layer, gradient)


def _through_autograd(layer: nn.Module, gradient: Tensor) -> Step:
    optimizer = torch.optim.SGD(layer.parameters(), lr=LR)

    def step() -> None:
        optimizer.zero_grad()
        layer.weight.backward(gradient)
        optimizer.step()

    return step


def pogo(weight: Tensor, gradient: Tensor) -> Step:
    """POGO (``pogo-torch``) with its own SGD as base optimizer, and no root-finding."""
    package, base = importlib.import_module("pogo"), importlib.import_module("pogo.base")
    blocks = weight.reshape(-1, *weight.shape[-2:])  # it takes banks only
    parameter = nn.Parameter(blocks.clone())
    parameter.grad = gradient.reshape(blocks.shape).clone()
    return package.POGO([parameter], base.SGD(), LR).step


def geoopt(weight: Tensor, gradient: Tensor, canonical: bool) -> Step:
    """geoopt's RiemannianSGD on the Stiefel manifold with its Euclidean or canonical metric."""
    package = importlib.import_module("geoopt")
    manifold = package.CanonicalStiefel() if canonical else package.EuclideanStiefel()
    parameter = package.ManifoldParameter(weight.clone(), manifold=manifold)
    parameter.grad = gradient.clone()
    return package.optim.RiemannianSGD([parameter], lr=LR).step


def trained_peers(n: int) -> dict[str, tuple[nn.Module, torch.optim.Optimizer]]:
    """Bias-free n x n linear layers that others keep orthogonal, each with its optimizer."""
    weight = nn.init.orthogonal_(torch.empty(n, n))

    def of_pogo() -> tuple[nn.Module, torch.optim.Optimizer]:
        package, base = importlib.import_module("pogo"), importlib.import_module("pogo.base")
        layer = _Matrix(nn.Parameter(weight.clone().unsqueeze(0)))
        return layer, package.POGO([layer.weight], base.SGD(), LR)

    def of_geoopt() -> tuple[nn.Module, torch.optim.Optimizer]:
        package = importlib.import_module("geoopt")
        manifold = package.EuclideanStiefel()
        layer = _Matrix(package.ManifoldParameter(weight.clone(), manifold=manifold))
        return layer, package.optim.RiemannianSGD([layer.weight], lr=LR)

    def of_geotorch() -> tuple[nn.Module, torch.optim.Optimizer]:
        package = importlib.import_module("geotorch")
        layer = nn.Linear(n, n, bias=False)
        package.orthogonal(layer, "weight")
        return layer, torch.optim.SGD(layer.parameters(), lr=LR)

    def of_torch() -> tuple[nn.Module, torch.optim.Optimizer]:
        layer = nn.Linear(n, n, bias=False)
        parametrizations.orthogonal(layer, orthogonal_map="cayley", use_trivialization=False)
        return layer, torch.optim.SGD(layer.parameters(), lr=LR)

    return _installed(
        {"pogo": of_pogo, "geoopt": of_geoopt, "geotorch": of_geotorch, "torch cayley": of_torch}
    )


class _Matrix(nn.Module):
    """``x W^T`` for a weight (n, n), or (1, n, n) as POGO wants it."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight.reshape(self.weight.shape[-2:]))


def _makers(weight: Tensor, gradient: Tensor) -> dict[str, Callable[[], Step]]:
    return {
        "pogo": lambda: pogo(weight, gradient),
        "geoopt euclidean": lambda: geoopt(weight, gradient, canonical=False),
        "geoopt canonical": lambda: geoopt(weight, gradient, canonical=True),
        "geotorch": lambda: geotorch(weight, gradient),
        "torch matrix_exp": lambda: parametrized(weight, gradient, "matrix_exp"),
        "torch cayley": lambda: parametrized(weight, gradient, "cayley"),
        "torch householder": lambda: parametrized(weight, gradient, "householder"),
    }


def peers(weight: Tensor, gradient: Tensor) -> dict[str, Step]:
    """Those that are installed, each on a copy of the real ``weight``."""
    return _installed(_makers(weight, gradient))


def made(name: str, weight: Tensor, gradient: Tensor) -> Step:
    """One of them; ImportError where it is not installed."""
    return _makers(weight, gradient)[name]()


def _installed(makers: dict[str, Callable[[], T]]) -> dict[str, T]:
    found: dict[str, T] = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except ImportError as error:
            print(f"{name}: left out, {error.name} is not installed")
    return found
