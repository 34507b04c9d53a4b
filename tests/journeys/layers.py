"""The kinds of layers, and what must hold of one after whatever was done to it."""

import contextlib
import copy
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

import projunn
from projunn import matrix_view, unitarity_defect, unitary_parameters
from projunn.nn import UnitaryConv2d, UnitaryLinear, UnitaryRNN
from tests.dense import defect

NEAR = 1e-5


@dataclass(frozen=True)
class Layer:
    """A kind of layer: how it is made, the name of its unitary weight, and the shape of its input."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    name: str = "weight"


LAYERS = {
    "Linear": Layer(lambda: UnitaryLinear(4, 6), (3, 4)),
    "RNN": Layer(lambda: UnitaryRNN(4, 5, nonlinearity="tanh"), (3, 2, 4), "weight_hh_l0"),
    "Conv": Layer(lambda: UnitaryConv2d(2, 3, 4), (2, 2, 4, 4)),
    "constrained": Layer(lambda: projunn.constrain(nn.Linear(4, 8), blocks=2), (3, 4)),
    "sketched": Layer(lambda: UnitaryLinear(6, 6, sketch_rank=2), (3, 6)),
    "complex": Layer(lambda: UnitaryLinear(4, 6, dtype=torch.complex64), (3, 4)),
}


def run(module, x):
    result = module(x)
    return result[0] if isinstance(result, tuple) else result


def dtype_of(module):
    return next(p.dtype for p in module.parameters())


def input_of(layer, module):
    dtype = dtype_of(module)
    return torch.randn(layer.shape, dtype=dtype)


def same(layer, module, before):
    """It computes what ``before``, a copy with the same weights, computes."""
    x = input_of(layer, module)
    expected = run(copy.deepcopy(before).to(dtype_of(module).to_real()), x)
    torch.testing.assert_close(run(module, x), expected, atol=2e-5, rtol=1e-4)


def trains(layer, module, like=None, steps=3):
    """Unitary weights are known, move, and stay on the manifold; the diagnostics say so too."""
    like = layer.make() if like is None else like
    optimizer = projunn.optim.SGD(module.parameters(), lr=3.0, momentum=0.9)
    weights, known = unitary_parameters(module), unitary_parameters(like)
    marks = [
        sorted((p.shape, p.pairs, p.blocks, p.sketch is None) for p in ps) for ps in (weights, known)
    ]
    assert marks[0] == marks[1]
    before = [p.detach().clone() for p in weights]
    x = input_of(layer, module)
    target = torch.randn_like(run(module, x).detach())
    for _ in range(steps):
        optimizer.zero_grad()
        (run(module, x) - target).abs().square().mean().backward()
        optimizer.step()
    assert optimizer.skipped_steps() == 0
    for p, old in zip(weights, before, strict=True):
        assert (p.detach() - old).abs().max() > 1e-4, "it does not move"
        assert defect(matrix_view(p).detach()) < NEAR
        assert unitarity_defect(p).max() < NEAR
        assert unitarity_defect(p.detach()).max() < NEAR


def moved_off(module, scale=1.2):
    with torch.no_grad():
        for p in unitary_parameters(module):
            p.mul_(scale)


@contextlib.contextmanager
def said(*words):
    """A warning in words, and only one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    ours = [w for w in caught if issubclass(w.category, projunn.OffManifoldWarning)]
    assert len(ours) == 1, [str(w.message) for w in caught]
    assert all(word in str(ours[0].message) for word in ("project_", *words)), ours[0].message


def stored(module):
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)
