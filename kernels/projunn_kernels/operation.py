"""The declaration of an operation: what it is called, what runs it, and what its kernels are.

A call of an operation takes one of two ways, and both end in `Operation.run`::

    under torch.compile, on fake tensors, or where       torch.ops.projunn.<name>, then `run`
    autograd must see it
    everywhere else, so in other operations too          `run`, without the dispatcher's overhead

`Operation.run` launches the Triton kernels where the backend asks for them (`projunn_kernels.backends`),
the arguments fit them and they have passed their check (`projunn_kernels.selfcheck`), and calls the
PyTorch path elsewhere.
"""

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from projunn_kernels import private, selfcheck
from projunn_kernels.backends import uses_triton
from projunn_kernels.configs.kernel import Kernel


def anything(*_: Any, **__: Any) -> bool:
    """The kernels take all arguments that the PyTorch path takes."""
    return True


def nothing(*_: Any, **__: Any) -> None:
    """The fake of an operation that changes its arguments and returns nothing."""


@dataclass(frozen=True)
class Derivative:
    """How autograd differentiates an operation: two functions for `torch.library.register_autograd`."""

    setup_context: Callable[..., None]
    backward: Callable[..., Any]


@dataclass(eq=False, kw_only=True)
class Operation:
    """One operation of the library.  Calling the object carries the operation out.

    Arguments go by keyword.  An operation with a ``bundle`` may be given one instance of it instead.

    Attributes:
        name: the operation is registered as ``torch.ops.projunn.<name>``.
        eager: the PyTorch path.  Its annotations are the schema of the registered operator.
        fake: takes what ``eager`` takes, and makes empty tensors of the result's shapes and strides.
        on: the argument whose tensor (or whose first tensor, of a list) decides the backend.
        launches: the Triton path as ``"module:function"``, imported when it first runs; None if there is
            none.  It takes what ``eager`` takes.
        fits: whether the Triton path takes these arguments.
        mutates: the names of the arguments that are changed in place.
        derivative: how autograd differentiates it; None if it is not differentiable.
        autocast: whether it computes in float32 under ``torch.autocast``.
        bundle: for operations of many arguments, the dataclass whose fields they are.  Then ``eager``,
            ``fake``, ``fits`` and the Triton path take one instance of it.
        kernels: the kernels that it launches.  One that several operations launch is listed by the
            first.
    """

    name: str
    eager: Callable[..., Any]
    fake: Callable[..., Any]
    on: str
    launches: str | None = None
    fits: Callable[..., bool] = anything
    mutates: tuple[str, ...] = ()
    derivative: Derivative | None = None
    autocast: bool = False
    bundle: type[Any] | None = None
    kernels: tuple[Kernel, ...] = ()
    registered: Any = field(init=False)

    def __post_init__(self) -> None:
        if self.name in OPERATIONS:
            raise ValueError(f"name: there is an operation {self.name!r} already")
        OPERATIONS[self.name] = self
        self._signature = inspect.signature(self.eager)
        if self.bundle is not None:
            returned = self._signature.return_annotation
            self._signature = inspect.signature(self.bundle).replace(return_annotation=returned)
        body = self._on_values(self._registered_run)
        self.registered = torch.library.custom_op(
            f"projunn::{self.name}", body, mutates_args=self.mutates
        )
        self.registered.register_fake(self._on_values(self._fake))
        if self.derivative is not None:
            d = self.derivative
            self.registered.register_autograd(d.backward, setup_context=d.setup_context)
        if self.autocast:
            for device in ("cpu", "cuda"):
                self.registered.register_autocast(device, torch.float32)

    def __call__(self, bundle: Any = None, /, **arguments: Any) -> Any:
        values = arguments if bundle is None else vars(bundle)
        tensor = self._tensor(values)
        if torch.compiler.is_compiling() or private.is_fake(tensor):
            return self.registered(**values)
        inside = private.is_below_autograd()  # of the body of another operation
        if self.derivative is not None and not inside:
            return self.registered(**values)
        if inside or torch.is_grad_enabled():
            return self._run(tensor, bundle, arguments)
        with private.below_autograd():
            return self._run(tensor, bundle, arguments)

    def _tensor(self, values: dict[str, Any]) -> Tensor:
        """The tensor that decides the backend."""
        on: Tensor | list[Tensor] = values[self.on]
        return on if isinstance(on, Tensor) else on[0]

    def run(self, **arguments: Any) -> Any:
        """Carry the operation out, by the kernels or by PyTorch, without the dispatcher."""
        return self._run(self._tensor(arguments), None, arguments)

    def _run(self, tensor: Tensor, bundle: Any, arguments: dict[str, Any]) -> Any:
        positional: tuple[Any, ...] = ()
        if self.bundle is not None:
            positional = (self.bundle(**arguments) if bundle is None else bundle,)
            arguments = {}
        if self.launches is None or not uses_triton(tensor) or not self.fits(*positional, **arguments):
            return self.eager(*positional, **arguments)
        try:
            result = self._launches(*positional, **arguments)
        except selfcheck.Distrusted:  # before anything was changed; a warning has said so
            return self.eager(*positional, **arguments)
        changed = vars(positional[0]) if positional else arguments
        for name in self.mutates:
            _note_change(changed[name])
        return result

    @cached_property
    def _launches(self) -> Callable[..., Any]:
        assert self.launches is not None
        module, function = self.launches.split(":")
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
        return found

    def _registered_run(self, **arguments: Any) -> Any:
        """What the registered operator runs; its results must not share memory with its arguments."""
        with private.lazy_views():
            return _contiguous(self._run(self._tensor(arguments), None, arguments))

    def _fake(self, **arguments: Any) -> Any:
        return self.fake(**arguments) if self.bundle is None else self.fake(self.bundle(**arguments))

    def _on_values(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` with the operator's signature, for arguments by position or by keyword."""
        names = tuple(self._signature.parameters)

        def call(*values: Any, **named: Any) -> Any:
            named.update(zip(names, values, strict=False))
            return function(**named)

        call.__signature__ = self._signature  # type: ignore[attr-defined]
        return call


OPERATIONS: dict[str, Operation] = {}


def _note_change(changed: Tensor | Sequence[Tensor]) -> None:
    """Tell autograd of a change that a kernel made and PyTorch did not see."""
    for tensor in (changed,) if isinstance(changed, Tensor) else changed:
        if not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)


def _contiguous(result: Any) -> Any:
    """Every tensor of a result contiguous, as the fakes promise."""
    if isinstance(result, Tensor):
        return result.contiguous()
    if isinstance(result, list | tuple):
        return type(result)([tensor.contiguous() for tensor in result])
    return result
