"""The declaration of an operation: what it is called, what runs it, and what its kernels are.

A call of an operation takes one of two ways, and both end in `Operation.run`::

    under torch.compile, autocast and modes, on fake     torch.ops.projunn.<name>, then `run`
    tensors and subclasses
    everywhere else, so in other operations too          `run`, without the dispatcher's overhead, and
                                                         where a gradient is wanted in a function of
                                                         autograd (`projunn_kernels.differentiation`)

`Operation.run` launches the Triton kernels where the backend asks for them (`projunn_kernels.backends`),
the arguments fit them and they have passed their check (`projunn_kernels.selfcheck`), and calls the
PyTorch path elsewhere.

What must see through an operator meets its ``plain`` formula: the transforms of ``torch.func``, forward
mode, a second derivative where there is no `Derivative`, and the export to ONNX.  An operator without
one refuses them by its name.
"""

import importlib
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from projunn_kernels import private, selfcheck
from projunn_kernels.backends import TooManyPrograms, chosen_backend, run_under, uses_triton
from projunn_kernels.configs.kernel import Kernel
from projunn_kernels.differentiation import function_of, is_plain
from projunn_kernels.precision import exact_products, may_be_inexact, without_autocast


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
        derivative: how autograd differentiates it, or None.
        plain: the formula in PyTorch operations that change nothing in place, or None.  It takes what
            ``eager`` takes, and is differentiated and batched as PyTorch does it.
        flops: how many multiplications and additions of real numbers its matrix products are, or None.
            It takes what ``eager`` takes.
        autocast: whether it takes half precision under ``torch.autocast``, as float32.  No operation
            computes in half precision because of it.
        tf32: whether its products of float32 may be in TF32 where PyTorch's setting says so; those of
            other operations are exact (`projunn_kernels.precision`).
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
    plain: Callable[..., Any] | None = None
    flops: Callable[..., int] | None = None
    autocast: bool = False
    tf32: bool = False
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
        self._names = tuple(self._signature.parameters)
        self._defaults = {name: p.default for name, p in self._signature.parameters.items()}
        body = self._on_values(self._registered_run)
        self.registered = torch.library.custom_op(
            f"projunn::{self.name}", body, mutates_args=self.mutates
        )
        self.registered.register_fake(self._on_values(self._fake))
        self._function: Callable[..., Any] | None = None
        if self.derivative is not None:
            self.registered.register_autograd(self._backward, setup_context=self._setup_context)
            run = self._on_values(lambda **arguments: _contiguous(self.run(**arguments)))
            self._function = function_of(self.name, run, self._setup_context, self._backward)
        if self.autocast:
            for device in _AUTOCAST:
                self.registered.register_autocast(device, torch.float32)
        private.watch(self.registered, self._watched, differentiable=self.derivative is not None)
        if self.plain is not None:
            private.batch(self.registered, self._plainly)

    def __call__(self, bundle: Any = None, /, **arguments: Any) -> Any:
        values = arguments if bundle is None else vars(bundle)
        tensor = self._tensor(values)
        if (
            torch.compiler.is_compiling()
            or private.is_fake(tensor)
            or private.in_transform()
            or (private.active_modes() and private.traced_by_make_fx())
        ):
            if private.in_transform() and _is_autocast_on(tensor):
                return self._in_float32(tensor.device.type, values)
            self._tell_flop_counters()
            # By name: the Dynamo of torch 2.11 cannot unpack the ``__dict__`` of a frozen dataclass.
            return self.registered(**{n: values[n] for n in self._names if n in values})
        if private.is_below_autograd():  # in the body of another operation
            return self._run(tensor, bundle, arguments)
        # Most calls want none of derivatives, half precision and counted flops.
        wants = torch.is_grad_enabled()
        cast = self.autocast and _is_autocast_on(tensor)
        by_autograd = self.derivative is not None or (self.plain is not None and wants)
        is_counted = self.flops is not None and private.may_count_flops()
        if not by_autograd and not cast and not is_counted:
            with nullcontext() if wants else private.below_autograd():
                return self._run(tensor, bundle, arguments)
        given = [values[n] if n in values else self._defaults[n] for n in self._names]
        if cast or not is_plain(given):  # autocast, modes and subclasses are to see the operator
            self._tell_flop_counters()
            return self.registered(**values)
        if wants and private.derivative_is_wanted(given):
            return self.registered(**values) if self._function is None else self._function(*given)
        with private.below_autograd():
            return _contiguous(self._run(tensor, bundle, arguments))

    def _tensor(self, values: dict[str, Any]) -> Tensor:
        """The tensor that decides the backend."""
        on: Tensor | list[Tensor] = values[self.on]
        return on if isinstance(on, Tensor) else on[0]

    def run(self, **arguments: Any) -> Any:
        """Carry the operation out, by the kernels or by PyTorch, without the dispatcher."""
        return self._run(self._tensor(arguments), None, arguments)

    def _run(self, tensor: Tensor, bundle: Any, arguments: dict[str, Any]) -> Any:
        if private.is_autocast_on():
            return without_autocast(self._run, tensor, bundle, arguments)
        if self.tf32 or not may_be_inexact():
            return self._carry_out(tensor, bundle, arguments)
        with exact_products:
            return self._carry_out(tensor, bundle, arguments)

    def _carry_out(self, tensor: Tensor, bundle: Any, arguments: dict[str, Any]) -> Any:
        positional: tuple[Any, ...] = ()
        if self.bundle is not None:
            positional = (self.bundle(**arguments) if bundle is None else bundle,)
            arguments = {}
        if self.launches is None or not uses_triton(tensor) or not self.fits(*positional, **arguments):
            return self.eager(*positional, **arguments)
        try:
            if tensor.is_cuda and tensor.get_device() != private.current_device():
                with torch.cuda.device(tensor.device):  # to which Triton launches
                    result = self._launches(*positional, **arguments)
            else:
                result = self._launches(*positional, **arguments)
        except (selfcheck.Distrusted, TooManyPrograms):  # before anything was changed
            return self.eager(*positional, **arguments)
        changed = vars(positional[0]) if positional else arguments
        _note_change([changed[name] for name in self.mutates])
        return result

    @cached_property
    def _launches(self) -> Callable[..., Any]:
        assert self.launches is not None
        module, function = self.launches.split(":")
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
        return found

    def _registered_run(self, **arguments: Any) -> Any:
        """The body of the registered operator, whose results must share memory with nothing.

        Those of an operation in place are masks, which launches may write into memory that they keep.
        """
        with private.lazy_views():
            result = self._run(self._tensor(arguments), None, arguments)
            if self.mutates and isinstance(result, Tensor):
                return result.clone(memory_format=torch.contiguous_format)
            return _contiguous(result)

    def _watched(self, usual: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """The registered operator where autograd sees it: runs ``usual``, or the plain formula."""
        in_transform = private.in_transform()
        by_formula = in_transform or (self.derivative is None and torch.is_grad_enabled())
        if by_formula and private.derivative_is_wanted(arguments):
            if self.plain is not None:
                return self._plainly(*arguments)
            if in_transform:
                raise NotImplementedError(
                    f"torch.ops.projunn.{self.name} has no derivative under torch.func and in forward"
                    " mode; its arguments must not depend on what is differentiated (detach them)"
                )
        if self.plain is not None and private.in_onnx_export():
            return self._plainly(*arguments)
        return usual(*arguments)

    def _setup_context(self, ctx: Any, **values: Any) -> None:
        assert self.derivative is not None
        ctx.chosen = chosen_backend()
        self.derivative.setup_context(ctx, **values)

    def _backward(self, ctx: Any, *grads: Any) -> Any:
        """The backward, which autograd may run on another thread, under the backend of the forward."""
        assert self.derivative is not None
        return run_under(ctx.chosen, self.derivative.backward, ctx, *grads)

    def _tell_flop_counters(self) -> None:
        if self.flops is not None and not torch.compiler.is_compiling():
            private.tell_flop_counters(getattr(torch.ops.projunn, self.name), self._count)

    def _count(self, *arguments: Any, out_val: Any = None, **named: Any) -> int:
        """The formula of flops, for `torch.utils.flop_counter`."""
        count, bundle = self.flops, self.bundle
        assert count is not None
        call = count if bundle is None else lambda **values: count(bundle(**values))
        found: int = self._on_values(call)(*arguments, **named)
        return found

    def _plainly(self, *arguments: Any) -> Any:
        if private.is_autocast_on():
            return without_autocast(self._plainly, *arguments)
        plain, bundle = self.plain, self.bundle
        assert plain is not None
        call = plain if bundle is None else lambda **values: plain(bundle(**values))
        return self._on_values(call)(*arguments)

    def _in_float32(self, kind: str, values: dict[str, Any]) -> Any:
        """A call without autocast, which transforms would leave to the operations of the formula."""
        halves = (torch.float16, torch.bfloat16) if self.autocast else ()
        single = {
            n: v.float() if isinstance(v, Tensor) and v.dtype in halves else v for n, v in values.items()
        }
        with torch.autocast(kind, enabled=False):
            return self.registered(**single)

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
_AUTOCAST = ("cpu", "cuda")


def _is_autocast_on(tensor: Tensor) -> bool:
    """Whether a device that operations are registered for has autocast on; others may not know it."""
    return tensor.device.type in _AUTOCAST and torch.is_autocast_enabled(tensor.device.type)


def _note_change(changed: list[Any]) -> None:
    """Tell autograd of changes that kernels made to tensors, or lists of them, behind its back."""
    tensors: list[Tensor] = []
    for one in changed:
        if isinstance(one, Tensor):
            tensors.append(one)
        elif one is not None:
            tensors.extend(one)
    try:
        torch.autograd.graph.increment_version(tensors)
    except RuntimeError:  # tensors of inference mode, which have no version, are among them
        torch.autograd.graph.increment_version([t for t in tensors if not t.is_inference()])


def _contiguous(result: Any) -> Any:
    """Every tensor of a result contiguous, as the fakes promise."""
    if isinstance(result, Tensor):
        return result.contiguous()
    if isinstance(result, list | tuple):
        return type(result)([tensor.contiguous() for tensor in result])
    return result
