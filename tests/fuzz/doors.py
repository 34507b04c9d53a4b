"""The doors of the library: calls that are right, and values of arguments that are not.

A door is a function of a `Draw` that returns (call, right, wrong): the call, a function that makes its
right arguments anew, and values to refuse, by argument.
"""

import torch
from torch import nn

import projunn
from projunn import UnitaryParameter, diagnostics, optim
from projunn import nn as unn

NO_TENSOR = (None, [[1.0, 0.0], [0.0, 1.0]], "x", 3)
NO_COUNT = (0, -1, 1.5, "2", None, [2])
NO_WORD = ("zzz", 3, [], "")
NO_RANK = (0, -3, 1.5, "1", [1])
NO_DTYPE = (torch.float16, torch.int64, torch.bool, "float32", 3)


def haar(*shape, dtype=torch.float32):
    return projunn.init.haar_(torch.empty(shape, dtype=dtype))


def retract(draw):
    call = draw.unnamed((projunn.retract, projunn.retract_))
    dtype = draw.dtype()
    other = torch.float64 if dtype != torch.float64 else torch.float32

    def right():
        left, right = (torch.randn(3, r, 2, dtype=dtype) for r in (4, 5))
        return {"weight": haar(3, 4, 5, dtype=dtype), "left": left, "right": right, "retraction": "exp"}

    factor = (
        torch.ones(3, 4, 9, dtype=dtype),
        torch.ones(4, dtype=dtype),
        torch.ones(2, 4, 2, dtype=dtype),
    )
    bad = (*factor, torch.ones(3, 4, 2, dtype=other), torch.ones(3, 4, 2, dtype=torch.int64), *NO_TENSOR)
    weight = (
        torch.eye(4).half(),
        torch.ones(4, dtype=dtype),
        torch.ones(4, 5, dtype=torch.int64),
        *NO_TENSOR,
    )
    return call, right, {"weight": weight, "left": bad, "right": bad, "retraction": (*NO_WORD, None)}


def factorize(draw):
    def right():
        return {"matrix": torch.randn(4, 5), "rank": 2, "method": "subspace", "basis": torch.randn(4, 2)}

    wrong = {
        "matrix": (*NO_TENSOR, torch.ones(5), torch.ones(4, 5, dtype=torch.int64)),
        "rank": (*NO_RANK, 5, None),
        "method": (*NO_WORD, None, "lsi"),
        "basis": (torch.ones(4, 3), torch.ones(5, 2), torch.ones(4), "x", [[1.0]]),
    }
    if draw.chance("no basis", 0.5):
        wrong = {name: values for name, values in wrong.items() if name in ("matrix", "rank")}
        wrong["generator"] = (3, "x", torch.ones(2))
        options = {"matrix": torch.randn(4, 5), "rank": 2, "method": "lsi"}
        return projunn.factorize, lambda: dict(options), wrong
    # "lsi" takes no basis, and so the basis is what is wrong then.
    wrong["method"] = tuple(v for v in wrong["method"] if v != "lsi")
    return projunn.factorize, right, wrong


def measures(draw):
    name = draw.choice("measure", ("unitarity_defect", "eigenphases", "captured_energy"))
    argument = "matrix" if name == "captured_energy" else "weight"
    wrong = {argument: (*NO_TENSOR, torch.ones(3), torch.ones(3, 3, dtype=torch.int64))}
    options = {argument: haar(3, 3)}
    if name == "captured_energy":
        wrong["rank"], options["rank"] = (0, -1, 1.5, "1", None), 1
    if name == "eigenphases":
        wrong[argument] += (torch.ones(3, 4),)
    return getattr(diagnostics, name), lambda: dict(options), wrong


def initialisers(draw):
    call = getattr(projunn.init, draw.choice("init", ("haar_", "henaff_", "cayley_", "identity_")))
    wrong = {"tensor": (*NO_TENSOR, torch.ones(3), torch.ones(3, 3, dtype=torch.int64))}
    if call is not projunn.init.identity_:
        wrong["generator"] = (3, "x")
    return call, lambda: {"tensor": torch.empty(3, 3)}, wrong


def constrain(draw):
    wrong = {
        "module": (3, None, torch.ones(2, 2), "x", nn.Conv2d(2, 2, 3)),
        "name": ("nope", 3, None, "bias"),
        "blocks": (0, -1, 4, 1.5, "2"),
    }
    return projunn.constrain, lambda: {"module": nn.Linear(3, 6), "name": "weight", "blocks": 2}, wrong


def project(draw):
    bad = torch.full((3, 3), torch.nan)
    wrong = {
        "target": (*NO_TENSOR, torch.ones(3, 3, dtype=torch.int64), torch.ones(3), bad, nn.Linear(2, 2))
    }
    return projunn.project_, lambda: {"target": torch.randn(3, 3)}, wrong


def layers(draw):
    kind = draw.choice("layer", ("linear", "block", "rnn", "cell", "conv", "modrelu", "groupsort"))
    options = {"dtype": NO_DTYPE, "sketch_rank": NO_RANK}
    if kind == "linear":
        wrong = {"in_features": NO_COUNT, "out_features": NO_COUNT, **options}
        return unn.UnitaryLinear, lambda: {"in_features": 3, "out_features": 4}, wrong
    if kind == "block":
        wrong = {"num_blocks": NO_COUNT, "block_size": NO_COUNT, "num_factors": NO_COUNT, **options}
        return unn.BlockUnitaryLinear, lambda: {"num_blocks": 2, "block_size": 3}, wrong
    if kind in ("rnn", "cell"):
        wrong = {
            "input_size": NO_COUNT,
            "hidden_size": NO_COUNT,
            "nonlinearity": (*NO_WORD, None),
            **options,
        }
        if kind == "rnn":
            wrong |= {"num_layers": NO_COUNT, "dropout": (-0.1, 1.5, "x", None)}
            wrong |= {
                "bidirectional": (2, None, "x"),
                "proj_size": (1, None),
                "checkpoint_every": NO_RANK,
            }
        cls = unn.UnitaryRNN if kind == "rnn" else unn.UnitaryRNNCell
        return cls, lambda: {"input_size": 3, "hidden_size": 4}, wrong
    if kind == "conv":
        wrong = {"in_channels": NO_COUNT, "out_channels": NO_COUNT, **options}
        wrong["spatial_size"] = (0, -1, 1.5, (3,), (2, 2, 2), "ab", None, (2, 1.5))
        wrong["stride"] = (0, -1, 1.5, (3, 0), (2,), "ab", None)
        return unn.UnitaryConv2d, lambda: {"in_channels": 2, "out_channels": 2, "spatial_size": 4}, wrong
    if kind == "modrelu":
        return unn.ModReLU, lambda: {"num_features": 3}, {"num_features": NO_COUNT}
    return unn.GroupSort, lambda: {"group_size": 2}, {"group_size": NO_COUNT, "dim": (1.5, "x", None)}


def inputs(draw):
    kind = draw.choice("layer", ("linear", "block", "rnn", "cell", "conv", "modrelu", "groupsort"))
    sketch = draw.choice("sketch_rank", (None, 1))
    make = {
        "linear": lambda: (unn.UnitaryLinear(6, 4, sketch_rank=sketch), (2, 6)),
        "block": lambda: (unn.BlockUnitaryLinear(2, 3, sketch_rank=sketch), (2, 6)),
        "rnn": lambda: (unn.UnitaryRNN(6, 4, sketch_rank=sketch), (3, 2, 6)),
        "cell": lambda: (unn.UnitaryRNNCell(6, 4, sketch_rank=sketch), (2, 6)),
        "conv": lambda: (unn.UnitaryConv2d(6, 4, 4, sketch_rank=sketch), (2, 6, 4, 4)),
        "modrelu": lambda: (unn.ModReLU(6), (2, 6)),
        "groupsort": lambda: (unn.GroupSort(2), (2, 6)),
    }
    layer, shape = make[kind]()
    wrong = [*NO_TENSOR, torch.ones(())]
    features = list(shape)
    features[1 if kind == "conv" else -1] = 5
    wrong.append(torch.ones(features))
    if kind not in ("conv", "modrelu", "groupsort"):
        wrong.append(torch.ones(shape, dtype=torch.int64))
    if kind not in ("modrelu", "groupsort"):
        wrong += [torch.ones(shape, dtype=torch.float64), torch.ones(shape, dtype=torch.complex64)]
        features[1 if kind == "conv" else -1] = 1
        wrong.append(torch.ones(features))
    if kind == "groupsort":
        wrong.append(torch.ones(shape, dtype=torch.complex64))
    if kind == "modrelu":
        wrong += [torch.ones(2, 1), torch.ones(1)]
    wrongs, options = {"input": tuple(wrong)}, {"input": torch.randn(shape)}
    if kind in ("rnn", "cell"):
        options["hx"] = torch.randn(1, 2, 4) if kind == "rnn" else torch.randn(2, 4)
        wrongs["hx"] = ("x", 3, torch.ones(4), torch.ones(2, 5), options["hx"].to(torch.complex64))

    def run(**arguments):
        return layer(**arguments)

    return run, lambda: dict(options), wrongs


def optimizers(draw):
    rule = draw.choice("rule", ("SGD", "RMSprop", "AdamW", "Lion"))
    layer = unn.UnitaryLinear(3, 3)
    half = UnitaryParameter(torch.eye(3, dtype=torch.float16))
    wrong = {
        "params": ([], [half], ["x"]),
        "lr": (-1.0,),
        "rank": NO_RANK,
        "retraction": (*NO_WORD, None),
        "factorization": (*NO_WORD, None),
        "unitary_lr": (-1.0, float("nan"), "x"),
        "polish_every": (-1, 1.5, "x"),
        "weight_decay": (-1.0,),
    }
    wrong |= (
        {"momentum": (-1.0,)} if rule in ("SGD", "RMSprop") else {"betas": ((2.0, 0.9), (0.9, -1.0))}
    )
    return getattr(optim, rule), lambda: {"params": layer.parameters(), "lr": 0.1}, wrong


def groups(draw):
    """Options of a group, edited after the optimizer was made."""
    rule, layer = draw.choice("rule", ("SGD", "RMSprop", "AdamW", "Lion")), unn.UnitaryLinear(3, 3)
    wrong = {
        "rank": (0, -1, 1.5, "1", None),
        "retraction": ("zzz", 3, None),
        "factorization": ("zzz", 3, None),
        "unitary_lr": (-1.0, "x"),
        "polish_every": (-1, "x"),
    }
    weight = layer.weight

    def step(weight, **options):
        optimizer = getattr(optim, rule)(layer.parameters(), lr=0.1)
        optimizer.param_groups[0].update(options)
        layer.weight.grad = torch.ones(3, 3)
        optimizer.step()

    # The weight must not have moved when the step is refused; a right step is one with rate 0.
    return step, lambda: {"weight": weight, "unitary_lr": 0.0}, wrong


def added_groups(draw):
    wrong = {
        "rank": NO_RANK,
        "retraction": NO_WORD,
        "factorization": NO_WORD,
        "unitary_lr": (-1.0, "x"),
        "polish_every": (-1, 1.5),
    }

    def add(**options):
        optimizer = optim.SGD(unn.UnitaryLinear(3, 3).parameters(), lr=0.1)
        optimizer.add_param_group({"params": list(unn.UnitaryLinear(2, 2).parameters()), **options})

    return add, lambda: {"rank": 1}, wrong


def others(draw):
    door = draw.choice("function", ("backend", "select_blocks", "certified_accuracy", "lipschitz_bound"))
    if door == "backend":

        def choose(name):
            with projunn.backend(name):
                pass

        return choose, lambda: {"name": "torch"}, {"name": (*NO_WORD, None)}
    if door == "select_blocks":
        bank = UnitaryParameter(haar(4, 3, 3))
        wrong = {
            "bank": (UnitaryParameter(haar(3, 3)), torch.ones(4, 3, 3), *NO_TENSOR),
            "indices": (
                torch.ones(2, 2, dtype=torch.int64),
                torch.ones(2),
                [0, 1],
                None,
                torch.tensor([9]),
            ),
        }
        return unn.select_blocks, lambda: {"bank": bank, "indices": torch.tensor([0, 2])}, wrong
    if door == "lipschitz_bound":
        wrong = {"model": (3, None, nn.BatchNorm1d(3), nn.LSTM(2, 2), unn.UnitaryRNN(2, 2))}
        return projunn.lipschitz_bound, lambda: {"model": nn.Linear(2, 2)}, wrong
    options = {
        "model": nn.Linear(3, 3),
        "batches": [(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))],
        "radii": [0.1],
    }
    wrong = {
        "radii": ([-1.0], [float("nan")], [float("inf")], ["x"]),
        "lipschitz": (-1.0, float("nan"), float("inf"), "x"),
        "batches": ([],),
    }
    return projunn.certified_accuracy, lambda: dict(options), wrong


def loading(draw):
    """State of an optimizer for matrices of another shape."""

    def state(n, count=1):
        layer = nn.Sequential(*(unn.UnitaryLinear(n, n, bias=False) for _ in range(count)))
        optimizer = optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        for p in layer.parameters():
            p.grad = torch.ones(n, n)
        optimizer.step()
        return optimizer.state_dict()

    own = unn.UnitaryLinear(3, 3, bias=False)
    optimizer = optim.SGD(own.parameters(), lr=0.1, momentum=0.9)

    def load(state_dict):
        optimizer.load_state_dict(state_dict)

    return load, lambda: {"state_dict": state(3)}, {"state_dict": (state(4), state(3, 2))}


DOORS = {
    function.__name__: function
    for function in (
        *(retract, factorize, measures, initialisers, constrain, project, layers, inputs, inputs),
        *(optimizers, groups, added_groups, others, loading),
    )
}
