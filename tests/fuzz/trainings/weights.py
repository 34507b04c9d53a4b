"""Deeds on weights and on the structure of a model; the form of each is that of `deeds`."""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import projunn
from projunn.nn import OrthogonalFinetuning, finetune, merge
from tests.fuzz.checks import check
from tests.fuzz.trainings.deeds import drawn_batch, drawn_groups, one_step, steps
from tests.fuzz.trainings.harmless import example
from tests.fuzz.trainings.nets import Chosen
from tests.fuzz.trainings.training import OF_PLAIN


def edit(draw, training, facts):
    """Other numbers in a unitary weight, by hand; perhaps it is projected at once."""
    every = sorted(name for name, p in training.names() if name in training.unitary and p.numel())
    if not every:
        return None
    name, how = draw.unnamed(every), draw.unnamed(("copy", "mul", "data", "load", "haar"))
    p = training.every()[name]
    numbers = draw.randn(*p.shape, dtype=p.dtype) if how != "mul" else p.detach() * 1.5
    projected = draw.unnamed((None, "weight", "model"))
    if projected is not None or how == "haar":
        facts.projected(every if projected == "model" else [n for n, q in training.names() if q is p])

    def act(training):
        p = training.every()[name]
        if how == "load":
            training.model.load_state_dict(training.model.state_dict() | {name: numbers.clone()})
        elif how == "data":
            p.data = numbers.clone()
        elif how == "haar":
            projunn.init.haar_(p.data, torch.Generator().manual_seed(0))
        else:
            with torch.no_grad():
                p.copy_(numbers)
        if projected is not None:
            projunn.project_(p if projected == "weight" else training.model)

    return act


def project(draw, training, facts):
    if not training.unitary:
        return None
    facts.projected(training.unitary)
    return lambda training: projunn.project_(training.model)


def constrain(draw, training, facts):
    """A plain linear layer becomes unitary; the optimizer may go on."""
    plain = [
        f"{path}.weight"
        for path, module in training.model.named_modules()
        if type(module) is nn.Linear and f"{path}.weight" not in training.unitary
    ]
    if not plain:
        return None
    name = draw.unnamed(plain)
    p = training.every()[name]
    names = {other for other, q in training.names() if q is p}
    tangent = any(group["averages"] == "tangent" for group in training.optimizer.param_groups)
    anew = new_start(draw, training) if tangent or draw.unnamed((True, False)) else None
    if anew is None and training.optimizer.state.get(p):
        facts.unsettled.add(tuple(p.shape))

    def act(training):
        training.change(lambda model: projunn.constrain(model, name))
        training.unitary |= names
        if anew is not None:
            anew(training)

    return act


def new_start(draw, training, model=None):
    """Going on with a new optimizer of the same rule."""
    groups = drawn_groups(draw, model or training.model, training.rule, training.sketch)
    return lambda training: training.start(training.rule, copy.deepcopy(groups))


def unconstrain(draw, training, facts):
    if any(isinstance(module, Chosen) for module in training.model.modules()):
        return None  # which needs unitary matrices
    anew = new_start(draw, training)
    facts.forget()

    def act(training):
        training.change(projunn.unconstrain)
        training.unitary = set()
        anew(training)

    return act


def convert(draw, training, facts):
    """To another precision; the state of the optimizer follows, or it is made anew."""
    if training.dtype.is_complex:
        return None
    double = training.dtype == torch.float32
    anew = new_start(draw, training) if draw.unnamed((True, False)) else None
    facts.single = True

    def act(training):
        training.change(nn.Module.double if double else nn.Module.float)
        training.dtype = torch.float64 if double else torch.float32
        training.model.zero_grad()
        if anew is not None:
            anew(training)
        else:
            training.optimizer.load_state_dict(training.optimizer.state_dict())

    return act


def convert_untold(draw, training, facts):
    """Without a word to the optimizer, which refuses the step and changes nothing."""
    optimizer = training.optimizer
    held = {id(p) for p, state in optimizer.state.items() if "skipped" in state}
    known = [p for name, p in training.names() if name in training.unitary and id(p) in held]
    if training.dtype != torch.float32 or not any(p.requires_grad and p.numel() for p in known):
        return None
    x = drawn_batch(draw, training)

    def act(training):
        training.model.double().zero_grad()
        training.dtype = torch.float64
        training.backward(x)
        given = [p for name, p in training.names() if name in training.unitary and p.grad is not None]
        refused = False
        if any("skipped" in training.optimizer.state.get(p, ()) for p in given):
            try:
                training.optimizer.step()
            except TypeError as error:
                refused = "made after the conversion" in str(error)
            check(refused, "a step after a conversion was taken")
        training.model.float().zero_grad()
        training.dtype = torch.float32

    return act


def other_steps(draw, training, facts):
    """Steps of torch.optim.SGD, which takes weights off the manifold."""
    x, count = drawn_batch(draw, training), draw.unnamed((1, 2))

    def act(training):
        training.model.zero_grad()
        optimizer = torch.optim.SGD(training.model.parameters(), lr=1e-2)
        for _ in range(count):
            optimizer.zero_grad()
            training.backward(x)
            optimizer.step()
        training.model.zero_grad()

    return act


def tie(draw, training, facts):
    """Two layers share a weight, which share none with others."""
    taken = {path for pair in training.ties for path in pair}
    every = [
        (path, module)
        for path, module in training.model.named_modules()
        if type(module) in (nn.Linear, projunn.nn.UnitaryLinear)
        and path not in taken
        and "linear" not in path
    ]
    pairs = [
        (one, other)
        for one, first in every
        for other, second in every
        if one < other and alike(first, second)
    ]
    if not pairs or any(isinstance(m, OrthogonalFinetuning) for m in training.model.modules()):
        return None
    pair = draw.unnamed(pairs)
    probe = copy.deepcopy(training)
    probe.ties.append(pair)
    probe.tie(probe.model)
    anew = new_start(draw, training, probe.model)
    names = {f"{pair[1]}.weight"} if f"{pair[0]}.weight" in training.unitary else set()
    facts.forget()

    def act(training):
        if training.unitary:
            projunn.project_(training.model)
        training.ties.append(pair)
        training.tie(training.model)
        training.unitary |= names
        anew(training)

    return act


def alike(first, second):
    """Whether a weight has the same matrices in two layers, and is none of both yet."""
    p, q = first.weight, second.weight
    kinds = [(w.shape, getattr(w, "blocks", None), type(m)) for w, m in ((p, first), (q, second))]
    return kinds[0] == kinds[1] and p is not q


def average(draw, training, facts):
    """Goes on with the average of two states of the model."""
    some, anew = steps(draw, training, facts), new_start(draw, training)
    facts.forget()

    def act(training):
        averaged = AveragedModel(training.model)
        averaged.update_parameters(training.model)
        some(training)
        averaged.update_parameters(training.model)
        training.model = averaged.module
        if training.unitary:
            projunn.project_(training.model)
        anew(training)

    return act


def turn(draw, training, facts):
    """Rotations around all linear layers."""
    plain = [m for m in training.model.modules() if type(m) is nn.Linear]
    inside = [m.linear for m in training.model.modules() if isinstance(m, OrthogonalFinetuning)]
    if training.dtype.is_complex or training.ties or len(plain) == len(inside) or facts.off:
        return None
    return restructured(draw, training, lambda model: finetune(model, "*", 2))


def merged(draw, training, facts):
    """The plain layers again, unless an `unconstrain` has left rotations that are none any more."""
    rotations = [name for name, _ in training.names() if name.endswith(".rotation")]
    if facts.off or not rotations or not training.unitary.issuperset(rotations):
        return None
    return restructured(draw, training, merge)


def restructured(draw, training, change):
    """A change that computes the same with other parameters, for a new optimizer."""
    probe = change(copy.deepcopy(training.model))
    anew = new_start(draw, training, probe)
    there = dict(probe.named_parameters(remove_duplicate=False))
    moved = {name.replace(".linear.weight", ".weight"): name for name in there}
    kept = {
        moved[name]
        for name in (n.replace(".linear.weight", ".weight") for n in training.unitary)
        if name in moved
    }
    known = training.every().keys()
    unitary = kept | {name for name in there if name.endswith(".rotation") and name not in known}

    def act(training):
        with torch.no_grad():
            x = example(training)
            before = training.model(x)
            training.change(change)
            error = (training.model(x) - before).abs().max()
        check(not error > 1e-4, f"the model is off by {error:.2g}")
        training.unitary = unitary
        training.model.zero_grad()
        anew(training)

    return act


def from_torch(draw, training, facts):
    """A step of PyTorch's optimizer, whose state ours of the same name goes on with."""
    sparse = any(isinstance(module, Chosen) for module in training.model.modules())
    if training.sketch is not None or sparse or training.rule == "Lion":
        return None
    x, lr = drawn_batch(draw, training), draw.unnamed((1e-3, 1e-2))
    more = {"maximize": draw.unnamed((False, True))}
    if training.rule != "AdamW":
        more["momentum"] = draw.unnamed((0, 0.9))
    facts.forget()

    def act(training):
        theirs = getattr(torch.optim, training.rule)(training.model.parameters(), lr=lr, **more)
        training.model.zero_grad()
        training.backward(x)
        theirs.step()
        training.model.zero_grad()
        if training.unitary:
            projunn.project_(training.model)
        training.start(training.rule, [([*training.parameters()], {"lr": lr, **more})])
        training.optimizer.load_state_dict(theirs.state_dict())

    return act


def refused(draw, training, facts):
    """An option that cannot be: the step is refused and changes nothing."""
    wrong = (("rank", 0), ("retraction", "none"), ("unitary_lr", -1.0))
    name, value = draw.unnamed(wrong[: 1 if training.rule in OF_PLAIN else 3])
    x = drawn_batch(draw, training)

    def act(training):
        training.backward(x)
        group = training.optimizer.param_groups[0]
        before, group[name] = group[name], value
        try:
            one_step(training, "plainly", None)
        except ValueError as error:
            check(name in str(error), str(error))
        else:
            check(False, f"{name}={value!r} was taken")
        group[name] = before
        training.model.zero_grad()

    return act


# After which weights may be off the manifold, and during which.
EDITS, MEANWHILE = (edit, other_steps), (edit, other_steps, from_torch, average)
DEEDS = (edit, edit, project, project, constrain, constrain, unconstrain, convert, convert_untold)
DEEDS += (other_steps, tie, average, turn, merged, merged, from_torch, refused)
OF_ANY = (convert, refused)
