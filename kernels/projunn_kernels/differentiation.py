"""Operations that autograd differentiates, called without the dispatcher.

A call of a registered operator passes ten functions of `torch.library` before it gets to the operation,
and takes the host longer than its launches.  Eager calls on plain tensors need none of them.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from projunn_kernels import private


def function_of(
    name: str,
    run: Callable[..., Any],
    setup: Callable[..., None],
    differentiate: Callable[..., Any],
) -> Callable[..., Any]:
    """A function of arguments by position, which autograd differentiates.

    It does what `torch.library.register_autograd` does with the same functions.

    Args:
        name: of the operation, which profilers show.
        run: takes arguments by position, and makes new tensors: one, or a tuple or list.
        setup: called as ``setup(ctx, inputs=..., output=...)``.
        differentiate: called as ``differentiate(ctx, *grads)``; a gradient for each argument.
    """

    def forward(ctx: Any, *values: Any) -> Any:
        with private.below_autograd():
            result = run(*values)
        result = tuple(result) if isinstance(result, list) else result
        setup(ctx, inputs=values, output=result)
        return result

    members = {"forward": staticmethod(forward), "backward": staticmethod(differentiate)}
    made = type(f"projunn_{name}", (torch.autograd.Function,), members)
    apply: Callable[..., Any] = made.apply  # type: ignore[attr-defined]
    return apply


def is_plain(values: Iterable[Any]) -> bool:
    """Whether a call with these arguments concerns nobody but autograd.

    Modes, tracing, and subclasses of tensors that have operators of their own are to see the operator.
    """
    if private.is_watched():
        return False
    for value in values:
        if isinstance(value, Tensor):
            if not private.is_plain_tensor(value):
                return False
        elif isinstance(value, list | tuple) and any(isinstance(one, Tensor) for one in value):
            return False
    return True
