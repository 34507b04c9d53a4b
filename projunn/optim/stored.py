"""The state of a unitary parameter as a checkpoint has it, made into the one that its steps keep.

torch.optim's average of a complex parameter's squares       the sum of those of both parts
average B of dense gradients, where they are now sketched    its largest parts, as factors
average V of squares, likewise                               its row and column means
factors and means, where gradients are now dense             L R^H, and R_i C_j / mean(R)
another rank                                                 columns are cut off, or added
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from projunn.layout import as_matrices
from projunn.manifold import UnitaryParameter, view_like
from projunn.noticing import first_few, paths_of, warn
from projunn.optim.gradient.dense import stored_like
from projunn.optim.gradient.factored import average_columns, truncated
from projunn.optim.member import COUNTERS, counter
from projunn.optim.options import CAN_STOP, WARM
from projunn.parameter import is_unitary, recognise
from projunn_kernels import adjoint_product, orthonormalize, seeded_normal

# The averages of the rules, and whether a rule has one under all of its options.
_AVERAGES = {
    "SGD": {"momentum_buffer": False},
    "RMSprop": {"square_avg": True, "grad_avg": False, "momentum_buffer": False},
    "AdamW": {"exp_avg": True, "exp_avg_sq": True, "max_exp_avg_sq": False},
    "Lion": {"exp_avg": True},
}


@torch.no_grad()
def fit_state(
    p: UnitaryParameter, state: dict[str, Any], averages: dict[str, bool], maximize: bool = False
) -> None:
    """Make loaded state that of ``p``, in place.

    From then on it has an entry ``missed``, which tells it from state of `torch.optim`.

    Args:
        p: the parameter, whose ``sketch`` says whether gradients are in factors, and at which rank.
        state: its state.
        averages: the rule's averages, and whether one is of squares.
        maximize: that of its group, with which `torch.optim` averages the negative gradient.

    Raises:
        ValueError: state of another shape.
    """
    for name in [name for name, value in state.items() if value is None]:
        del state[name]  # torch.optim.SGD's buffer, without momentum
    of_torch = state.keys().isdisjoint(("missed", "probe"))
    for name in (name for name, squares in averages.items() if maximize and of_torch and not squares):
        if name in state:
            state[name] = -state[name]  # not in place: the optimizer that was saved may hold it too
    if "step" in state and not isinstance(state["step"], Tensor):
        state["step"] = counter("cpu").add_(int(state["step"]))
    batch = view_like(p, p.detach()).shape[:-2]
    if "missed" not in state:
        state["missed"] = torch.zeros(batch, dtype=COUNTERS["missed"], device=p.device)
    _check(p, "missed", state["missed"], batch)
    for name, squares in averages.items():
        if name in state:
            state[name] = _in_our_layout(p, name, state[name], squares)
        if p.sketch is None:
            _expand(p, state, name)
        elif name in state:
            _compress(p, state, name, squares)
    if p.sketch is None:
        return
    for name, squares in averages.items():
        if f"{name}_left" in state and not squares:
            _resize_average(p, state, name)
    if "basis" in state and "probe" in state:
        _resize_bases(p, state)
        p.sketch.stored_left.copy_(state["basis"])


def check_rule(rule: type, saved: Mapping[Any, Mapping[str, Any]]) -> None:
    """Checks that no saved state of a parameter has the averages of another rule.

    Raises:
        ValueError: one has averages that the rule does not know, or lacks one that it always has.
    """
    own = next((_AVERAGES[kind.__name__] for kind in rule.__mro__ if kind.__name__ in _AVERAGES), {})
    always = {name for name, is_always in own.items() if is_always}
    for state in saved.values() if own else ():
        found = {_average_of(name) for name, value in state.items() if value is not None} - {""}
        if found and not always <= found <= own.keys():
            raise ValueError(
                f"state_dict: got the averages {', '.join(sorted(found))}, which are not those of"
                f" {rule.__name__} ({', '.join(own)}); wanted state of the same rule, or a new optimizer"
                " without load_state_dict"
            )


def _average_of(name: str) -> str:
    """The average that an entry of a state is, or a factor of; "" if it is none."""
    alike = [one for one in chain(*_AVERAGES.values()) if name == one or name.startswith(f"{one}_")]
    return max(alike, key=len, default="")


def take_over(
    p: UnitaryParameter, state: dict[str, Any], averages: dict[str, bool], maximize: bool
) -> tuple[str, str] | None:
    """Make state that the plain rule kept, before `projunn.constrain`, that of ``p``, in place.

    Returns:
        What `kinds_of_state` has of a parameter; None if the state is empty, or that of a unitary one.
    """
    if not state or "missed" in state:
        return None
    fit_state(p, state, averages, maximize)
    if "step" in state:
        state["step"] = state["step"].to(COUNTERS["step"])
    return "gradient", ""


def kinds_of_state(
    groups: Sequence[dict[str, Any]], state: Mapping[Tensor, Any], given: Sequence[dict[str, Any]]
) -> dict[Tensor, tuple[str, str]]:
    """``averages`` and ``factorization`` for which the state of each unitary parameter was made.

    Args:
        groups, state: those of an optimizer.
        given: the groups as they were saved: of `torch.optim` and older versions without ``averages``.
    """
    return {
        p: (saved.get("averages", "gradient"), _made_by(state[p], group["factorization"]))
        for group, saved in zip(groups, given, strict=True)
        for p in group["params"]
        if isinstance(p, UnitaryParameter) and state.get(p)
    }


def _made_by(state: Mapping[str, Any], factorization: str) -> str:
    """The factorization of the steps that made a state: a user may have set another one since.

    Steps that go on as with "tangent" where they have stopped have the basis of their own beside.
    """
    own = factorization in CAN_STOP and WARM[factorization][0] in state
    return "tangent" if WARM["tangent"][0] in state and not own else factorization


def warn_of_plain(groups: list[dict[str, Any]], state: Mapping[Tensor, Any]) -> None:
    """Warns of plain parameters with loaded state of unitary ones (no `constrain` since).

    Args:
        groups, state: those of an optimizer, after ``load_state_dict``.
    """
    every = [p for group in groups for p in group["params"] if "missed" in state.get(p, ())]
    if not all(map(is_unitary, every)):
        recognise()  # a conversion may have changed their class
    plain, paths = [p for p in every if not is_unitary(p)], paths_of(groups)
    if not plain:
        return
    named = first_few([paths.get(id(p), f"one of shape {tuple(p.shape)}") for p in plain])
    warn(
        "state_dict: these parameters were unitary when it was saved, and nothing keeps them so now:"
        f" {named}. Wanted projunn.constrain(model, ...) before the weights are loaded and the"
        " optimizer is made, or a new optimizer if they are to be plain"
    )


@contextmanager
def explained(groups: Sequence[dict[str, Any]], state: Mapping[Tensor, Any]) -> Iterator[None]:
    """Says why a plain rule fails, if it is at the state that a parameter had while it was unitary.

    Args:
        groups: the parameter groups of plain parameters.
        state: that of all parameters.
    """
    try:
        yield
    except (KeyError, RuntimeError) as error:
        for p in (p for group in groups for p in group["params"] if "missed" in state.get(p, ())):
            raise RuntimeError(
                f"params: a parameter of shape {tuple(p.shape)} is plain now, and its state in the"
                " optimizer is that of a unitary one; wanted an optimizer made after"
                " projunn.unconstrain"
            ) from error
        raise


def _in_our_layout(p: UnitaryParameter, name: str, value: Tensor, squares: bool) -> Tensor:
    """A dense average; torch.optim stores it as the parameter is stored."""
    matrices = view_like(p, p.detach())
    wanted = matrices.shape if squares else stored_like(p, matrices).shape
    if squares and value.is_complex():
        value = value.real + value.imag
    if value.shape == p.shape and not squares:
        value = stored_like(p, view_like(p, value))
    elif value.shape == p.shape:
        value = value.sum(-1) if p.pairs else value
        value = as_matrices(value, False, p.blocks, p.singletons)
    _check(p, name, value, wanted)
    return value.contiguous()


def _compress(p: UnitaryParameter, state: dict[str, Any], name: str, squares: bool) -> None:
    """A dense average as the one of sketched gradients."""
    value = state.pop(name)
    if squares:
        state[f"{name}_row"] = value.mean(-1, keepdim=True)
        state[f"{name}_column"] = value.mean(-2, keepdim=True).mT.contiguous()
        return
    matrices = _numbers(p, value)
    assert p.sketch is not None
    columns = average_columns(p.sketch.rank, *matrices.shape[-2:])
    y = seeded_normal(matrices, (*matrices.shape[:-2], matrices.shape[-1], columns), 0)
    for _ in range(3):  # block power iteration
        y = orthonormalize(adjoint_product(matrices, matrices @ y))
    state[f"{name}_left"], state[f"{name}_right"] = stored_like(p, matrices @ y), stored_like(p, y)


def _expand(p: UnitaryParameter, state: dict[str, Any], name: str) -> None:
    """An average of sketched gradients as a dense one."""
    if f"{name}_left" in state:
        left, right = (_numbers(p, state.pop(f"{name}_{side}")) for side in ("left", "right"))
        _check_rows(p, name, left, right)
        state[name] = stored_like(p, left @ right.mH)
    if f"{name}_row" in state:
        row, column = (state.pop(f"{name}_{side}") for side in ("row", "column"))
        _check_rows(p, name, row, column)
        mean = row.mean(-2, keepdim=True).clamp_min(torch.finfo(row.dtype).tiny)
        state[name] = (row / mean) * column.mT


def _resize_average(p: UnitaryParameter, state: dict[str, Any], name: str) -> None:
    assert p.sketch is not None
    left, right = (_numbers(p, state[f"{name}_{side}"]) for side in ("left", "right"))
    _check_rows(p, name, left, right)
    columns = average_columns(p.sketch.rank, left.shape[-2], right.shape[-2])
    missing = columns - left.shape[-1]
    if missing < 0:
        left, right = truncated(left, right, columns)
    elif missing:
        left, right = pad(left, (0, missing)), pad(right, (0, missing))
    state[f"{name}_left"], state[f"{name}_right"] = stored_like(p, left), stored_like(p, right)


def _resize_bases(p: UnitaryParameter, state: dict[str, Any]) -> None:
    """Cut off the last columns of the bases, or add those that a sketch of this layer starts from."""
    assert p.sketch is not None
    start = p.sketch.left
    for name in ("basis", "probe"):
        basis = _numbers(p, state[name])
        columns = min(basis.shape[-1], start.shape[-1])
        _check(p, name, basis[..., :columns], start[..., :columns].shape)
        if columns < start.shape[-1]:
            basis = orthonormalize(torch.cat([basis, start[..., columns:].to(basis.dtype)], -1))
        state[name] = stored_like(p, basis[..., : start.shape[-1]])


def _numbers(p: UnitaryParameter, stored: Tensor) -> Tensor:
    return torch.view_as_complex(stored.contiguous()) if p.pairs else stored


def _check_rows(p: UnitaryParameter, name: str, left: Tensor, right: Tensor) -> None:
    *batch, m, n = view_like(p, p.detach()).shape
    for rows, factor in ((m, left), (n, right)):
        _check(p, name, factor[..., :0], torch.Size((*batch, rows, 0)))


def _check(p: UnitaryParameter, name: str, value: Tensor, wanted: torch.Size) -> None:
    if value.shape != wanted:
        raise ValueError(
            f"state_dict: {name!r} has shape {tuple(value.shape)}, wanted {tuple(wanted)} for a unitary"
            f" parameter of shape {tuple(p.shape)}"
        )
