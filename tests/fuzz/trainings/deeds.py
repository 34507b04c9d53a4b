"""What changes something, for a training and its twin alike.

Each is a function of a `Draw`, of a `Training` and of the `Facts`, which it corrects; it returns what is
to be done to either training, or None if it does not apply.
"""

import copy

import torch
from torch import nn

import projunn
from projunn import UnitaryParameter
from projunn_kernels import RETRACTIONS
from tests.fuzz.checks import check, flat, same
from tests.fuzz.trainings.nets import BATCH, SIZE, TIME, kinds, made
from tests.fuzz.trainings.training import OF_PLAIN, OF_UNITARY, weaken

FACTORIZATIONS = ("subspace", "single_pass", "lsi", "column", "svd", "tangent")


def drawn_batch(draw, training):
    kind = draw.unnamed((torch.float32, torch.float32, torch.float64))
    kind = kind.to_complex() if training.dtype.is_complex else kind
    return draw.randn(BATCH, TIME, SIZE, dtype=kind)


def drawn_options(draw, rule, sketch):
    options = {
        "lr": draw.unnamed((1e-3, 1e-2)),
        "rank": draw.unnamed((1, 1, 2, 3)),
        "retraction": draw.unnamed(tuple(RETRACTIONS)),
        "factorization": draw.unnamed(("subspace", *FACTORIZATIONS[: 5 if sketch else 6])),
        "polish_every": draw.unnamed((None, None, 1, 3)),
        "unitary_lr": draw.unnamed((None, None, 0.03)),
        "weight_decay": draw.unnamed((0.0, 0.1)),
        "maximize": draw.unnamed((False, False, True)),
    }
    kind = draw.unnamed(("usual", "usual", "tensor", "foreach"))
    if kind == "tensor":
        options["lr"] = torch.tensor(options["lr"])
    elif kind == "foreach" and rule != "Lion":
        options["foreach"] = True
    if rule == "SGD":
        options["capturable"] = draw.unnamed((False, False, True))
        options["momentum"] = draw.unnamed((0, 0.9))
        options["dampening"] = draw.unnamed((0, 0.5))
    elif rule == "RMSprop":
        options["momentum"] = draw.unnamed((0, 0.5))
        options["centered"] = not sketch and draw.unnamed((False, True))
    elif rule == "AdamW":
        options["amsgrad"] = not sketch and draw.unnamed((False, True))
    if rule in ("SGD", "RMSprop", "AdamW") and not sketch:
        options["averages"] = draw.unnamed(("gradient", "gradient", "tangent"))
    return options


def turning_groups(draw, model, rule):
    """Square weights are turned, all others take steps of SGD."""
    known = dict(model.named_parameters())
    square = [name for name, p in known.items() if p.ndim == 2 and p.shape[0] == p.shape[1]]
    options = {
        "lr": draw.unnamed((1e-3, 1e-2)),
        "momentum": draw.unnamed((0, 0.9)),
        "rank": draw.unnamed((1, 2, None) if rule == "SGDG" else (1, 2)),
        "weight_decay": draw.unnamed((0.0, 0.1)),
    }
    own = {"stiefel": True} if rule == "SGDG" else {"sides": draw.unnamed(("both", "left", "right"))}
    rest = [name for name in known if name not in square]
    return [(square, options | own), (rest, options)] if rest else [(square, options | own)]


def drawn_groups(draw, model, rule, sketch):
    """One group or two, each with options of its own; perhaps some parameters are in none."""
    every = [name for name, _ in model.named_parameters()]
    if rule in OF_PLAIN:
        return turning_groups(draw, model, rule)
    cut = draw.below(len(every)) if draw.unnamed((True, False)) else 0
    parts = [every[:cut], every[cut:]] if cut else [every]
    if cut and draw.unnamed((True, False, False)):
        parts = parts[1:]
    groups = [(part, drawn_options(draw, rule, sketch)) for part in parts]
    for _, options in groups:  # which cannot be another one in the course of a training
        options["averages"] = groups[0][1].get("averages", "gradient")
    return groups


def steps(draw, training, facts):
    """Some steps with gradients of several batches, perhaps clipped, hostile or missing."""
    count = draw.unnamed((1,) * 8 + (2,) * 8 + (3,) * 8 + (20,))
    parts = [[drawn_batch(draw, training) for _ in range(draw.unnamed((1, 1, 2)))] for _ in range(count)]
    hostile, lost = drawn_victim(draw, training), draw.unnamed((None, None, 0, -1))
    clip = draw.unnamed((None, None, 0.1))
    none, clean = draw.unnamed((True, True, False)), draw.unnamed((True, True, False))

    def act(training, way="plainly"):
        for i, batches in enumerate(parts):
            last = i == count - 1
            gradients(training, batches, way, clip)
            if last and lost is not None:
                [*training.model.parameters()][lost].grad = None
            one_step(training, way, hostile if last else None)
            training.model.zero_grad(set_to_none=none)
        if clean:
            training.model.zero_grad()

    return act


def gradients(training, batches, way, clip):
    """Gradients of batches, added up; scaled by a power of two, and back, they are the same."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=way == "scaled")
    for x in batches:
        training.backward(x, scaler.get_scale())
    if way == "scaled" and training.has_gradients():
        held = torch.optim.SGD(training.model.parameters(), lr=0.0)
        scaler.scale(torch.zeros(()))
        scaler.unscale_(held)
    dense = [p for p in training.model.parameters() if p.grad is None or not p.grad.is_sparse]
    if way == "clipped":
        nn.utils.clip_grad_norm_(dense, torch.inf)
    if clip is not None:
        nn.utils.clip_grad_norm_(dense, clip)


def drawn_victim(draw, training):
    """A unitary parameter and what its gradient is spoiled by, or None."""
    entry = draw.unnamed((None, None, None, torch.nan, torch.inf))
    every = sorted(training.unitary | training.turned())
    return None if entry is None or not every else (draw.unnamed(every), entry)


def one_step(training, way, hostile):
    """A step; a weight whose gradient is spoiled stays as it is."""
    p = None if hostile is None else training.every()[hostile[0]]
    if p is None or p.grad is None or p.numel() == 0:
        training.step(way)
        return
    weaken(p.grad, hostile[1])
    before, sparse = first_matrix(p).clone(), p.grad.is_sparse
    training.step(way)
    alike = sparse or same(before, first_matrix(p))
    check(alike, f"{hostile[0]} moved by a gradient that is not finite")
    p.grad = None


def first_matrix(p):
    """Of all that a parameter holds: its first entry is where a gradient is spoiled."""
    return flat(projunn.matrix_view(p.detach()))[0]


def wait(draw, training, facts):
    """Gradients that wait for a step."""
    x = drawn_batch(draw, training)
    return lambda training: training.backward(x)


def options(draw, training, facts):
    """An option of a group is set by hand."""
    index = draw.below(len(training.optimizer.param_groups))
    group = training.optimizer.param_groups[index]
    if training.rule in OF_PLAIN:
        new = dict(turning_groups(draw, training.model, training.rule)[0][1])
    else:
        new = drawn_options(draw, training.rule, training.sketch)
    for fixed in ("averages", "stiefel", "sides", "capturable", "foreach"):
        new.pop(fixed, None)
    name = draw.unnamed(sorted(new))
    if name == "lr" and torch.is_tensor(group["lr"]) != torch.is_tensor(new["lr"]):
        return None
    # To maximise turns the averages of earlier gradients too, and what PyTorch's rules keep of plain
    # parameters is made in the first step.
    if name in ("maximize", "amsgrad", "centered") or (
        name == "momentum" and training.rule == "RMSprop"
    ):
        return None

    def act(training):
        training.optimizer.param_groups[index][name] = copy.deepcopy(new[name])

    return act


def schedule(draw, training, facts):
    factor = draw.unnamed((0.5, 2.0))

    def act(training):
        torch.optim.lr_scheduler.LambdaLR(training.optimizer, lambda epoch: factor**epoch).step()

    return act


def freeze(draw, training, facts):
    name, flag = draw.unnamed(sorted(training.parameters())), draw.unnamed((True, False))

    def act(training):
        p = training.parameters()[name]
        p.requires_grad_(flag)
        p.grad = None

    return act


def mode(draw, training, facts):
    flag = draw.unnamed((True, False))
    return lambda training: training.model.train(flag)


def new_optimizer(draw, training, facts):
    rules = (
        OF_PLAIN if training.rule in OF_PLAIN else OF_UNITARY[: None if training.sketch is None else 3]
    )
    rule = draw.unnamed(rules)
    groups = drawn_groups(draw, training.model, rule, training.sketch)
    facts.unsettled.clear()
    return lambda training: training.start(rule, copy.deepcopy(groups))


def add_layer(draw, training, facts):
    """Another layer, whose parameters are a group of their own."""
    kind, number = draw.unnamed(kinds(training.dtype)), len(training.model.layers)
    layer = made(kind, training.dtype, training.sketch)
    options = drawn_options(draw, training.rule, training.sketch)
    options["averages"] = training.optimizer.param_groups[0]["averages"]
    group = [f"layers.{number}.{name}" for name, _ in layer.named_parameters()]
    unitary = {n for n, p in layer.named_parameters() if isinstance(p, UnitaryParameter)}

    def act(training):
        sort = training.dtype, training.sketch
        training.change(lambda model: model.layers.append(made(kind, *sort)))
        training.unitary |= {f"layers.{number}.{name}" for name in unitary}
        training.model.layers[number].load_state_dict(copy.deepcopy(layer.state_dict()))
        known = training.parameters()
        params = [(name, known[name]) if training.named else known[name] for name in group]
        training.optimizer.add_param_group({"params": params, **copy.deepcopy(options)})
        training.groups = [*training.groups, (group, options)]

    return act if group else None


# Those of training with plain parameters alone, and those of any.
OF_ANY = (steps,) * 8 + (wait, options, options, schedule, freeze, mode, new_optimizer)
DEEDS = (*OF_ANY, add_layer)
