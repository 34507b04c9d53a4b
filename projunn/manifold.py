"""Which parameters are unitary: asking, making them so, bringing them back, and letting them go.

A unitary parameter is an ``nn.Parameter`` of the class `UnitaryParameter`.  It holds a batch of matrices
in one of the layouts that `projunn.layout` lists, and `matrix_view` gives all of them as (*batch, m, n).
"""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from projunn import arguments
from projunn.arguments import of_kind, positive
from projunn.layout import as_matrices
from projunn.parameter import (
    UnitaryParameter,
    declare,
    forget,
    known_parameters,
    layout_of,
    mark,
    rebuild,
    recognise,
    unmark,
    view_like,
)
from projunn_kernels import private

__all__ = [
    "MATRIX_DTYPES",
    "UnitaryParameter",
    "constrain",
    "dtype_names",
    "matrix_view",
    "nearest",
    "project_",
    "unconstrain",
    "unitary_parameters",
    "view_like",
]

MATRIX_DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
_GATES = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}
Target = TypeVar("Target", Tensor, nn.Module)
torch.serialization.add_safe_globals([UnitaryParameter, rebuild])


def matrix_view(tensor: Tensor, *, pairs: bool | None = None, blocks: int | None = None) -> Tensor:
    """The matrices of a parameter as real or complex numbers, (*batch, m, n).

    The result is a view of the parameter, and autograd goes through it: pairs of reals become complex
    numbers, and stacked blocks become an axis of the batch.  So they do of a tensor that shares memory
    with a unitary parameter, such as ``parameter.data``, ``parameter.detach()`` and the entries of
    ``state_dict()``.  Of any other tensor nothing is known (it was loaded, cloned or computed): it is
    returned as it is, unless ``pairs`` or ``blocks`` say more.

    Args:
        tensor: a `UnitaryParameter`, or any tensor.
        pairs: whether the last axis holds real and imaginary parts.
        blocks: the number of matrices that are stacked along the rows.

    Raises:
        ValueError: the tensor shares memory with a parameter that is stored as pairs or blocks, in an
            order of axes that does not tell which they are.
    """
    if pairs is None and blocks is None:
        pairs, blocks = layout_of(arguments.tensor("tensor", tensor))
    return as_matrices(tensor, pairs or False, blocks or 1)


def unitary_parameters(module: nn.Module) -> list[UnitaryParameter]:
    """Lists the unitary parameters of ``module``, each once, in the order of ``module.parameters()``."""
    of_kind("module", module, nn.Module, "a module")
    recognise()
    return [p for p in module.parameters() if isinstance(p, UnitaryParameter)]


def constrain(module: nn.Module, name: str = "weight", *, blocks: int | None = None) -> nn.Module:
    """Make the existing parameter ``module.name`` unitary, in place, and return ``module``.

    The parameter's matrices are replaced by their polar factors, the nearest unitary (or
    semi-orthogonal) matrices.  The parameter stays the same object and becomes a `UnitaryParameter`, so
    that tied weights, optimizers that hold it and the flat weights of ``nn.RNN`` go on working.  One
    that is unitary already is projected again.  On the meta device there is nothing to project yet.

    Args:
        module: for instance an ``nn.Linear``, ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``, in float32,
            float64, complex64 or complex128.
        name: the name of the parameter, such as ``"weight"`` or ``"weight_hh_l0"``.
        blocks: the number of matrices that are stacked along the rows.  By default one for each gate of
            an ``nn.LSTM``, ``LSTMCell`` (4), ``nn.GRU`` or ``GRUCell`` (3), one for each of query, key
            and value in the ``in_proj_weight`` of ``nn.MultiheadAttention`` (3), and 1 for all others
            and for an LSTM's projection ``weight_hr``.

    Raises:
        ValueError: the module itself has no such parameter, it is not a matrix or belongs to a
            convolution (take those of `projunn.nn`), ``blocks`` does not divide its rows, or it has
            entries that are not finite.
        TypeError: its dtype is not one of the four, or it is of another class (sharded, quantised);
            ``module`` is no module, or ``name`` no word.
    """
    of_kind("module", module, nn.Module, "a module")
    of_kind("name", name, str, "the name of a parameter")
    parameter = module._parameters.get(name)
    if parameter is None:
        known = ", ".join(n for n, _ in module.named_parameters(recurse=False)) or "none"
        raise ValueError(
            f"name: {type(module).__name__} has no parameter {name!r} of its own (it has: {known})"
        )
    if isinstance(module, nn.modules.conv._ConvNd):
        raise ValueError(
            f"module: the filter of {type(module).__name__} is not one matrix, and orthogonal slices"
            " would not make the convolution norm-preserving"
        )
    if isinstance(parameter, UninitializedParameter):
        raise ValueError(f"name: {name!r} has no size yet; run the module's forward once before")
    hollow = private.is_fake(parameter)
    if not hollow and type(parameter) not in (nn.Parameter, UnitaryParameter):
        raise TypeError(
            f"name: {name!r} is a {type(parameter).__name__}, wanted an nn.Parameter: constrain it"
            " before it is sharded or quantised"
        )
    pairs, stacked = layout_of(parameter)
    if blocks is None:
        blocks = stacked if isinstance(parameter, UnitaryParameter) else _stacked(module, name)
    blocks = positive("blocks", blocks)
    matrices = (parameter[..., 0] if pairs else parameter).detach()
    if matrices.ndim < 2 or parameter.numel() == 0:
        raise ValueError(f"name: {name!r} has shape {tuple(parameter.shape)}, not (*batch, m, n)")
    if matrices.shape[-2] % blocks:
        raise ValueError(f"blocks: {blocks} does not divide the {matrices.shape[-2]} rows of {name!r}")
    if parameter.dtype not in MATRIX_DTYPES:
        raise TypeError(f"name: {name!r} is {parameter.dtype}; wanted one of {dtype_names()}")
    if not hollow:
        _refuse_unsound("name", repr(name), parameter)
    sketch = parameter.sketch if isinstance(parameter, UnitaryParameter) else None
    declare(module, name, mark(parameter, pairs, blocks, sketch))
    if not hollow:
        project_(parameter)
    return module


def _stacked(module: nn.Module, name: str) -> int:
    """How many matrices a parameter of one of PyTorch's own modules stacks along the rows."""
    if isinstance(module, nn.MultiheadAttention):
        return 3 if name == "in_proj_weight" else 1
    gates = next((g for cls, g in _GATES.items() if isinstance(module, cls)), 1)
    return 1 if name.startswith("weight_hr") else gates


def unconstrain(module: nn.Module) -> nn.Module:
    """Makes plain ``nn.Parameter`` s of all unitary parameters in ``module``, in place, and returns it.

    Their values stay, and every layer computes what it did.  Optimizers treat them as any other
    parameter from now on, and should be made anew: what an optimizer of ours kept for a unitary one does
    not fit.
    """
    parameters = unitary_parameters(module)
    for inner in module.modules():
        forget(inner)
    for parameter in parameters:
        if parameter.sketch is not None:
            parameter.grad = None  # in factors, which optimizers of others do not take
        unmark(parameter)
    return module


@torch.no_grad()
def project_(target: Target) -> Target:
    """Brings weights back onto the manifold, in place: each matrix becomes the nearest unitary one.

        W <- U V^H for W = U S V^H, the polar factor

    It is for weights that were loaded, averaged (EMA, SWA), scaled, edited, or stepped by an optimizer
    that does not know of them.  Computed by SVD in float64; the result has a defect of rounding in the
    dtype of the weight.

    Args:
        target: a module, all of whose unitary parameters are projected; or a `UnitaryParameter`, or any
            tensor of matrices as `matrix_view` reads it.

    Returns:
        ``target``.

    Raises:
        ValueError: a module without unitary parameters, a tensor that holds no real or complex matrices,
            or entries that are not finite; nothing has changed then.
        TypeError: a sharded weight, or neither a module nor a tensor.
    """
    tensors: list[Tensor] = [target] if isinstance(target, Tensor) else []
    if not isinstance(target, Tensor):
        of_kind("target", target, nn.Module, "a module or a tensor")
        tensors += unitary_parameters(target)
    if not tensors:
        raise ValueError(f"target: {type(target).__name__} has no unitary parameters")
    views, known = [], known_parameters()
    for tensor in tensors:
        name, slot = known.get(id(tensor), (f"a tensor of shape {tuple(tensor.shape)}", None))
        if type(tensor) not in (Tensor, nn.Parameter, UnitaryParameter):
            raise TypeError(f"target: {name} is a {type(tensor).__name__}, wanted a whole weight")
        views.append((arguments.matrices("target", matrix_view(tensor).detach()), slot))
        _refuse_unsound("target", name, tensor)
    for matrices, slot in views:
        matrices.copy_(nearest(matrices))
        if slot is not None:
            slot.said = False
    return target


def _refuse_unsound(argument: str, name: str, tensor: Tensor) -> None:
    if not tensor.detach().isfinite().all():
        raise ValueError(f"{argument}: {name} has entries that are not finite")


def dtype_names() -> str:
    """The dtypes a unitary weight can have, for error messages."""
    return ", ".join(str(d).removeprefix("torch.") for d in MATRIX_DTYPES)


def nearest(matrix: Tensor) -> Tensor:
    """The polar factor of each matrix, by SVD in float64: (*batch, m, n), same dtype."""
    precise = matrix.to(torch.complex128 if matrix.is_complex() else torch.float64)
    u, _, vh = torch.linalg.svd(precise, full_matrices=False)
    return (u @ vh).to(matrix.dtype)
