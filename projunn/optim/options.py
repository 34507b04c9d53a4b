"""The options of unitary parameters in a parameter group: their checks, and their learning rate."""

from collections.abc import Sequence
from difflib import get_close_matches
from math import sqrt
from numbers import Real
from operator import is_, itemgetter
from typing import Any

import torch
from torch import Tensor

from projunn.arguments import is_whole, one_of, positive
from projunn.layout import as_matrices
from projunn.lowrank import FACTORIZATIONS as OF_A_MATRIX
from projunn.noticing import warn
from projunn.parameter import is_unitary
from projunn_kernels import RETRACTIONS
from projunn_kernels.private import is_fake

# Where the factors of a step come from: "tangent" needs the weight too, the others the direction alone.
FACTORIZATIONS = (*OF_A_MATRIX, "single_pass", "tangent")
# Those that keep a basis from step to step, the names of it and of its probe in the state: one of the
# rows of W, one of its rows and then of its columns, and one of its larger side.
WARM = {
    "subspace": ("basis", "probe"),
    "single_pass": ("single_pass_basis", "single_pass_probe"),
    "tangent": ("tangent_basis", "tangent_probe"),
}
# What a rule averages: G, or its tangent part.
AVERAGES = ("gradient", "tangent")
# Those whose steps can stop where the factors are normal to the manifold (`projunn.optim.stopping`).
CAN_STOP = ("subspace", "single_pass")

# Of the default unitary learning rate of SGD: lr_divider in the experiments of arXiv 2203.05483.
_LR_DIVIDER = 32
# Of the others, in multiples of lr: the angle of one matrix in a step, and the sum of all.
_ANGLE, _ALL_ANGLES = 16, 256
_SHOWN = 4  # shapes of which a printed optimizer shows the rate


def angle_of_each(count: int) -> float:
    """The angle that a step turns each of ``count`` unitary parameters by, about, in multiples of lr.

    A rule that divides by the root of second moments, or takes signs, has directions D whose entries are
    about 1 in size: an m x n one of rank 1 has the singular value sqrt(mn), so that a step of rate
    angle * lr / sqrt(mn) turns W by angle * lr.  Layers that follow each other turn what passes through
    them by the sum of their angles, hence its limit.
    """
    return min(_ANGLE, _ALL_ANGLES / max(1, count))


def unitary_learning_rate(group: dict[str, Any], shape: Sequence[int]) -> Any:
    """The learning rate of unitary parameters of a group: a float, or a tensor if ``lr`` is one.

    Args:
        group: ``unitary_lr`` in proportion to ``lr``.  If it is None, angle * lr / sqrt(mn), where the
            group's ``default_angle`` is a number (`angle_of_each`), and lr / 32 where it is None.
        shape: (.., m, n) of the matrices.
    """
    lr, unitary_lr, base_lr = group["lr"], group["unitary_lr"], group["base_lr"]
    if unitary_lr is None:
        angle = group["default_angle"]
        return lr / _LR_DIVIDER if angle is None else lr * (angle / sqrt(shape[-2] * shape[-1]))
    if not isinstance(unitary_lr, Tensor) and unitary_lr == 0:  # also where lr starts at 0
        return 0 * lr
    if not isinstance(base_lr, Tensor) and base_lr == 0:  # loaded from an older version
        _refuse_zero(unitary_lr)
    return unitary_lr * (lr / base_lr)


def filled_up(saved: list[dict[str, Any]], groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Saved groups with the options that they lack, as those of an optimizer have them."""
    own = groups if len(groups) == len(saved) else [{}] * len(saved)  # which PyTorch refuses
    return [{**known, **loaded} for known, loaded in zip(own, saved, strict=True)]


def rates_of_now(group: dict[str, Any]) -> str:
    """The rate that a printed ``unitary_lr`` stands for, if it is None or a schedule has moved it."""
    given, base_lr = group["unitary_lr"], float(group["base_lr"])
    if given is not None:
        moved = base_lr != 0 and float(group["lr"]) != base_lr
        return f"now {float(unitary_learning_rate(group, ())):.3g}" if moved else ""
    rates = _default_rates(group)
    return f"which is {rates}" if rates else ""


def _default_rates(group: dict[str, Any]) -> str:
    """The default learning rates of a group's unitary parameters: one, or those of each shape."""
    if group["default_angle"] is None:
        return str(unitary_learning_rate(group, ()))
    sizes: dict[tuple[int, ...], float] = {}
    for p in filter(is_unitary, group["params"]):
        like = torch.empty(p.shape, dtype=p.dtype, device="meta")
        *_, m, n = as_matrices(like, p.pairs, p.blocks, p.singletons).shape
        sizes[m, n] = float(unitary_learning_rate(group, (m, n)))
    said = [f"{rate:.3g} ({m} x {n})" for (m, n), rate in sizes.items()]
    return ", ".join([*said[:_SHOWN], *(["..."] if said[_SHOWN:] else [])])


def _refuse_zero(unitary_lr: Any) -> None:
    raise ValueError(
        f"unitary_lr: got {unitary_lr} where lr starts at 0, but it moves in proportion to lr when a"
        " schedule changes that; wanted lr > 0, the schedule's peak, which a scheduler may start below"
        " (to train the unitary parameters alone, put them into a param group of their own)"
    )


def whole(value: Any) -> Any:
    """An integer of whatever kind, such as NumPy's, as Python's; anything else as it is."""
    return int(value) if is_whole(value) else value


# What PyTorch and its schedulers keep in parameter groups beside the options of an optimizer.
_OTHERS = {"params", "param_names", "initial_lr", "base_lr", "max_lr", "min_lr"}
_OTHERS |= {"base_momentum", "max_momentum"}
_NEAR = 0.8  # of `difflib`: one letter more or fewer in a name of four letters or more


def warn_of_misspelt(group: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Warns of keys of a new parameter group that are nearly the name of an option.

    Programs keep keys of their own in groups, so that all are taken, as `torch.optim` takes them.
    """
    for name in group.keys() - defaults.keys() - _OTHERS:
        near = get_close_matches(str(name), defaults, 1, _NEAR)
        if near:
            warn(
                f"params: a group has the key {name!r}, which is no option of this optimizer and has no"
                f" effect; did you mean {near[0]!r}?"
            )


_CHECKED = ("rank", "retraction", "factorization", "averages", "unitary_lr", "polish_every")
_values = itemgetter(*_CHECKED)


def check_edited(
    groups: list[dict[str, Any]], known: tuple[tuple[Any, ...], ...]
) -> tuple[tuple[Any, ...], ...]:
    """Checks the options of groups whose values are not the objects that they were at the last check.

    Args:
        groups: the parameter groups of an optimizer.
        known: the values at the last check, a tuple for each group, as this function returned them.
    """
    if len(known) == len(groups) and all(
        all(map(is_, _values(g), k)) for g, k in zip(groups, known, strict=True)
    ):
        return known
    for group in groups:
        for name in ("rank", "polish_every"):
            group[name] = whole(group[name])
        check_options(group)
    return tuple(_values(group) for group in groups)


def check_options(group: dict[str, Any]) -> None:
    """Raise ValueError if an option of a parameter group is out of its range."""
    rank, every, unitary_lr = group["rank"], group["polish_every"], group["unitary_lr"]
    positive("rank", rank)
    one_of("retraction", group["retraction"], RETRACTIONS)
    one_of("factorization", group["factorization"], FACTORIZATIONS)
    one_of("averages", group["averages"], AVERAGES)
    is_number = isinstance(unitary_lr, Real) and float(unitary_lr) >= 0
    if unitary_lr is not None and not isinstance(unitary_lr, Tensor) and not is_number:
        raise ValueError(f"unitary_lr: got {unitary_lr!r}, wanted a number >= 0 or None (the default)")
    if every is not None and (not is_whole(every) or every < 0):
        raise ValueError(
            f"polish_every: got {every!r}, wanted a number of steps, 0 (never) or None (automatic)"
        )


def check_averages(p: Tensor, averages: str, before: str | None) -> None:
    """Raises ValueError if a parameter has averages of the other kind.

    Args:
        p: the parameter.
        averages: the option.
        before: what it was when the parameter's averages were made, if it has some.
    """
    if before not in (None, averages):
        raise ValueError(
            f"averages: got {averages!r} for a parameter of shape {tuple(p.shape)}, which has averages"
            f" of the other kind; wanted {before!r}, or a new optimizer"
        )


def check_rates(group: dict[str, Any]) -> None:
    """Check that an explicit ``unitary_lr`` of a new group can follow its ``lr``."""
    lr, unitary_lr = group["lr"], group["unitary_lr"]
    if unitary_lr is None or (isinstance(lr, Tensor) and is_fake(lr)):
        return
    if float(lr) == 0 and (isinstance(unitary_lr, Tensor) or unitary_lr != 0):
        _refuse_zero(unitary_lr)
