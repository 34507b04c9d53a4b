"""Which parameters are unitary, and how their matrices are stored.

A unitary parameter is an ``nn.Parameter`` of the class `UnitaryParameter`.  It holds a batch of matrices
in one of three layouts, and `matrix_view` gives all of them as (*batch, m, n):

* real, or natively complex: (*batch, m, n);
* ``pairs``: complex numbers as pairs of reals, (*batch, m, n, 2), as the layers of `projunn.nn` store
  them;
* ``blocks > 1``: that many matrices stacked along the rows, (*batch, blocks m, n), as the gates of
  ``nn.LSTM`` and ``nn.GRU`` are: in the notation of einops "(gate m) n -> gate m n".
"""

import copy
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from projunn.factored import FactoredTensor

MATRIX_DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
_GATES = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}


class UnitaryParameter(nn.Parameter):
    """A parameter whose matrices the optimizers of `projunn.optim` keep unitary.

    Real matrices are kept orthogonal, rectangular ones semi-orthogonal: their rows or columns,
    whichever are fewer, stay orthonormal.  The parameter stays recognised through ``deepcopy``,
    pickling, ``Module.to`` and ``load_state_dict``.  ``torch.load`` reads a saved ``state_dict`` by
    default; a whole saved module or parameter needs ``weights_only=False``.

    Args:
        data: the matrices, (*batch, m, n), real or complex.  They are taken as they are: initialise them
            with `projunn.init`, or project an existing parameter with `projunn.constrain`.
        requires_grad: as in ``nn.Parameter``.
        pairs: ``data`` is (*batch, m, n, 2) and real, with real and imaginary parts on the last axis.
        blocks: ``data`` is (*batch, blocks m, n), with so many matrices stacked along the rows.

    Attributes:
        pairs, blocks: as given.
        sketch: the factors that the next sketch of a gradient starts from, if the parameter belongs to a
            layer with ``sketch_rank``; its gradients are then of the class `projunn.FactoredTensor`.
            Otherwise None.
    """

    pairs: bool
    blocks: int
    sketch: FactoredTensor | None

    def __new__(
        cls, data: Tensor, requires_grad: bool = True, *, pairs: bool = False, blocks: int = 1
    ) -> "UnitaryParameter":
        self = super().__new__(cls, data, requires_grad)
        return _mark(self, pairs, blocks)

    def __deepcopy__(self, memo: dict[int, Any]) -> "UnitaryParameter":
        if id(self) not in memo:
            data = self.data.clone(memory_format=torch.preserve_format)
            result = _rebuild(data, self.requires_grad, self.pairs, self.blocks)
            result.sketch = copy.deepcopy(self.sketch, memo)
            result.grad = copy.deepcopy(self.grad, memo)
            memo[id(self)] = result
        return cast(UnitaryParameter, memo[id(self)])

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _rebuild, (self.data, self.requires_grad, self.pairs, self.blocks, self.sketch)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Unitary parameter containing:\n{self.data!r}"


def _rebuild(
    data: Tensor, requires_grad: bool, pairs: bool, blocks: int, sketch: FactoredTensor | None = None
) -> UnitaryParameter:
    parameter = UnitaryParameter(data, requires_grad, pairs=pairs, blocks=blocks)
    parameter.sketch = sketch
    return parameter


torch.serialization.add_safe_globals([UnitaryParameter, _rebuild])


def _mark(
    parameter: nn.Parameter, pairs: bool, blocks: int, sketch: FactoredTensor | None = None
) -> UnitaryParameter:
    parameter.__class__ = UnitaryParameter
    marked = cast(UnitaryParameter, parameter)
    marked.pairs, marked.blocks, marked.sketch = pairs, blocks, sketch
    return marked


def view_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """The matrices (*batch, m, n) of ``tensor``, whose layout is that of ``parameter``; a view of it.

    ``tensor`` may be the gradient of ``parameter``, for instance.  Pairs of reals become complex
    numbers, and stacked blocks become an axis of the batch.  If ``parameter`` is no `UnitaryParameter`,
    ``tensor`` is returned.
    """
    if not isinstance(parameter, UnitaryParameter):
        return tensor
    if parameter.pairs:
        tensor = torch.view_as_complex(tensor)
    if parameter.blocks > 1:
        # "... (gate m) n -> ... gate m n"; not by `einops.rearrange`, which promises no view.
        tensor = tensor.unflatten(-2, (parameter.blocks, -1))
    return tensor


def matrix_view(parameter: Tensor) -> Tensor:
    """The matrices of a parameter as real or complex numbers, (*batch, m, n).

    The result is a view of the parameter, and autograd goes through it: pairs of reals become complex
    numbers, and stacked blocks become an axis of the batch.  A tensor that is no `UnitaryParameter` is
    returned unchanged.
    """
    return view_like(parameter, parameter)


def unitary_parameters(module: nn.Module) -> list[UnitaryParameter]:
    """Lists the unitary parameters of ``module``, each once, in the order of ``module.parameters()``."""
    return [p for p in module.parameters() if isinstance(p, UnitaryParameter)]


def constrain(module: nn.Module, name: str = "weight", *, blocks: int | None = None) -> nn.Module:
    """Make the existing parameter ``module.name`` unitary, in place, and return ``module``.

    The parameter's matrices are replaced by their polar factors, the nearest unitary (or
    semi-orthogonal) matrices.  The parameter stays the same object and becomes a `UnitaryParameter`, so
    that tied weights, optimizers that hold it and the flat weights of ``nn.RNN`` go on working.  One
    that is a `UnitaryParameter` already is left as it is.

    Args:
        module: for instance an ``nn.Linear``, ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``, in float32,
            float64, complex64 or complex128.
        name: the name of the parameter, such as ``"weight"`` or ``"weight_hh_l0"``.
        blocks: the number of matrices that are stacked along the rows.  By default one for each gate of
            an ``nn.LSTM``, ``LSTMCell`` (4), ``nn.GRU`` or ``GRUCell`` (3), and 1 for all others and for
            an LSTM's projection ``weight_hr``.

    Raises:
        ValueError: the module itself has no such parameter, it is not a matrix or belongs to a
            convolution (take those of `projunn.nn`), ``blocks`` does not divide its rows, or it has
            entries that are not finite.
        TypeError: its dtype is not one of the four.
    """
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
    if isinstance(parameter, UnitaryParameter):
        return module
    if blocks is None:
        gates = next((g for cls, g in _GATES.items() if isinstance(module, cls)), 1)
        blocks = 1 if name.startswith("weight_hr") else gates
    if parameter.ndim < 2 or parameter.numel() == 0:
        raise ValueError(f"name: {name!r} has shape {tuple(parameter.shape)}, not (*batch, m, n)")
    if blocks < 1 or parameter.shape[-2] % blocks:
        raise ValueError(f"blocks: {blocks} does not divide the {parameter.shape[-2]} rows of {name!r}")
    if parameter.dtype not in MATRIX_DTYPES:
        raise TypeError(f"name: {name!r} is {parameter.dtype}; wanted one of {dtype_names()}")
    if not parameter.detach().isfinite().all():
        raise ValueError(f"name: {name!r} has entries that are not finite")
    _mark(parameter, False, blocks)
    with torch.no_grad():
        matrix = matrix_view(parameter)
        matrix.copy_(nearest(matrix))
    keep_marks(module)
    return module


Marks = dict[str, tuple[bool, int, FactoredTensor | None]]


def marks(module: nn.Module) -> Marks:
    """(pairs, blocks, sketch) of the unitary parameters that ``module`` itself holds, by name."""
    held = module._parameters.items()
    return {n: (p.pairs, p.blocks, p.sketch) for n, p in held if isinstance(p, UnitaryParameter)}


def restore_marks(module: nn.Module, known: Marks) -> None:
    """Mark again the parameters that were replaced by plain ones."""
    for name, mark in known.items():
        parameter = module._parameters.get(name)
        if parameter is not None and not isinstance(parameter, UnitaryParameter):
            _mark(parameter, *mark)


def keep_marks(module: nn.Module) -> None:
    """Keep the unitary parameters of ``module`` marked through ``load_state_dict(..., assign=True)``."""
    module.register_load_state_dict_post_hook(partial(_after_load, known=marks(module)))


def _after_load(module: nn.Module, _: object, known: Marks) -> None:
    restore_marks(module, known)


def dtype_names() -> str:
    """The dtypes a unitary weight can have, for error messages."""
    return ", ".join(str(d).removeprefix("torch.") for d in MATRIX_DTYPES)


def nearest(matrix: Tensor) -> Tensor:
    """The polar factor of each matrix, by SVD in float64: (*batch, m, n), same dtype."""
    precise = matrix.to(torch.complex128 if matrix.is_complex() else torch.float64)
    u, _, vh = torch.linalg.svd(precise, full_matrices=False)
    return (u @ vh).to(matrix.dtype)
