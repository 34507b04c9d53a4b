"""Which parameters are unitary: asking, making them so, bringing them back, and letting them go.

A unitary parameter is an ``nn.Parameter`` of the class `UnitaryParameter`.  It holds a batch of matrices
in one of the layouts that `projunn.layout` lists, and `matrix_view` gives all of them as (*batch, m, n).
"""

from collections.abc import Iterable
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from projunn import arguments
from projunn.arguments import of_kind, positive
from projunn.layout import Layout, as_matrices, single, view_like
from projunn.parameter import (
    UnitaryParameter,
    constrained,
    declarations,
    declare,
    forget,
    known_parameters,
    layout_of,
    mark,
    rebuild,
    recognise,
    unmark,
)
from projunn.selection import NORMS, Place, names_of, places, select
from projunn.shards import is_sharded, own_matrices, own_part
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
_NEAR = 0.5  # ‖W^H W - I‖_F up to which products find a polar factor
Target = TypeVar("Target", Tensor, nn.Module)
torch.serialization.add_safe_globals([UnitaryParameter, rebuild])


def matrix_view(tensor: Tensor, *, pairs: bool | None = None, blocks: int | None = None) -> Tensor:
    """The matrices of a parameter as real or complex numbers, (*batch, m, n).

    The result is a differentiable view of the parameter: pairs of reals become complex numbers, stacked
    blocks become an axis of the batch, and the last axes of a 1 x 1 filter are removed.  The same holds
    for a tensor that shares memory with a unitary parameter, such as ``parameter.data``,
    ``parameter.detach()`` and the entries of ``state_dict()``.  The layout of any other tensor (loaded,
    cloned or computed) is not known: it is returned as it is, unless ``pairs`` or ``blocks`` are given.

    Args:
        tensor: a `UnitaryParameter`, or any tensor.
        pairs: whether the last axis holds real and imaginary parts.
        blocks: the number of matrices that are stacked along the rows.

    Raises:
        ValueError: the tensor shares memory with a parameter that is stored as pairs or blocks, in an
            order of axes that does not tell which they are.
        TypeError: complex matrices of a parameter that was converted to bfloat16.
    """
    singletons = 0
    if pairs is None and blocks is None:
        pairs, blocks, singletons = layout_of(arguments.tensor("tensor", tensor))
    return as_matrices(tensor, pairs or False, blocks or 1, singletons)


def unitary_parameters(module: nn.Module) -> list[UnitaryParameter]:
    """Lists the unitary parameters of ``module``, each once, in the order of ``module.parameters()``."""
    of_kind("module", module, nn.Module, "a module")
    recognise()
    return [p for p in module.parameters() if isinstance(p, UnitaryParameter)]


def constrain(
    module: nn.Module, name: str | Iterable[str] = "weight", *, blocks: int | None = None
) -> nn.Module:
    """Make existing parameters of ``module`` unitary, in place, and return ``module``.

    A parameter's matrices are replaced by their polar factors, the nearest unitary (or
    semi-orthogonal) matrices.  The parameter stays the same object and becomes a `UnitaryParameter`, so
    that tied weights, optimizers that hold it and the flat weights of ``nn.RNN`` go on working: those of
    `projunn.optim` keep its momentum and second moments.  One that is unitary already is projected
    again; with other ``blocks`` than before it needs a new optimizer.  On the meta device there is
    nothing to project yet.  A ``state_dict`` does not tell which parameters are unitary: constrain a
    model before it loads one, too.  Otherwise the weights load as plain parameters, without a warning.

    Args:
        module: for instance an ``nn.Linear``, ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``, in float32,
            float64, complex64 or complex128; or a model of them.
        name: the name of a parameter, such as ``"weight"`` or ``"weight_hh_l0"``; the dotted name of one
            inside, ``"encoder.layers.0.linear1.weight"``; a pattern for several,
            ``"encoder.layers.*.linear?.weight"``, in which ``*`` stands for any characters, dots too; or
            a list of these.  A pattern passes over vectors, such as biases, and over the weights of
            norms.  Whatever else it fits must be possible, or nothing is changed.
        blocks: the number of matrices that are stacked along the rows.  By default one for each gate of
            an ``nn.LSTM``, ``LSTMCell`` (4), ``nn.GRU`` or ``GRUCell`` (3), one for each of query, key
            and value in the ``in_proj_weight`` of ``nn.MultiheadAttention`` (3), one for each group of a
            convolution whose filter is 1 x 1, and 1 for all others and for an LSTM's projection
            ``weight_hr``.

    Raises:
        ValueError: there is no such parameter, it is not a matrix, belongs to a convolution whose filter
            is larger than 1 x 1 (take those of `projunn.nn`), to an embedding or to a norm, ``blocks``
            does not divide its rows, or it has entries that are not finite.
        TypeError: its dtype is not one of the four, or it is of another class (sharded, quantised);
            ``module`` is no module, or ``name`` no string.
    """
    of_kind("module", module, nn.Module, "a module")
    selected = select(module, names_of("name", name))
    layouts = [_possible_layout(module, place, blocks) for place in selected]
    for place, layout in zip(selected, layouts, strict=True):
        make_unitary(place, layout)
    chosen = {id(place.owner._parameters[place.name]) for place in selected}
    for other in places(module):  # those that share a parameter
        parameter = other.owner._parameters[other.name]
        if id(parameter) in chosen and other not in selected:
            declare(other.owner, other.name, cast(UnitaryParameter, parameter))
    return module


def make_unitary(place: Place, layout: Layout) -> None:
    """Marks the parameter of a slot as unitary, and projects it."""
    parameter = cast(nn.Parameter, place.owner._parameters[place.name])
    if not isinstance(parameter, UnitaryParameter):
        constrained[0] = str(int(constrained[0]) + 1)
    sketch = parameter.sketch if isinstance(parameter, UnitaryParameter) else None
    declare(place.owner, place.name, mark(parameter, layout, sketch))
    if not private.is_fake(parameter):
        project_(parameter)


def _possible_layout(module: nn.Module, place: Place, blocks: int | None) -> Layout:
    """How the matrices of a parameter lie in it, or an error that says why it cannot be unitary."""
    owner, name = place.owner, repr(place.full)
    parameter = owner._parameters[place.name]
    for inner in module.modules():
        if isinstance(inner, nn.Embedding | nn.EmbeddingBag) and inner.weight is parameter:
            raise ValueError(
                f"name: {name} is the table of an {type(inner).__name__}, whose rows are looked up one"
                " by one; an orthogonal table would preserve no norm"
            )
    if isinstance(owner, NORMS):
        raise ValueError(
            f"name: {name} of {type(owner).__name__} multiplies number by number, wanted a matrix"
        )
    ones = 0
    if isinstance(owner, nn.modules.conv._ConvNd) and parameter is owner.weight:
        ones = len(owner.kernel_size)
        if set(owner.kernel_size) != {1}:
            raise ValueError(
                f"module: the filter of {type(owner).__name__} is not one matrix, and orthogonal slices"
                f" would not make the convolution norm-preserving (wanted a kernel_size of 1 for {name})"
            )
    if isinstance(parameter, UninitializedParameter):
        raise ValueError(f"name: {name} has no size yet; run the module's forward once before")
    hollow = private.is_fake(cast(Tensor, parameter))
    if not hollow and type(parameter) not in (nn.Parameter, UnitaryParameter):
        raise TypeError(
            f"name: {name} is a {type(parameter).__name__}, wanted an nn.Parameter: constrain it"
            " before it is sharded or quantised, and projunn.convert one of geoopt"
        )
    pairs, stacked, known_ones = layout_of(cast(Tensor, parameter))
    if isinstance(parameter, UnitaryParameter):
        ones = known_ones
    else:
        stacked = _stacked(owner, place.name)
    blocks = positive("blocks", stacked if blocks is None else blocks)
    matrices = as_matrices(cast(Tensor, parameter).detach(), pairs, 1, ones)
    if matrices.ndim < 2 or matrices.numel() == 0:
        raise ValueError(f"name: {name} has shape {tuple(matrices.shape)}, not (*batch, m, n)")
    if matrices.shape[-2] % blocks:
        raise ValueError(f"blocks: {blocks} does not divide the {matrices.shape[-2]} rows of {name}")
    if matrices.dtype not in MATRIX_DTYPES:
        raise TypeError(f"name: {name} is {matrices.dtype}; wanted one of {dtype_names()}")
    if not hollow:
        _refuse_unsound("name", name, arguments.own_memory("name", matrices))
    return Layout(pairs, blocks, ones)


def _stacked(module: nn.Module, name: str) -> int:
    """How many matrices a parameter of one of PyTorch's own modules stacks along the rows."""
    if isinstance(module, nn.MultiheadAttention):
        return 3 if name == "in_proj_weight" else 1
    if isinstance(module, nn.modules.conv._ConvNd):
        return module.groups
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
    gone = set(map(id, parameters))
    for known in declarations():  # of other modules that hold them: graphs of compiled steps do
        for name, _, parameter in known.held():
            if id(parameter) in gone:
                del known.slots[name]
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
    that does not know of them.  Computed in float64; the result has a defect of rounding in the
    dtype of the weight.

    Args:
        target: a module, all of whose unitary parameters are projected; or a `UnitaryParameter`, or any
            tensor of matrices as `matrix_view` reads it.  Of a sharded bank each process projects the
            matrices that it holds.

    Returns:
        ``target``.

    Raises:
        ValueError: a module without unitary parameters, a tensor that holds no real or complex matrices,
            an expanded one, or entries that are not finite; nothing has changed then.
        TypeError: a weight that is sharded through its matrices, or neither a module nor a tensor.
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
        whole = type(tensor) in (Tensor, nn.Parameter, UnitaryParameter)
        cut = is_sharded(tensor) and isinstance(tensor, UnitaryParameter)
        if not whole and not (cut and own_matrices(tensor) is not None):
            raise TypeError(f"target: {name} is a {type(tensor).__name__}, wanted whole matrices")
        part = own_part(tensor).detach()
        precise = single(part)
        matrices = as_matrices(precise, *layout_of(tensor))
        matrices = arguments.own_memory("target", arguments.matrices("target", matrices))
        views.append((part, precise, matrices, slot))
        _refuse_unsound("target", name, matrices)
    for part, precise, matrices, slot in views:
        matrices.copy_(nearest(matrices))
        if precise is not part:
            part.copy_(precise)
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
    """The polar factor of each matrix, found in float64: (*batch, m, n), same dtype.

    By SVD, or, if all are near the manifold, by Newton-Schulz steps, which cost a tenth to a half of it:

        W <- W (3 I - W^H W)/2        takes singular values s to s (3 - s^2)/2 and leaves the vectors
    """
    precise = matrix.to(torch.complex128 if matrix.is_complex() else torch.float64)
    tall = precise if precise.shape[-2] >= precise.shape[-1] else precise.mH
    rest = _rest(tall)
    bound = float(torch.linalg.matrix_norm(rest).max()) if rest.numel() else 0.0
    if not bound <= _NEAR:
        u, _, vh = torch.linalg.svd(precise, full_matrices=False)
        return (u @ vh).to(matrix.dtype)
    while bound > (wanted := 0.01 * torch.finfo(matrix.dtype).eps):
        tall = tall - tall @ rest / 2
        bound = (3 + bound) / 4 * bound**2  # of ‖W^H W - I‖_F
        rest = _rest(tall) if bound > wanted else rest
    return (tall if tall.shape == precise.shape else tall.mH).to(matrix.dtype)


def _rest(tall: Tensor) -> Tensor:
    return tall.mH @ tall - torch.eye(tall.shape[-1], dtype=tall.dtype, device=tall.device)
