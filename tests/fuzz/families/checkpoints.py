"""Training that goes on from a copy of model and optimizer takes the same bits as training that went on.

The copy is a ``state_dict`` (in memory, or through ``torch.save``), a deepcopy or a pickle, taken at a
random step of a run with some hostile gradients.
"""

import copy
import io
import pickle

import torch
from torch import nn

import projunn
from projunn import FactoredTensor, optim
from projunn import nn as unn
from projunn.optim.options import FACTORIZATIONS
from projunn_kernels import RETRACTIONS
from tests.fuzz.checks import check, same
from tests.fuzz.families.optimizers import RULES

SHARE = 6
WAYS = ("state_dict", "saved state_dict", "deepcopy", "pickle", "loaded twice")


class Net(nn.Module):
    """Some unitary layers of one dtype beside a plain one."""

    def __init__(self, kinds, sketch, dtype):
        super().__init__()
        options = {"dtype": dtype, "sketch_rank": sketch}
        made = {
            "linear": lambda: unn.UnitaryLinear(6, 6, **options),
            "wide": lambda: unn.UnitaryLinear(6, 6, **options),
            "block": lambda: unn.BlockUnitaryLinear(2, 3, num_factors=2, **options),
            "rnn": lambda: unn.UnitaryRNN(6, 6, batch_first=True, **options),
            "constrained": lambda: projunn.constrain(nn.Linear(6, 6, dtype=dtype)),
        }
        self.layers = nn.ModuleList(made[kind]() for kind in kinds)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
            x = x[0] if isinstance(x, tuple) else x
        return x


def case(draw):
    torch.manual_seed(draw.below(2**31))
    dtype, rule = draw.dtype(), draw.choice("rule", RULES)
    sketch = draw.choice("sketch_rank", (None, None, 2))
    kinds = [draw.unnamed(("linear", "wide", "block", "rnn", "constrained")) for _ in range(2)]
    draw.said["layers"] = kinds
    sketch = None if rule == "Lion" else sketch
    options = {
        "lr": draw.choice("lr", (1e-3, 0.3)),
        "rank": draw.choice("rank", (1, 2)),
        "retraction": draw.choice("retraction", tuple(RETRACTIONS)),
        "factorization": draw.choice("factorization", FACTORIZATIONS),
        "polish_every": draw.choice("polish_every", (None, 2)),
    }
    if sketch is not None and options["factorization"] == "tangent":
        options["factorization"] = "subspace"
    if rule in ("SGD", "RMSprop"):
        options["momentum"] = draw.choice("momentum", (0, 0.9))
    model = Net(kinds, sketch, dtype)
    optimizer = getattr(optim, rule)(model.parameters(), **options)
    batches = [drawn_batch(draw, dtype) for _ in range(draw.integer("steps", 2, 5))]
    split = draw.integer("split", 0, len(batches) - 1)
    train(model, optimizer, batches[:split])
    counted = split and draw.chance("many steps", 0.3)
    if counted:  # as after 17 million steps, where float32 stops to count
        for state in unitary_states(optimizer):
            state["step"].fill_(2**24 - 1)
    way = draw.choice("way", WAYS)
    other = copied(way, model, optimizer, lambda: Net(kinds, sketch, dtype))
    train(model, optimizer, batches[split:])
    train(*other, batches[split:])
    compare(model, optimizer, *other)
    if counted and all(x.isfinite().all() for x in batches[split:]):
        wanted = 2**24 - 1 + len(batches) - split
        for state in unitary_states(optimizer):
            check((state["step"].double() == wanted).all(), f"{state['step']} steps, wanted {wanted}")


def unitary_states(optimizer):
    return [s for p, s in optimizer.state.items() if isinstance(p, projunn.UnitaryParameter)]


def drawn_batch(draw, dtype):
    x = draw.randn(4, 3, 6, dtype=dtype)
    kind = draw.unnamed(("normal", "normal", "normal", "nan", "identical", "tiny"))
    if kind == "nan":
        x[0, 0, 0] = torch.nan
    elif kind == "identical":
        x = x[:1, :1].expand_as(x)
    elif kind == "tiny":
        x = x * 1e-30
    return x


def train(model, optimizer, batches):
    for x in batches:
        optimizer.zero_grad()
        output = model(x)
        (output.abs().square().sum() + output.real.sum()).backward()
        optimizer.step()


def copied(way, model, optimizer, make):
    """A copy of model and optimizer."""
    if way == "deepcopy":
        return copy.deepcopy((model, optimizer))
    if way == "pickle":
        return pickle.loads(pickle.dumps((model, optimizer)))
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    if way == "saved state_dict":
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    state = copy.deepcopy(state)
    fresh = make()
    options = {k: v for k, v in optimizer.defaults.items() if k in ("lr", "rank")}
    other = type(optimizer)(fresh.parameters(), **options)  # the rest comes with the state
    for _ in range(2 if way == "loaded twice" else 1):
        fresh.load_state_dict(state["model"])
        other.load_state_dict(state["optimizer"])
    return fresh, other


def compare(model, optimizer, other, others):
    """Check that parameters and states have the same bits."""
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        check(same(p.detach(), q.detach()), f"{name} is another one")
        check(type(p) is type(q), f"{name} is of another class")
        mine, its = optimizer.state[p], others.state[q]
        check(mine.keys() == its.keys(), f"the state of {name} has other entries")
        for key, value in mine.items():
            check(not isinstance(value, FactoredTensor), "factors in the state")
            check(same(value, its[key]), f"{key} of the state of {name} is another one")
