"""One orthogonal matrix W, learned from pairs x, U x by gradient descent with momentum 0.

The largest curvature of the loss of 16 examples is about 2 (1 + 4 / sqrt(n))^2, which says which rates
of a step of W itself make sense, for all methods alike.  All start at the same W but EUNN, whose angles
are drawn.
"""

import importlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import projunn
from bench.field.contender import Contender, Made, Optimizers, low_rank
from bench.field.recurrent import Held
from projunn.init import haar_
from projunn.models import EUNNLinear
from projunn.nn import UnitaryLinear
from projunn.tasks import Unitary
from projunn.tasks.unitary import make_rotation_

RATES = (0.25, 0.5, 1.0)
EUNN_RATES = (2.5e-3, 1e-2, 4e-2)  # of Adam: the gradient of an angle has another scale


class Product(nn.Module):
    """``x W^T`` with the W that a module makes."""

    def __init__(self, matrix: Callable[[], Tensor]) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.matrix())


def _start(task: Unitary) -> Tensor:
    n = task.options.size
    return make_rotation_(haar_(torch.empty(n, n)))


def ours(task: Unitary, rate: float, rank: int, retraction: str) -> Made:
    n = task.options.size
    layer = UnitaryLinear(n, n, bias=False)
    layer.matrix.detach().copy_(_start(task))
    options = {"rank": rank, "retraction": retraction}
    rule = projunn.optim.SGD(layer.parameters(), lr=rate, unitary_lr=rate, **options)
    return layer, Optimizers(rule)


def eunn(task: Unitary, rate: float) -> Made:
    layer = EUNNLinear(task.options.size, task.options.size)
    return layer, Optimizers(torch.optim.Adam(layer.parameters(), lr=rate))


def mapped(task: Unitary, rate: float, orthogonal_map: str) -> Made:
    """W = B exp(A) or B cayley(A), with B the start: a trivialisation."""
    layer = nn.Linear(task.options.size, task.options.size, bias=False)
    with torch.no_grad():
        layer.weight.copy_(_start(task))
    parametrizations.orthogonal(layer, orthogonal_map=orthogonal_map)
    return layer, Optimizers(torch.optim.SGD(layer.parameters(), lr=rate))


def pogo(task: Unitary, rate: float) -> Made:
    package, base = importlib.import_module("pogo"), importlib.import_module("pogo.base")
    matrix = Held(nn.Parameter(_start(task).unsqueeze(0)))
    return Product(matrix), Optimizers(package.POGO([matrix.weight], base.SGD(), rate))


def geoopt(task: Unitary, rate: float) -> Made:
    package = importlib.import_module("geoopt")
    matrix = Held(package.ManifoldParameter(_start(task), manifold=package.EuclideanStiefel()))
    return Product(matrix), Optimizers(package.optim.RiemannianSGD([matrix.weight], lr=rate))


def plain(task: Unitary, rate: float) -> Made:
    matrix = Held(nn.Parameter(_start(task)))
    return Product(matrix), Optimizers(torch.optim.SGD([matrix.weight], lr=rate))


CONTENDERS = (
    low_rank(ours, RATES, 1, "exp"),
    low_rank(ours, RATES, 4, "exp", "--"),
    low_rank(ours, RATES, 16, "exp", ":"),
    low_rank(ours, RATES, 1, "polar"),
    low_rank(ours, RATES, 16, "polar", ":"),
    Contender("EUNN, depth n", eunn, EUNN_RATES, "#448361"),
    Contender("exponential map", partial(mapped, orthogonal_map="matrix_exp"), RATES, "#d9730d"),
    Contender("Cayley map", partial(mapped, orthogonal_map="cayley"), RATES, "#d9730d", "--"),
    Contender("POGO", pogo, RATES, "#8f6ac0"),
    Contender("geoopt", geoopt, RATES, "#8f6ac0", "--"),
    Contender("unconstrained", plain, RATES, "#7a7a7a"),
)
