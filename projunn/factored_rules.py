"""What operations on a `projunn.FactoredTensor` compute: right, or refused in words.

No rule depends on shapes that happen to fit.  What has no rule, and does not only look at entries, is
refused (`projunn.factored`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from projunn.factored import RULES, FactoredTensor, refusal, squared_norm

aten = torch.ops.aten


def _shared(a: FactoredTensor) -> FactoredTensor:
    alias = FactoredTensor(a.stored_left, a.stored_right, a.pairs)
    alias._held = a._held
    return alias


def _clone(a: FactoredTensor, **_: Any) -> FactoredTensor:
    return a.with_factors(a.stored_left.clone(), a.stored_right.clone())


def _scalar(a: Any, factor: Any) -> Any:
    """A factor that scales all entries alike, as a number or a tensor without axes."""
    if not isinstance(a, FactoredTensor):
        raise refusal("division by, or a product in place with,")
    if isinstance(factor, Tensor):
        if isinstance(factor, FactoredTensor) or factor.numel() != 1 or factor.ndim > a.ndim:
            raise refusal(f"a factor of shape {tuple(factor.shape)}, wanted a number, for")
        is_complex = factor.is_complex()
    else:
        is_complex = isinstance(factor, complex)
    if is_complex and not a.is_complex():
        raise refusal("a complex factor, wanted a real one, for the real numbers of")
    return factor.reshape(()) if isinstance(factor, Tensor) else factor


def _scale(a: Any, factor: Any) -> FactoredTensor:
    if not isinstance(a, FactoredTensor):
        a, factor = factor, a
    return _in_common(a, factor, a.stored_left * _scalar(a, factor))


def _divide(a: FactoredTensor, factor: Any) -> FactoredTensor:
    number = _scalar(a, factor)
    return _in_common(a, factor, a.stored_left / number)


def _in_common(a: FactoredTensor, factor: Any, left: Tensor) -> FactoredTensor:
    """With this left factor, in the dtype of a tensor that is scaled by a factor."""
    dtype = torch.result_type(a.stored_left, factor)
    return a.with_factors(left.to(dtype), a.stored_right.to(dtype))


def _scale_(a: FactoredTensor, factor: Any) -> FactoredTensor:
    number = _scalar(a, factor)
    return a.replace_((a.stored_left * number).to(a.dtype), a.stored_right)


def _divide_(a: FactoredTensor, factor: Any) -> FactoredTensor:
    number = _scalar(a, factor)
    return a.replace_((a.stored_left / number).to(a.dtype), a.stored_right)


def _alike(a: Any, b: Any) -> bool:
    """Whether the factors of two tensors can be put side by side."""
    both = isinstance(a, FactoredTensor) and isinstance(b, FactoredTensor)
    return both and a.shape == b.shape and a.pairs == b.pairs


def _sum(a: FactoredTensor, b: FactoredTensor, alpha: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    b_left = b.stored_left if alpha == 1 else b.stored_left * _scalar(b, alpha)
    columns = -2 if a.pairs else -1
    left = torch.cat([a.stored_left.to(dtype), b_left.to(dtype)], columns)
    return left, torch.cat([a.stored_right.to(dtype), b.stored_right.to(dtype)], columns)


def _add(a: Any, b: Any, alpha: Any = 1) -> Tensor:
    if _alike(a, b):
        return a.with_factors(*_sum(a, b, alpha, torch.promote_types(a.dtype, b.dtype)))
    first, second = (t.to_dense() if isinstance(t, FactoredTensor) else t for t in (a, b))
    return torch.add(first, second, alpha=alpha)


def _subtract(a: Any, b: Any, alpha: Any = 1) -> Tensor:
    if _alike(a, b):
        return _add(a, b, -alpha)
    first, second = (t.to_dense() if isinstance(t, FactoredTensor) else t for t in (a, b))
    return torch.sub(first, second, alpha=alpha)


def _add_(a: Any, b: Any, alpha: Any = 1) -> Tensor:
    if not isinstance(a, FactoredTensor):
        return a.add_(b.to_dense(), alpha=alpha)
    if not isinstance(b, FactoredTensor):
        raise TypeError(
            "a dense tensor cannot be added in place to the factors of a sketched gradient: set"
            " p.grad = p.grad.to_dense() before, use the weight outside its layer only in the same"
            " backward, or build the layer without sketch_rank"
        )
    if not _alike(a, b):
        raise refusal(f"a sum in place with factors of shape {tuple(b.shape)} is not known for")
    return a.replace_(*_sum(a, b, alpha, a.dtype))


def _zero_(a: FactoredTensor) -> FactoredTensor:
    columns = -2 if a.pairs else -1
    return a.replace_(*(t.narrow(columns, 0, 0).clone() for t in a._held))


def _copy_(a: Any, b: Any, *_: Any) -> Tensor:
    if not isinstance(a, FactoredTensor):
        return a.copy_(b.to_dense())
    if not _alike(a, b):
        raise TypeError(
            f"a {type(b).__name__} of shape {tuple(getattr(b, 'shape', ()))} cannot be copied into the"
            f" factors of a sketched gradient of shape {tuple(a.shape)}"
        )
    return a.replace_(*(t.to(a.stored_left, copy=True) for t in b._held))


def _convert(
    a: FactoredTensor,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: Any = None,
    non_blocking: bool = False,
    **_: Any,
) -> FactoredTensor:
    to = a.dtype if dtype is None else dtype
    possible = (
        to.is_complex if a.is_complex() else to.is_floating_point or (to.is_complex and not a.pairs)
    )
    if layout not in (None, torch.strided) or not possible or (a.pairs and to == torch.bfloat16):
        raise refusal(f"a conversion to {layout or to} is not known for")
    options = {"device": device, "dtype": dtype, "non_blocking": non_blocking, "copy": True}
    return a.with_factors(*(t.to(**options) for t in a._held))


def _norm(
    a: FactoredTensor,
    order: Any = 2,
    dim: Any = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    axes = range(a.ndim)
    over = {dim} if isinstance(dim, int) else set(dim or axes)
    if {d % a.ndim for d in over} != set(axes):
        raise refusal(f"a norm over dim {dim}, wanted one over all, for")
    real = a.dtype.to_real()
    total = squared_norm(a.left, a.right).sum().sqrt() if order in (None, 2) else _entry_norm(a, order)
    total = total.to(real if dtype is None else dtype.to_real())
    return total.reshape((1,) * a.ndim) if keepdim else total


_PANEL = 1 << 20  # entries


def _entry_norm(a: FactoredTensor, order: float) -> Tensor:
    """The norm of all entries, a few rows of them at a time."""
    m = a.shape[-3 if a.pairs else -2]
    if a.numel() == 0:
        return torch.linalg.vector_norm(a.to_dense(), order)
    step = max(1, _PANEL * m // a.numel())
    parts = [a._rows(slice(begin, begin + step)) for begin in range(0, m, step)]
    norms = torch.stack([torch.linalg.vector_norm(part, order) for part in parts])
    return norms.sum() if order == 0 else torch.linalg.vector_norm(norms, order)


def _stack(tensors: Sequence[Any], dim: int = 0) -> Tensor:
    first = tensors[0]
    if dim != 0 or not all(_alike(first, t) for t in tensors):
        dense = [t.to_dense() if isinstance(t, FactoredTensor) else t for t in tensors]
        return torch.stack(dense, dim)
    rank = max(t.rank for t in tensors)
    complex_axis = (0, 0) if first.pairs else ()
    stacks = []
    for factors in zip(*(t._held for t in tensors), strict=True):
        padding = [(*complex_axis, 0, rank - t.rank) for t in tensors]
        columns = [torch.nn.functional.pad(f, p) for f, p in zip(factors, padding, strict=True)]
        stacks.append(torch.stack(columns))
    return first.with_factors(*stacks)


def _unscale_(tensors: Sequence[Any], found: Tensor, inverse: Tensor) -> None:
    """For `GradScaler`: scales dense gradients and left factors, and looks for infinities in all."""
    factored = [t for t in tensors if isinstance(t, FactoredTensor)]
    others = [t for t in tensors if not isinstance(t, FactoredTensor)]
    for t in factored:
        t.replace_(t.stored_left.clone(), t.stored_right)
    unscale = aten._amp_foreach_non_finite_check_and_unscale_.default
    unscale(others + [t.stored_left for t in factored], found, inverse)
    unscale([t.stored_right.clone() for t in factored], found, torch.ones_like(inverse))


def _refuse_bucket(*_: Any, **__: Any) -> Any:
    """DistributedDataParallel divides a gradient by the number of ranks into its bucket."""
    raise TypeError(
        "a product with the factors of a sketched gradient was to be written into a dense tensor.  If"
        " DistributedDataParallel did so, call projunn.distributed.reduce_sketches(model) before, on the"
        " very module that is wrapped (a LightningModule itself, not a module inside)"
    )


def _each(single: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    """A rule for lists, of which some tensors are in factors."""
    return lambda tensors, *rest, **options: [single(t, *rest, **options) for t in tensors]


def _each_(single: Callable[..., Tensor]) -> Callable[..., None]:
    """`_each` for an operation in place."""

    def change(tensors: Sequence[Tensor], *rest: Any) -> None:
        for t in tensors:
            single(t, *rest)

    return change


RULES.update(
    {
        aten.detach.default: _shared,
        aten.alias.default: _shared,
        aten.clone.default: _clone,
        aten._to_copy.default: _convert,
        aten.mul.Tensor: _scale,
        aten.mul.Scalar: _scale,
        aten.mul_.Tensor: _scale_,
        aten.mul_.Scalar: _scale_,
        aten.mul.out: _refuse_bucket,
        aten.div.Tensor: _divide,
        aten.div.Scalar: _divide,
        aten.div_.Tensor: _divide_,
        aten.div_.Scalar: _divide_,
        aten.neg.default: lambda a: _scale(a, -1),
        aten.add.Tensor: _add,
        aten.add_.Tensor: _add_,
        aten.sub.Tensor: _subtract,
        aten.sub_.Tensor: lambda a, b, alpha=1: _add_(a, b, -alpha),
        aten.zero_.default: _zero_,
        aten.copy_.default: _copy_,
        aten.norm.Scalar: _norm,
        aten.linalg_vector_norm.default: _norm,
        aten.stack.default: _stack,
        aten._amp_foreach_non_finite_check_and_unscale_.default: _unscale_,
        aten._foreach_norm.Scalar: _each(torch.linalg.vector_norm),
        aten._foreach_mul.Scalar: _each(torch.mul),
        aten._foreach_mul.Tensor: _each(torch.mul),
        aten._foreach_mul_.Scalar: _each_(Tensor.mul_),
        aten._foreach_mul_.Tensor: _each_(Tensor.mul_),
        aten._foreach_div_.Scalar: _each_(Tensor.div_),
        aten._foreach_div_.Tensor: _each_(Tensor.div_),
        aten._foreach_zero_.default: _each_(Tensor.zero_),
    }
)
