"""Recurrent networks: the same network, whose recurrent matrix each method keeps orthogonal in its way.

All of them but LSTM, GRU and the plain RNN are ``h_t = f(W_ih x_t + b + W h_{t-1})`` in the time loop of
this library, so that what differs is the matrix and its step.  So is EUNN where that is faster; at other
widths it applies its rotations at every time step (`EURNN`).

A rate is that of the recurrent matrix, as the root mean square of the change of its entries that a rule
asks for in one step.  RMSprop's learning rate is that; rules that normalise the whole gradient, to norm
1 or to an orthogonal matrix, get n or sqrt(n) times it.  What has one rate for all of its parameters
tries others.
"""

import importlib
from collections.abc import Callable
from functools import partial
from math import tan
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import projunn
from bench.field.contender import LR, Contender, Made, Optimizers, by_default, low_rank, others
from projunn import init
from projunn.models import EURNN, EUNNLinear
from projunn.nn import UnitaryRNN
from projunn.tasks.sequences import SequenceModel, SequenceTask
from projunn_kernels import recurrence

RATES = (5e-5, 2e-4, 8e-4)
_FORMED_BELOW = 256  # hidden units
WHOLE_RATES = (2.5e-4, 1e-3, 4e-3)
INITS: dict[str, Callable[[Tensor], Tensor]] = {
    "henaff": init.henaff_,
    "cayley": init.cayley_,
    "identity": init.identity_,
    "haar": init.haar_,
}


class DenseRNN(nn.Module):
    """The network of `UnitaryRNN`, with a recurrent matrix that a module makes.

    Args:
        input_size, hidden_size, nonlinearity: as in `UnitaryRNN`.
        matrix: called without arguments, returns W (n, n).
        is_complex: whether W is complex.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        nonlinearity: str,
        matrix: Callable[[], Tensor],
        is_complex: bool = False,
    ) -> None:
        super().__init__()
        parts = 2 if is_complex else 1
        self.enter = nn.Linear(input_size, parts * hidden_size)
        bound = (6 / parts / (input_size + hidden_size)) ** 0.5
        nn.init.uniform_(self.enter.weight, -bound, bound)
        nn.init.zeros_(self.enter.bias)
        self.matrix, self.nonlinearity = matrix, nonlinearity
        self.is_complex, self.hidden_size = is_complex, hidden_size
        self.modrelu_bias = (
            nn.Parameter(torch.empty(hidden_size).uniform_(-0.01, 0.01))
            if nonlinearity == "modrelu"
            else None
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = x.new_zeros(x.shape[1], self.hidden_size, *([2] if self.is_complex else []))
        weight = torch.view_as_real(self.matrix()) if self.is_complex else self.matrix()
        arguments = (self.modrelu_bias, self.nonlinearity, self.enter.weight, self.enter.bias)
        states, last = recurrence(x, h, weight, *arguments)
        if self.is_complex:
            states, last = torch.view_as_complex(states), torch.view_as_complex(last)
        return states, last.unsqueeze(0)


class Held(nn.Module):
    """A matrix that is a parameter, (n, n), or (1, n, n) as POGO wants it."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self) -> Tensor:
        return self.weight.reshape(self.weight.shape[-2:])


class Rotated(nn.Module):
    """The matrix of an EUNN, formed."""

    def __init__(self, n: int, depth: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = EUNNLinear(n, depth, dtype=dtype)

    def forward(self) -> Tensor:
        return self.layer.matrix()


class Mapped(nn.Module):
    """A matrix by ``torch.nn.utils.parametrizations.orthogonal``, times a diagonal of signs.

    It starts as rotations of pairs of coordinates: of expRNN by angles as the task's initialisation has
    them, and of scoRNN by angles uniform in [0, pi/2), with half of the signs negative, as published.

    Args:
        n: of a matrix (n, n).
        orthogonal_map: ``"matrix_exp"`` (expRNN) or ``"cayley"`` (scoRNN).
        initial: the initialisation of expRNN.
    """

    def __init__(self, n: int, orthogonal_map: str, initial: str) -> None:
        super().__init__()
        layer = nn.Linear(n, n, bias=False)
        parametrizations.orthogonal(layer, orthogonal_map=orthogonal_map, use_trivialization=False)
        cayley = orthogonal_map == "cayley"
        rotations = INITS["cayley" if cayley else initial](torch.empty(n, n))
        signs = torch.ones(n)
        with torch.no_grad():
            generator = layer.parametrizations.weight.original.zero_()
            for j in range(0, n - 1, 2):
                angle = torch.atan2(rotations[j + 1, j], rotations[j, j]).item()
                generator[j + 1, j] = 2 * tan(angle / 2) if cayley else angle
            if cayley:
                signs[torch.randperm(n)[: n // 2]] = -1
        self.layer = layer
        self.register_buffer("signs", signs)

    def forward(self) -> Tensor:
        return self.layer.weight * self.signs

    @property
    def generator(self) -> nn.Parameter:
        return self.layer.parametrizations.weight.original


def model(task: SequenceTask, body: nn.Module, features: int | None = None) -> nn.Module:
    features = task.options.hidden if features is None else features
    return SequenceModel(body, features, task.output_size, task.every_step)


def ours(
    task: SequenceTask,
    rate: float,
    rank: int = 1,
    retraction: str = "exp",
    factorization: str = "subspace",
    initial: str | None = None,
    sketch_rank: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    rule: str = "RMSprop",
    **of_rule: Any,
) -> Made:
    hidden, nonlinearity = task.options.hidden, task.options.nonlinearity
    body = UnitaryRNN(
        task.input_size, hidden, nonlinearity=nonlinearity, dtype=dtype, sketch_rank=sketch_rank
    )
    INITS[task.options.init if initial is None else initial](body.weight_hh_l0)
    whole = model(task, body, (2 if dtype.is_complex else 1) * hidden)
    options = {"rank": rank, "retraction": retraction, "factorization": factorization}
    optimizer = getattr(projunn.optim, rule)
    return whole, Optimizers(
        optimizer(whole.parameters(), lr=LR, unitary_lr=rate or None, **options, **of_rule)
    )


def eunn(task: SequenceTask, rate: float, depth: int, dtype: torch.dtype) -> Made:
    hidden, nonlinearity = task.options.hidden, task.options.nonlinearity
    if dtype.is_complex and nonlinearity == "relu":
        nonlinearity = "modrelu"
    body: nn.Module
    if hidden < _FORMED_BELOW:
        matrix = Rotated(hidden, depth, dtype)
        body = DenseRNN(task.input_size, hidden, nonlinearity, matrix, dtype.is_complex)
    else:
        body = EURNN(task.input_size, hidden, depth, nonlinearity=nonlinearity, dtype=dtype)
    whole = model(task, body, (2 if dtype.is_complex else 1) * hidden)
    return whole, Optimizers(torch.optim.RMSprop(whole.parameters(), lr=rate))


def mapped(task: SequenceTask, rate: float, orthogonal_map: str) -> Made:
    matrix = Mapped(task.options.hidden, orthogonal_map, task.options.init)
    whole = _dense(task, matrix)
    rest = others(whole, [matrix.generator])
    return whole, Optimizers(
        torch.optim.RMSprop(rest, lr=LR), torch.optim.RMSprop([matrix.generator], lr=rate)
    )


def _dense(task: SequenceTask, matrix: Callable[[], Tensor]) -> nn.Module:
    hidden, nonlinearity = task.options.hidden, task.options.nonlinearity
    return model(task, DenseRNN(task.input_size, hidden, nonlinearity, matrix))


def _start(task: SequenceTask) -> Tensor:
    n = task.options.hidden
    return INITS[task.options.init](torch.empty(n, n))


def pogo(task: SequenceTask, rate: float) -> Made:
    """With VectorAdam, which scales a whole gradient to norm 1."""
    package, base = importlib.import_module("pogo"), importlib.import_module("pogo.base")
    matrix = Held(nn.Parameter(_start(task).unsqueeze(0)))
    whole = _dense(task, matrix)
    rest = others(whole, [matrix.weight])
    rule = package.POGO([matrix.weight], base.VectorAdam(), rate * task.options.hidden)
    return whole, Optimizers(torch.optim.RMSprop(rest, lr=LR), rule)


def geoopt(task: SequenceTask, rate: float) -> Made:
    """RiemannianAdam, which scales a whole gradient to norm 1, with the Euclidean metric."""
    package = importlib.import_module("geoopt")
    matrix = Held(package.ManifoldParameter(_start(task), manifold=package.EuclideanStiefel()))
    whole = _dense(task, matrix)
    rest = others(whole, [matrix.weight])
    rule = package.optim.RiemannianAdam([matrix.weight], lr=rate * task.options.hidden)
    return whole, Optimizers(torch.optim.RMSprop(rest, lr=LR), rule)


def muon(task: SequenceTask, rate: float) -> Made:
    """Orthogonalised updates of a matrix that starts orthogonal and need not stay so."""
    matrix = Held(nn.Parameter(_start(task)))
    whole = _dense(task, matrix)
    rest = others(whole, [matrix.weight])
    lr = rate * task.options.hidden**0.5
    rule = torch.optim.Muon([matrix.weight], lr=lr, weight_decay=0.0)
    return whole, Optimizers(torch.optim.RMSprop(rest, lr=LR), rule)


def frozen(task: SequenceTask, rate: float) -> Made:
    """The control: the matrix stays what it was at the start, and only the rest is trained."""
    whole = _dense(task, Held(nn.Parameter(_start(task), requires_grad=False)))
    rest = [parameter for parameter in whole.parameters() if parameter.requires_grad]
    return whole, Optimizers(torch.optim.RMSprop(rest, lr=LR))


def gated(task: SequenceTask, rate: float, kind: type[nn.RNNBase]) -> Made:
    whole = model(task, kind(task.input_size, task.options.hidden))
    return whole, Optimizers(torch.optim.RMSprop(whole.parameters(), lr=rate))


CONTENDERS = (
    low_rank(ours, RATES, 1, "exp"),
    low_rank(ours, RATES, 4, "exp", "--"),
    low_rank(ours, RATES, 16, "exp", ":"),
    low_rank(ours, RATES, 1, "polar"),
    by_default(ours, 4),
    Contender(
        "projUNN-T, k = 16, tangent averages",
        partial(ours, rank=16, factorization="tangent", averages="tangent"),
        RATES,
        "#7b3f00",
    ),
    Contender("EUNN, 8 layers", partial(eunn, depth=8, dtype=torch.float32), WHOLE_RATES, "#448361"),
    Contender(
        "EUNN, complex, 2 layers",
        partial(eunn, depth=2, dtype=torch.complex64),
        WHOLE_RATES,
        "#448361",
        "--",
    ),
    Contender("expRNN", partial(mapped, orthogonal_map="matrix_exp"), RATES, "#d9730d"),
    Contender("scoRNN", partial(mapped, orthogonal_map="cayley"), RATES, "#d9730d", "--"),
    Contender("POGO", pogo, RATES, "#8f6ac0"),
    Contender("geoopt", geoopt, RATES, "#8f6ac0", "--"),
    Contender("Muon", muon, RATES, "#ad1a72"),
    Contender("frozen matrix", frozen, (0.0,), "#000000", ":"),
    Contender("LSTM", partial(gated, kind=nn.LSTM), WHOLE_RATES, "#7a7a7a"),
    Contender("GRU", partial(gated, kind=nn.GRU), WHOLE_RATES, "#7a7a7a", "--"),
    Contender("RNN", partial(gated, kind=nn.RNN), WHOLE_RATES, "#7a7a7a", ":"),
)
