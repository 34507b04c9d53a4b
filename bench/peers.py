"""One orthogonal n x n weight trained by others: each a callable that does a whole update step.

Every peer gets the gradient of the weight as given, and does what it needs to move the weight and
keep it orthogonal, in the cheapest of its configurations.  Peers that are not installed are left
out, with a word about it.
"""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

LR = 1e-3

Step = Callable[[], object]


def parametrized(weight: Tensor, gradient: Tensor, orthogonal_map: str) -> Step:
    """``torch.nn.utils.parametrizations.orthogonal``: the map, its backward, and SGD."""
    layer = nn.Linear(*weight.shape, bias=False, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    parametrizations.orthogonal(layer, orthogonal_map=orthogonal_map, use_trivialization=False)
    return _through_autograd(layer, gradient)


def geotorch(weight: Tensor, gradient: Tensor) -> Step:
    """geotorch's orthogonal layer: the exponential of a skew-symmetric matrix."""
    package = importlib.import_module("geotorch")
    layer = nn.Linear(*weight.shape, bias=False, dtype=weight.dtype)
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


def peers(weight: Tensor, gradient: Tensor) -> dict[str, Step]:
    """Those that are installed, each on a copy of the real ``weight``."""
    makers: dict[str, Callable[[], Step]] = {
        "pogo": lambda: pogo(weight, gradient),
        "geoopt euclidean": lambda: geoopt(weight, gradient, canonical=False),
        "geoopt canonical": lambda: geoopt(weight, gradient, canonical=True),
        "geotorch": lambda: geotorch(weight, gradient),
        "torch matrix_exp": lambda: parametrized(weight, gradient, "matrix_exp"),
        "torch cayley": lambda: parametrized(weight, gradient, "cayley"),
        "torch householder": lambda: parametrized(weight, gradient, "householder"),
    }
    found: dict[str, Step] = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except ImportError as error:
            print(f"{name}: left out, {error.name} is not installed")
    return found
