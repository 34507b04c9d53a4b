"""Tensors stored as low-rank factors: the gradients of layers with ``sketch_rank``."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from projunn_kernels.precision import in_full_precision

# What an operator of ATen computes where tensors in factors are among its arguments.  The rules are in
# `projunn.factored_rules`, which enters them here.
RULES: dict[Any, Callable[..., Any]] = {}
# Those that only look at entries are given all entries.  Any other operator is refused.
_READING = {
    getattr(torch.ops.aten, name)
    for name in (
        *("eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "abs", "any", "all", "count_nonzero"),
        *("sum", "mean", "std", "var", "var_mean", "amax", "amin", "max", "min", "aminmax", "histc"),
        *("pow", "sign", "equal"),
    )
}


class FactoredTensor(torch.Tensor):
    """``L R^H``, (*batch, m, n), stored as its factors L (*batch, m, r) and R (*batch, n, r).

    ``weight.grad`` of a layer with ``sketch_rank`` is such a tensor.  Sums are exact: the rank of a sum
    is the sum of the ranks.  The tensor can be scaled, zeroed, detached, cloned, converted and stacked,
    and it has norms of any order, so that ``zero_grad``, ``clip_grad_norm_`` and ``GradScaler`` work
    unchanged.  Zeroing leaves rank 0.  Norms are those of ``L R^H``, without what the sketch left out of
    the gradient.  The sum with a dense tensor is dense.

    What only looks at entries (comparisons, powers, sums, means, extrema, ``isnan``, ``histc``,
    ``numpy``) forms all of them for a moment, as ``to_dense`` does.  The results of ``view``,
    ``reshape`` and ``flatten`` are copies that PyTorch lets nobody change in place.  ``detach()`` and
    ``data`` share the factors with the tensor that they came from, so that a change in place of one is
    a change of both.

    Args:
        left: L, real or complex.
        right: R, of the same dtype and batch as L.
        pairs: if True, the tensor stands for a complex one that is stored as pairs of reals: its shape
            is (*batch, m, n, 2) and its dtype real, while L and R are complex.  They may be given as
            pairs too, and are stored as pairs.

    Attributes:
        left, right: L and R, complex with ``pairs``.
        pairs: as given.
        group: of a tensor that a sketch starts from, the processes over which the sketch is averaged
            (`projunn.distributed.reduce_sketches`); else empty.
        stored_left, stored_right: the factors as they are stored; ``left`` and ``right`` are views of
            them.

    Raises:
        TypeError: an operation that would change single entries.  ``to_dense()`` computes them, and the
            optimizers take a dense gradient in the place of the factors.
    """

    pairs: bool
    group: str = ""
    _held: list[Tensor]  # L and R as they are stored; one list for all that are detached of each other

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, left: Tensor, right: Tensor, pairs: bool = False) -> "FactoredTensor":
        # Lazily conjugated or negated views are misread in ``__torch_dispatch__``.
        left, right = left.resolve_conj().resolve_neg(), right.resolve_conj().resolve_neg()
        if pairs and left.is_complex():
            left, right = torch.view_as_real(left), torch.view_as_real(right)
        axis = -3 if pairs else -2
        shape = (*left.shape[: axis + 1], right.shape[axis], *((2,) if pairs else ()))
        kind = cls if type(left) is torch.Tensor else TraceableFactors
        self = torch.Tensor._make_wrapper_subclass(kind, shape, dtype=left.dtype, device=left.device)
        self._held, self.pairs = [left, right], pairs
        return self

    def __init__(self, left: Tensor, right: Tensor, pairs: bool = False) -> None:
        pass

    @property
    def stored_left(self) -> Tensor:
        return self._held[0]

    @property
    def stored_right(self) -> Tensor:
        return self._held[1]

    @property
    def left(self) -> Tensor:
        """L, (*batch, m, r); complex with ``pairs``."""
        return torch.view_as_complex(self.stored_left) if self.pairs else self.stored_left

    @property
    def right(self) -> Tensor:
        """R, (*batch, n, r); complex with ``pairs``."""
        return torch.view_as_complex(self.stored_right) if self.pairs else self.stored_right

    @property
    def rank(self) -> int:
        """r, the number of columns of the factors."""
        return self.stored_left.shape[-2 if self.pairs else -1]

    def to_dense(self, *arguments: Any, **options: Any) -> Tensor:
        """All entries as a dense tensor, (*batch, m, n), or (*batch, m, n, 2) with ``pairs``.

        The arguments of ``torch.Tensor.to_dense`` are accepted and have no effect.
        """
        return self._rows(slice(None))

    @in_full_precision
    def _rows(self, which: slice) -> Tensor:
        """Some rows of `to_dense`."""
        product = self.left[..., which, :] @ _adjoint(self.right)
        return torch.view_as_real(product) if self.pairs else product

    def with_factors(self, left: Tensor, right: Tensor) -> Self:
        """A new tensor of this class with these factors, and this one's ``pairs`` and ``group``."""
        made = type(self)(left, right, self.pairs)
        made.group = self.group
        return made

    def replace_(self, left: Tensor, right: Tensor) -> Self:
        """Changes the factors, and with them the tensor, in place."""
        self._held[:] = left, right
        return self

    def _read(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
        """A method of the dense tensor.  Its result is a copy that cannot be changed in place."""
        with torch.inference_mode():
            read: Tensor = getattr(self.to_dense(), name)(*arguments, **options)
        return read

    def view(self, *arguments: Any, **options: Any) -> Tensor:  # type: ignore[override]
        return self._read("view", arguments, options)

    def reshape(self, *arguments: Any, **options: Any) -> Tensor:  # type: ignore[override]
        return self._read("reshape", arguments, options)

    def flatten(self, *arguments: Any, **options: Any) -> Tensor:  # type: ignore[override]
        return self._read("flatten", arguments, options)

    def numpy(self, *, force: bool = False) -> Any:
        return self.to_dense().numpy(force=force)

    def tolist(self) -> Any:
        return self.to_dense().tolist()

    def share_memory_(self) -> Self:  # type: ignore[override]
        """Moves the factors to shared memory; the tensor has no memory of its own to move."""
        for factor in self._held:
            factor.share_memory_()
        return self

    def is_shared(self) -> bool:
        return all(factor.is_shared() for factor in self._held)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"FactoredTensor(shape={tuple(self.shape)}, rank={self.rank}, dtype={self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        if id(self) not in memo:
            memo[id(self)] = self.with_factors(self.stored_left.clone(), self.stored_right.clone())
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        arguments = self.stored_left, self.stored_right, self.pairs
        return type(self), arguments, {"group": self.group} if self.group else None

    # The operators of `Tensor` turn our TypeErrors into Python's, which say nothing; these do not.
    def __add__(self, other: Any) -> Tensor:
        return torch.add(self, other)

    def __sub__(self, other: Any) -> Tensor:
        return torch.sub(self, other)

    def __mul__(self, other: Any) -> Tensor:
        return torch.mul(self, other)

    def __truediv__(self, other: Any) -> Tensor:
        return torch.div(self, other)

    def __pow__(self, exponent: Any) -> Tensor:
        return torch.pow(self, exponent)

    def __matmul__(self, other: Any) -> Tensor:
        return torch.matmul(self, other)

    __radd__, __rmul__ = __add__, __mul__

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operator: Any, types: Any, arguments: tuple[Any, ...] = (), options: Any = None
    ) -> Any:
        options = options or {}
        rule = RULES.get(operator)
        if rule is not None:
            return rule(*arguments, **options)
        if operator.overloadpacket in _READING and not operator._schema.is_mutable:
            dense = [t.to_dense() if isinstance(t, FactoredTensor) else t for t in arguments]
            return operator(*dense, **options)
        raise refusal(f"{operator} is not known for")


class TraceableFactors(FactoredTensor):
    """A `FactoredTensor` that `torch.compile` takes into a graph: the start of a sketch.

    A gradient is none.  Else Dynamo would look into the gradients that parameters hold while it
    compiles, and fail (torch 2.11 to 2.13): gradients in factors of parameters that are dense.
    """

    def __tensor_flatten__(self) -> tuple[list[str], tuple[bool, str]]:
        return ["stored_left", "stored_right"], (self.pairs, self.group)

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor], context: tuple[bool, str], size: object, stride: object
    ) -> FactoredTensor:
        made = FactoredTensor(inner["stored_left"], inner["stored_right"], context[0])
        made.group = context[1]
        return made

    def _stable_hash_for_caching(self) -> str:
        return f"projunn.FactoredTensor pairs={self.pairs} group={self.group}"


def refusal(what: str) -> TypeError:
    """The error for what tensors in factors cannot do."""
    return TypeError(
        f"{what} a gradient in low-rank factors (projunn.FactoredTensor), which optimizers of"
        " projunn.optim step and others do not: call to_dense() on it first (p.grad ="
        " p.grad.to_dense() is taken by the optimizer), or build the layer without sketch_rank"
    )


def squared_norm(left: Tensor, right: Tensor) -> Tensor:
    """``‖L R^H‖_F^2`` (*batch), in float64: tr(L^H L R^H R)."""
    precise = torch.complex128 if left.is_complex() else torch.float64
    a, b = left.to(precise), right.to(precise)
    return ((_adjoint(a) @ a) * (_adjoint(b) @ b).mT).sum((-2, -1)).real.clamp_min(0)


def _adjoint(factor: Tensor) -> Tensor:
    """``factor.mH``, computed, and so no lazily conjugated view."""
    return factor.conj_physical().mT


torch.serialization.add_safe_globals([FactoredTensor, TraceableFactors])
