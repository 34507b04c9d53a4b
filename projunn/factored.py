"""Tensors stored as low-rank factors: the gradients of layers with ``sketch_rank``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


class FactoredTensor(torch.Tensor):
    """``L R^H``, (*batch, m, n), stored as its factors L (*batch, m, r) and R (*batch, n, r).

    ``weight.grad`` of a layer with ``sketch_rank`` is such a tensor.  Sums are exact: the rank of a sum
    is the sum of the ranks.  The tensor can be scaled, zeroed, detached, cloned, converted and stacked,
    and it has a Frobenius norm, so that ``zero_grad``, ``clip_grad_norm_`` and ``GradScaler`` work
    unchanged.  The norm is that of ``L R^H``, without what the sketch left out of the gradient.  The sum
    with a dense tensor is dense.

    Args:
        left: L, real or complex.
        right: R, of the same dtype and batch as L.
        pairs: if True, the tensor stands for a complex one that is stored as pairs of reals: its shape
            is (*batch, m, n, 2) and its dtype real, while L and R are complex.  They may be given as
            pairs too, and are stored as pairs.

    Attributes:
        left, right: L and R, complex with ``pairs``.
        pairs: as given.
        stored_left, stored_right: the factors as they are stored; ``left`` and ``right`` are views of
            them.

    Raises:
        TypeError: an operation that is not among these, and so would need the entries.  ``to_dense()``
            computes them.
    """

    stored_left: Tensor
    stored_right: Tensor
    pairs: bool

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, left: Tensor, right: Tensor, pairs: bool = False) -> "FactoredTensor":
        if pairs and left.is_complex():
            left, right = torch.view_as_real(left), torch.view_as_real(right)
        axis = -3 if pairs else -2
        shape = (*left.shape[: axis + 1], right.shape[axis], *((2,) if pairs else ()))
        self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=left.dtype, device=left.device)
        self.stored_left, self.stored_right, self.pairs = left, right, pairs
        return self

    def __init__(self, left: Tensor, right: Tensor, pairs: bool = False) -> None:
        pass

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
        product = self.left @ _adjoint(self.right)
        return torch.view_as_real(product) if self.pairs else product

    def with_factors(self, left: Tensor, right: Tensor) -> "FactoredTensor":
        """A new `FactoredTensor` with these factors and this one's ``pairs``."""
        return FactoredTensor(left, right, self.pairs)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"FactoredTensor(shape={tuple(self.shape)}, rank={self.rank}, dtype={self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "FactoredTensor":
        return self.with_factors(self.stored_left.clone(), self.stored_right.clone())

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return FactoredTensor, (self.stored_left, self.stored_right, self.pairs)

    def __tensor_flatten__(self) -> tuple[list[str], bool]:
        return ["stored_left", "stored_right"], self.pairs

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor], pairs: bool, size: object, stride: object
    ) -> "FactoredTensor":
        return FactoredTensor(inner["stored_left"], inner["stored_right"], pairs)

    def _stable_hash_for_caching(self) -> str:
        return f"projunn.FactoredTensor pairs={self.pairs}"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operator: Any, types: Any, arguments: tuple[Any, ...] = (), options: Any = None
    ) -> Any:
        rule = _RULES.get(operator)
        if rule is None:
            raise TypeError(
                f"{operator}: not known for the low-rank factors of a gradient; call to_dense() on it"
                " first, or build the layer without sketch_rank"
            )
        return rule(*arguments, **(options or {}))


def squared_norm(left: Tensor, right: Tensor) -> Tensor:
    """``‖L R^H‖_F^2`` (*batch), in float64: tr(L^H L R^H R)."""
    precise = torch.complex128 if left.is_complex() else torch.float64
    a, b = left.to(precise), right.to(precise)
    return ((_adjoint(a) @ a) * (_adjoint(b) @ b).mT).sum((-2, -1)).real.clamp_min(0)


def _adjoint(factor: Tensor) -> Tensor:
    """``factor.mH``, computed, because a lazily conjugated view is misread in ``__torch_dispatch__``."""
    return factor.conj_physical().mT


def _apply(change: Callable[[Tensor], Tensor]) -> Callable[..., FactoredTensor]:
    return lambda a, **_: a.with_factors(change(a.stored_left), change(a.stored_right))


def _scale(a: Any, factor: Any) -> Any:
    if not isinstance(a, FactoredTensor):
        a, factor = factor, a
    return a.with_factors(a.stored_left * factor, a.stored_right)


def _scale_(a: FactoredTensor, factor: Any) -> FactoredTensor:
    a.stored_left = a.stored_left * factor
    return a


def _divide(a: FactoredTensor, factor: Any) -> FactoredTensor:
    return a.with_factors(a.stored_left / factor, a.stored_right)


def _divide_(a: FactoredTensor, factor: Any) -> FactoredTensor:
    a.stored_left = a.stored_left / factor
    return a


def _sum(a: FactoredTensor, b: FactoredTensor, alpha: float) -> tuple[Tensor, Tensor]:
    b_left = b.stored_left if alpha == 1 else b.stored_left * alpha
    columns = -2 if a.pairs else -1
    left = torch.cat([a.stored_left, b_left], columns)
    return left, torch.cat([a.stored_right, b.stored_right], columns)


def _add(a: Tensor, b: Tensor, alpha: float = 1) -> Tensor:
    if isinstance(a, FactoredTensor) and isinstance(b, FactoredTensor):
        return a.with_factors(*_sum(a, b, alpha))
    first = a.to_dense() if isinstance(a, FactoredTensor) else a
    second = b.to_dense() if isinstance(b, FactoredTensor) else b
    return torch.add(first, second, alpha=alpha)


def _add_(a: Tensor, b: Tensor, alpha: float = 1) -> Tensor:
    if not isinstance(a, FactoredTensor):
        assert isinstance(b, FactoredTensor)
        return a.add_(b.to_dense(), alpha=alpha)
    if not isinstance(b, FactoredTensor):
        raise TypeError(
            "a dense gradient cannot be added in place to the factors of a sketched one: use the weight"
            " outside its layer only in the same backward, or build the layer without sketch_rank"
        )
    a.stored_left, a.stored_right = _sum(a, b, alpha)
    return a


def _zero_(a: FactoredTensor) -> FactoredTensor:
    a.stored_left = torch.zeros_like(a.stored_left)
    a.stored_right = torch.where(a.stored_right.isfinite(), a.stored_right, 0.0)
    return a


def _copy_(a: Tensor, b: Tensor, *_: Any) -> Tensor:
    if not isinstance(a, FactoredTensor):
        assert isinstance(b, FactoredTensor)
        return a.copy_(b.to_dense())
    if not isinstance(b, FactoredTensor):
        raise TypeError("a dense tensor cannot be copied into the factors of a sketched gradient")
    a.stored_left = b.stored_left.to(a.stored_left, copy=True)
    a.stored_right = b.stored_right.to(a.stored_right, copy=True)
    return a


def _convert(a: FactoredTensor, *, dtype: torch.dtype | None = None, **options: Any) -> FactoredTensor:
    options = {k: v for k, v in options.items() if k in ("device", "non_blocking")}
    copies = [t.to(dtype=dtype, copy=True, **options) for t in (a.stored_left, a.stored_right)]
    return a.with_factors(*copies)


def _norm(a: FactoredTensor, order: Any = 2, dim: Any = None, *_: Any, **__: Any) -> Tensor:
    if order not in (None, 2) or dim not in (None, []):
        raise TypeError(
            f"norm of order {order} over dim {dim}: the factors of a sketched gradient give the"
            " Frobenius norm of the whole only (clip_grad_norm_ with norm_type=2)"
        )
    return squared_norm(a.left, a.right).sum().sqrt().to(a.dtype.to_real())


def _stack(tensors: list[FactoredTensor], dim: int = 0) -> Tensor:
    if dim != 0 or not all(isinstance(t, FactoredTensor) for t in tensors):
        return torch.stack([t.to_dense() for t in tensors], dim)
    rank = max(t.rank for t in tensors)
    complex_axis = (0, 0) if tensors[0].pairs else ()
    stacks = []
    for factors in ([t.stored_left for t in tensors], [t.stored_right for t in tensors]):
        padding = [(*complex_axis, 0, rank - t.rank) for t in tensors]
        columns = [torch.nn.functional.pad(f, p) for f, p in zip(factors, padding, strict=True)]
        stacks.append(torch.stack(columns))
    return tensors[0].with_factors(stacks[0], stacks[1])


def _unscale_(tensors: list[Tensor], found: Tensor, inverse: Tensor) -> None:
    """For `GradScaler`: scales dense gradients and left factors, and looks for infinities in all."""
    lefts, rights, others = [], [], []
    for t in tensors:
        if isinstance(t, FactoredTensor):
            t.stored_left = t.stored_left.clone()
            lefts.append(t.stored_left)
            rights.append(t.stored_right)
        else:
            others.append(t)
    unscale = aten._amp_foreach_non_finite_check_and_unscale_.default
    unscale(others + lefts, found, inverse)
    unscale([r.clone() for r in rights], found, torch.ones_like(inverse))


_RULES: dict[Any, Callable[..., Any]] = {
    aten.detach.default: _apply(lambda t: t.detach()),
    aten.alias.default: _apply(lambda t: t),
    aten.clone.default: _apply(lambda t: t.clone()),
    aten._to_copy.default: _convert,
    aten.mul.Tensor: _scale,
    aten.mul.Scalar: _scale,
    aten.mul_.Tensor: _scale_,
    aten.mul_.Scalar: _scale_,
    aten.div.Tensor: _divide,
    aten.div.Scalar: _divide,
    aten.div_.Tensor: _divide_,
    aten.div_.Scalar: _divide_,
    aten.neg.default: lambda a: _scale(a, -1),
    aten.add.Tensor: _add,
    aten.add_.Tensor: _add_,
    aten.zero_.default: _zero_,
    aten.copy_.default: _copy_,
    aten.norm.Scalar: _norm,
    aten.linalg_vector_norm.default: _norm,
    aten.stack.default: _stack,
    aten._amp_foreach_non_finite_check_and_unscale_.default: _unscale_,
}
