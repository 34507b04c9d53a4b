"""Draws a course, and carries it out."""

import contextlib
import copy
import warnings

import torch

from tests.fuzz.checks import check
from tests.fuzz.draw import DTYPES
from tests.fuzz.trainings import deeds, weights
from tests.fuzz.trainings.harmless import KEEPS_GRADIENTS, KEEPS_SKETCHES, LOADS, WITHOUT_GRADIENTS
from tests.fuzz.trainings.nets import kinds
from tests.fuzz.trainings.promises import (
    Facts,
    check_alike,
    check_recognised,
    check_warnings,
    check_weights,
    note_edits,
)
from tests.fuzz.trainings.training import OF_PLAIN, OF_UNITARY, Training

EVERY, OF_ANY = deeds.DEEDS + weights.DEEDS, deeds.OF_ANY + weights.OF_ANY
# How a step is taken: all are the same.
WAYS = ("plainly", "plainly", "autocast", "closure", "backend", "clipped", "scaled")


def case(draw):
    torch.manual_seed(draw.below(2**31))
    training = drawn_training(draw)
    twin, facts = copy.deepcopy(training), Facts()
    draw.said["course"] = []
    for _ in range(draw.integer("operations", 5, 25)):
        if draw.unnamed((True, False)):
            unharmed(draw, training, facts)
        else:
            deed = draw.unnamed(OF_ANY if training.rule in OF_PLAIN else EVERY)
            done(draw, deed, training, twin, facts)
        check_weights(training, twin, facts)
        check_alike(training, twin, facts)
        if draw.unnamed((True, False, False, False)):
            check_recognised(training)
    check_recognised(training)


def unharmed(draw, training, facts):
    """Do something to the training that changes nothing."""
    more = WITHOUT_GRADIENTS
    if training.has_gradients():
        more = ()
    elif training.starts_sketches():
        more = KEEPS_SKETCHES
    operation = draw.unnamed(KEEPS_GRADIENTS + more)
    draw.said["course"].append(operation.__name__)
    with caught_warnings() as caught:
        operation(training, draw)
    check_warnings(caught, training, facts, operation.__name__)
    if operation in LOADS:
        check(not facts.unsaid, f"{facts.unsaid} were loaded off the manifold in silence")


def done(draw, deed, training, twin, facts):
    """Carry out a deed by both; a step of the training in one of the ways that are the same."""
    act = deed(draw, training, facts)
    if act is None:
        return
    draw.said["course"].append(deed.__name__)
    # GradScaler takes no complex numbers, and all gradients that it divides must have been scaled.
    ways = WAYS[: -1 if training.dtype.is_complex or training.has_gradients() else None]
    way = {"way": draw.unnamed(ways)} if deed is deeds.steps else {}
    if way:
        draw.said["course"][-1] += f" {way['way']}"
    with caught_warnings() as caught:
        act(training, **way)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        act(twin)
    if deed in weights.EDITS:
        note_edits(training, twin, facts)
    check_warnings(caught, training, facts, deed.__name__, deed in weights.MEANWHILE)


@contextlib.contextmanager
def caught_warnings():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def drawn_training(draw):
    dtype, named = draw.choice("dtype", DTYPES), draw.choice("named", (True, False))
    rule = draw.choice("rule", OF_UNITARY * 3 + OF_PLAIN)
    sketch = None if rule in ("Lion", *OF_PLAIN) else draw.choice("sketch_rank", (None, None, 2))
    some = kinds(dtype) if rule in OF_UNITARY else ("plain", "plain", "modrelu")
    layers = [draw.unnamed(some) for _ in range(draw.below(3) + 1)]
    if rule in OF_PLAIN or draw.unnamed((True, False, False)):
        some = ("linear", "constrained") if rule in OF_UNITARY else ("plain",)
        layers += [draw.unnamed(some)] * 3
    draw.said["layers"] = layers
    training = Training(layers, dtype, sketch, named)
    training.start(rule, deeds.drawn_groups(draw, training.model, rule, sketch))
    return training
