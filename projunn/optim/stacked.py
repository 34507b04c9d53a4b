"""Parameters of several modules in one tensor, (modules, *shape).

``torch.func.stack_module_state`` makes plain tensors of them, and ``TensorDict.from_modules`` of
tensordict an ``nn.Parameter``.  Nothing but their numbers tells these from others.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from projunn.layout import PLAIN, Layout, as_matrices
from projunn.noticing import first_few, off_manifold, warn
from projunn.parameter import UnitaryParameter, declarations, mark
from projunn_kernels import private

_Held = tuple[nn.Module | None, str, UnitaryParameter]


def mark_stacked(parameters: Sequence[Tensor]) -> None:
    """Makes unitary parameters, in place, of plain tensors that hold stacked ones.

    A tensor does if its first entry is, bit for bit, a unitary parameter that a module holds now.  If
    its matrices are unitary, and no module holds them any more, a warning says what to do.  An
    ``nn.Parameter`` is what its module knows of it: a warning names those that hold stacks of
    unitary ones.
    """
    stacks = [p for p in parameters if type(p) is Tensor and p.ndim > 2 and p.numel()]
    plain = [p for p in parameters if type(p) is nn.Parameter and p.ndim > 2 and p.numel()]
    if not (stacks or plain):
        return
    held = [(found.module, name, p) for found in declarations() for name, _, p in found.held()]
    _warn_of_plain(plain, held)
    for stack in stacks:
        alike = [one for one in held if one[-1].shape == stack.shape[1:]]
        if not alike or private.is_fake(stack):
            continue
        first = stack.detach()[0]
        same = [p for _, _, p in alike if _equal(p, first)]
        if same:
            mark(stack, _layout(same[0]))
            continue
        module, name, p = alike[0]
        if off_manifold(as_matrices(stack.detach(), *_layout(p))) is None:
            _warn(stack, f"{name} of {type(module).__name__}", _layout(p))


def _layout(p: UnitaryParameter) -> Layout:
    return Layout(p.pairs, p.blocks, p.singletons)


def _equal(p: UnitaryParameter, entry: Tensor) -> bool:
    """Whether a parameter has the numbers of an entry, on whatever device and in its dtype."""
    if type(p) is not UnitaryParameter or private.is_fake(p) or p.is_complex() != entry.is_complex():
        return False
    return torch.equal(p.detach().to(entry), entry)


def _warn_of_plain(stacks: Sequence[Tensor], held: Sequence[_Held]) -> None:
    """Names stacks whose first entry is a unitary parameter, bit for bit, and that are plain."""
    shapes = {p.shape for _, _, p in held}
    if not (stacks := [p for p in stacks if p.shape[1:] in shapes and not private.is_fake(p)]):
        return
    known = {
        _fingerprint(p): (p, f"{name} of {type(module).__name__}")
        for module, name, p in held
        if type(p) is UnitaryParameter and not private.is_fake(p)
    }
    found = []
    for stack in stacks:
        first = stack.detach()[0]
        same, name = known.get(_fingerprint(first), (None, ""))
        # Matrices of zeros and ones are drawn by other initialisers too.
        if same is not None and _equal(same, first) and ((first.abs() - 0.5).abs() != 0.5).any():
            options = _options(_layout(same))[2:]
            found.append(f"{tuple(stack.shape)} those of {name}{options and f' ({options})'}")
    if found:
        warn(
            "params: plain parameters hold stacks of unitary ones, and are stepped like any other:"
            f" {first_few(found)}; wanted projunn.constrain(module, names) for the module that"
            " holds them, or projunn.UnitaryParameter(tensor) in their place, with the"
            " options in brackets"
        )


def _fingerprint(tensor: Tensor) -> tuple[Any, ...]:
    """The shape and the first numbers of a tensor."""
    return tensor.shape, *tensor.detach().reshape(-1)[:4].tolist()


def _options(layout: Layout) -> str:
    """The arguments of `UnitaryParameter` for a layout."""
    told = layout._asdict().items()
    return "".join(f", {key}={value}" for key, value in told if value != getattr(PLAIN, key))


def _warn(stack: Tensor, name: str, layout: Layout) -> None:
    warn(
        f"params: a plain tensor of shape {tuple(stack.shape)} holds unitary matrices, as {name} does,"
        " but is no parameter of a module, and is stepped like any other; wanted"
        f" projunn.UnitaryParameter(tensor{_options(layout)}), or, for what"
        " torch.func.stack_module_state has stacked, an optimizer that is made while the modules still"
        " hold those weights"
    )
