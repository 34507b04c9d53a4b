"""What users save, read again by `torch.load` as it stands: with ``weights_only=True``."""

import io

import pytest
import torch
from torch import nn

import projunn
from projunn import UnitaryParameter, constrain, optim
from projunn.nn import BlockUnitaryLinear, UnitaryConv2d, UnitaryLinear, UnitaryRNN

LAYERS = {
    "linear": (lambda: UnitaryLinear(4, 4), (3, 4)),
    "complex": (lambda: UnitaryLinear(4, 6, dtype=torch.complex64), (3, 4)),
    "sketched": (lambda: UnitaryLinear(4, 4, sketch_rank=2), (3, 4)),
    "complex, sketched": (lambda: UnitaryLinear(4, 4, sketch_rank=2, dtype=torch.complex64), (3, 4)),
    "block": (lambda: BlockUnitaryLinear(2, 3, num_factors=2, sketch_rank=1), (3, 6)),
    "rnn": (lambda: UnitaryRNN(3, 4, 2, sketch_rank=1), (5, 2, 3)),
    "conv": (lambda: UnitaryConv2d(2, 3, 4), (2, 2, 4, 4)),
    "lstm": (lambda: constrain(nn.LSTM(3, 4), "weight_hh_l0"), (5, 2, 3)),
    "filter": (lambda: constrain(nn.Conv2d(4, 6, 1, groups=2)), (2, 4, 3, 3)),
    "natively complex": (lambda: constrain(nn.Linear(4, 3, dtype=torch.complex64)), (3, 4)),
}


def read_again(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    return torch.load(io.BytesIO(file.getvalue()))  # weights_only=True is the default


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if type(a) is torch.Tensor else a == b


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
@pytest.mark.parametrize("rule", ["SGD", "AdamW", "RMSprop"])
@pytest.mark.parametrize("name", LAYERS)
def test_all_that_training_leaves_behind_is_read_without_trust(name, rule):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = make()
    options = {"momentum": 0.9} if rule == "SGD" else {}
    optimizer = getattr(optim, rule)(layer.parameters(), lr=0.1, **options)
    x = torch.randn(shape, dtype=next(layer.parameters()).dtype)
    out = layer(x)
    (out[0] if isinstance(out, tuple) else out).abs().square().sum().backward()
    optimizer.step()
    state = read_again({"model": layer.state_dict(), "optimizer": optimizer.state_dict()})
    assert equal(dict(layer.state_dict()), dict(state["model"]))
    assert equal(optimizer.state_dict(), state["optimizer"])
    for p in projunn.unitary_parameters(layer):
        again = read_again(p)
        assert type(again) is UnitaryParameter
        assert (again.pairs, again.blocks, again.singletons) == (p.pairs, p.blocks, p.singletons)
        assert torch.equal(projunn.matrix_view(again), projunn.matrix_view(p))
        assert (again.sketch is None) == (p.sketch is None)
        gradient = read_again(p.grad)
        assert type(gradient) is type(p.grad)
        dense = [g.to_dense() if hasattr(g, "stored_left") else g for g in (gradient, p.grad)]
        assert torch.equal(*dense)
