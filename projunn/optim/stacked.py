"""Parameters of several modules in one tensor, as ``torch.func.stack_module_state`` makes them.

It returns plain tensors, (modules, *shape), which nothing but their numbers tells from others.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from projunn.layout import PLAIN, Layout, as_matrices
from projunn.noticing import caller, off_manifold
from projunn.parameter import UnitaryParameter, declarations, mark
from projunn_kernels import private


def mark_stacked(parameters: Sequence[Tensor]) -> None:
    """Makes unitary parameters, in place, of plain tensors that hold stacked ones.

    A tensor does if its first entry is, bit for bit, a unitary parameter that a module holds now.  If
    its matrices are unitary, and no module holds them any more, a warning says what to do.  An
    ``nn.Parameter`` is what its module knows of it.
    """
    stacks = [p for p in parameters if type(p) is Tensor and p.ndim > 2 and p.numel()]
    if not stacks:
        return
    held = [(found.module, name, p) for found in declarations() for name, _, p in found.held()]
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


def _warn(stack: Tensor, name: str, layout: Layout) -> None:
    told = layout._asdict().items()
    options = "".join(f", {key}={value}" for key, value in told if value != getattr(PLAIN, key))
    filename, line = caller()
    warnings.warn_explicit(
        f"params: a plain tensor of shape {tuple(stack.shape)} holds unitary matrices, as {name} does,"
        " but is no parameter of a module, and is stepped like any other; wanted"
        f" projunn.UnitaryParameter(tensor{options}), or, for what torch.func.stack_module_state has"
        " stacked, an optimizer that is made while the modules still hold those weights",
        UserWarning,
        filename,
        line,
        registry=None,
    )
