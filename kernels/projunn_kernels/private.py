"""Every call into PyTorch that its documentation does not promise.

All were read in torch 2.11 to 2.13.  Each function says what the call is for; one whose call is in other
versions says in which.
"""

import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._library.autograd import make_autograd_impl
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

_LAZY_VIEWS = (
    torch._C.DispatchKey.Conjugate,
    torch._C.DispatchKey.Negative,
    torch._C.DispatchKey.ZeroTensor,
)
_TRACED = (torch._subclasses.FakeTensor, torch._subclasses.functional_tensor.FunctionalTensor)
_NOTHING = nullcontext()


def lazy_views() -> AbstractContextManager[None]:
    """Makes sure that lazy conjugation and negation are applied inside this context.

    A graph compiled by Inductor calls operators with these keys switched off in the dispatcher (torch
    2.11 to 2.13).  Without this context ``a.mH @ b`` of complex tensors is silently ``a.mT @ b`` there.
    """
    if not torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.Conjugate):
        return _NOTHING
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in _LAZY_VIEWS:
        excluded = excluded.remove(key)
    included = torch._C._dispatch_tls_local_include_set()
    guard: AbstractContextManager[None] = torch._C._ForceDispatchKeyGuard(included, excluded)
    return guard


# ``torch.backends.<backend>.matmul.fp32_precision``: ``ieee``, ``tf32``, ``bf16`` or ``none``
float32_setting: Callable[[str, str], str] = torch._C._get_fp32_precision_getter


# Whether a device has autocast on; compiled code asks it too.
is_autocast_on: Callable[[], bool] = torch._C._is_any_autocast_enabled


def warms_up_a_graph(device: torch.device) -> bool:
    """Whether ``torch.compile(mode="reduce-overhead")`` runs what it will capture next.

    What is allocated then belongs to the graph, and PyTorch raises if it is kept.
    """
    trees = sys.modules.get("torch._inductor.cudagraph_trees")
    if trees is None:
        return False
    index = torch.cuda.current_device() if device.index is None else device.index
    try:
        manager = trees.get_manager(index, create_if_none_exists=False)
    except AssertionError:  # torch 2.11: of a thread that has no graphs
        return False
    return manager is not None and manager.path_state is trees.ExecutionState.WARMUP


# The index of the current GPU; there is none in a build for CPUs.
current_device: Callable[[], int] = getattr(torch._C, "_cuda_getDevice", lambda: -1)


def current_raw_stream(device: int | None = None) -> int:
    """The handle of the current stream of a GPU, by its index; of the current GPU without one."""
    index = torch._C._cuda_getDevice() if device is None else device
    handle: int = torch._C._cuda_getCurrentRawStream(index)
    return handle


def below_autograd() -> AbstractContextManager[None]:
    """Spares operations the dispatcher's stop at autograd, a sixth of the time of a small one.

    For computations without gradients: inside, nothing is recorded, as under `torch.no_grad`, which
    makes that stop all the same.  Changes in place are still counted.
    """
    guard: AbstractContextManager[None] = torch._C._AutoDispatchBelowAutograd()
    return guard


# Inside, attributes of subclasses of Tensor are read without a look for ``__torch_function__``, which
# takes two thirds of the time.
as_plain_tensors = torch._C.DisableTorchFunctionSubclass


def is_below_autograd() -> bool:
    """True inside of `below_autograd`, and of what a registered operator runs."""
    key = torch._C.DispatchKey.AutogradFunctionality
    excluded: bool = torch._C._dispatch_tls_is_dispatch_key_excluded(key)
    return excluded


def is_fake(tensor: Tensor) -> bool:
    """True if a tensor holds no numbers: it is on the meta device, or one that tracing works with.

    Backward passes are traced with functional tensors, and only since torch 2.13 does
    `torch.compiler.is_compiling` say so then: with 2.11 the loop over time was traced step by step.
    """
    return tensor.is_meta or isinstance(tensor, _TRACED)


def in_transform() -> bool:
    """True inside of a transform of ``torch.func``, and of a level of forward-mode differentiation."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def is_orthogonal_parametrization(module: Any) -> bool:
    """True for what `torch.nn.utils.parametrizations.orthogonal` registers."""
    return isinstance(module, torch.nn.utils.parametrizations._Orthogonal)


def is_batched(tensor: Tensor | None) -> bool:
    """True if ``torch.autograd.grad(is_grads_batched=True)`` and its kin made the tensor."""
    if tensor is None or torch.compiler.is_compiling():
        return False
    return torch._C._functorch.is_legacy_batchedtensor(tensor)


def traced_by_jit() -> bool:
    """True while ``torch.jit`` traces a program."""
    return torch._C._get_tracing_state() is not None


# How many modes are to see the operators that are called.
active_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack


def traced_by_make_fx() -> bool:
    """True while ``make_fx`` traces a program, also with tensors that hold numbers: a mode does it."""
    return torch.fx.experimental.proxy_tensor.get_proxy_mode() is not None


def is_watched() -> bool:
    """True if a mode is to see the operators that are called, or ``torch.jit`` traces them."""
    modes = active_modes() or torch._C._len_torch_function_stack()
    return bool(modes) or traced_by_jit()


def is_plain_tensor(tensor: Tensor) -> bool:
    """True if no code but PyTorch's own is behind a tensor: it is no subclass that has operators."""
    kind = type(tensor)
    if kind is not Tensor and (
        kind.__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl
        or kind.__torch_function__ is not torch._C._disabled_torch_function_impl
    ):
        return False
    return not torch._C._functorch.is_legacy_batchedtensor(tensor)


def derivative_is_wanted(arguments: Iterable[Any]) -> bool:
    """True if one of the tensors requires a gradient or carries a tangent.  Lists are looked into."""
    for value in arguments:
        if isinstance(value, list | tuple):
            if derivative_is_wanted(value):
                return True
        elif isinstance(value, Tensor) and (value.requires_grad or _has_tangent(value)):
            return True
    return False


def _has_tangent(tensor: Tensor) -> bool:
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None


def in_transform_or_export() -> bool:
    """True in a transform, and while ``torch.export`` or ``torch.jit`` traces a program."""
    return (
        forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch.compiler._is_exporting_flag
        or traced_by_jit()
    )


def may_count_flops() -> bool:
    """True if a mode is active that may be a counter of flops."""
    return "torch.utils.flop_counter" in sys.modules and active_modes() > 0


def tell_flop_counters(operator: Any, count: Callable[..., int]) -> None:
    """Gives an operator's formula to active counters of `torch.utils.flop_counter`, and to later ones.

    Not beforehand, because the module of that class imports triton.
    """
    module = sys.modules.get("torch.utils.flop_counter")
    if module is not None:
        module.flop_registry.setdefault(operator, count)
        for mode in _get_current_dispatch_mode_stack():
            if isinstance(mode, module._FlopCounterMode):
                mode.counter.flop_registry.setdefault(operator, count)


def in_onnx_export() -> bool:
    """True while ``torch.onnx`` exports, for operators: the module is not imported for the question."""
    return "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export()


def traced_for_onnx() -> bool:
    """True while ``torch.onnx`` traces a module, for layers: one flag, which compiled code guards on.

    (`torch.compiler._is_compiling_flag` would not do: it differs when the guards are looked at.)
    """
    return torch.compiler._is_exporting_flag and in_onnx_export()


def break_graph(reason: str) -> None:
    """Makes Dynamo leave the calling function to Python, or, with ``fullgraph=True``, say why not."""
    if torch.compiler.is_dynamo_compiling():
        torch._dynamo.graph_break(reason)


def watch(
    operator: Any,
    instead: Callable[[Callable[..., Any], tuple[Any, ...]], Any],
    *,
    differentiable: bool,
) -> None:
    """Hands calls of a custom operator that reach autograd to ``instead(usual, arguments)``.

    ``usual(*arguments)`` goes on as without it.  What `torch.library.custom_op` registers for the key of
    autograd knows no forward mode and no `torch.func`: it drops tangents without a word.  Calls of a
    ``differentiable`` operator are handed on only inside of a transform or while something traces, so
    that others pay for three questions, and those of others also where gradients are enabled.
    """
    kernel = make_autograd_impl(operator._opoverload, operator)
    transforms, modes = torch._C._are_functorch_transforms_active, active_modes

    def watching(keyset: Any, *arguments: Any) -> Any:
        if (
            forward_ad._current_level < 0
            and not transforms()
            and not modes()
            and (differentiable or not torch.is_grad_enabled())
        ):
            return kernel(keyset, *arguments)
        return instead(lambda *values: kernel(keyset, *values), arguments)

    for key in ("AutogradCPU", "AutogradCUDA", "AutogradMeta"):
        operator._lib.impl(operator._name, watching, key, with_keyset=True)


def batch(operator: Any, rule: Callable[..., Any]) -> None:
    """Runs ``rule`` in place of a custom operator where ``torch.vmap`` batches one of the arguments.

    The rule gets them still batched.  Those of `CustomOpDef.register_vmap` get them without their level,
    and cannot call `torch.vmap` again.
    """
    operator._lib.impl(operator._name, rule, "FuncTorchBatched")


def hide_from_ddp(module: torch.nn.Module, names: list[str]) -> None:
    """Adds to the parameters of ``module`` whose gradients ``DistributedDataParallel`` leaves alone.

    It knows those of the wrapped module itself by names that begin with a point, and those of one that
    was compiled before by the prefix of the class that ``torch.compile`` returns.
    """
    known = getattr(module, "_ddp_params_and_buffers_to_ignore", ())
    spellings = [f"{prefix}{name}" for prefix in ("", ".", "_orig_mod.") for name in names]
    every = [*known, *(name for name in spellings if name not in known)]
    ddp = torch.nn.parallel.DistributedDataParallel
    ddp._set_params_and_buffers_to_ignore_for_model(module, every)


def beneath(tensor: Tensor) -> Tensor:
    """The tensor that holds the memory of one that is wrapped by transforms such as ``vmap``."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def flattened_modules(parameter: Tensor) -> list[torch.nn.Module]:
    """The modules whose parameters FSDP1 has flattened into this one."""
    return [info.module for info in getattr(parameter, "_param_infos", ())]


def optimizer_within(optimizer: torch.optim.Optimizer) -> Any:
    """The optimizer that another one holds for its share of the parameters; None if it holds none."""
    return getattr(optimizer, "optim", None)


def let_proxies_take(kind: type[Tensor]) -> None:
    """Makes ``make_fx``, and so `torch.func.linearize`, take tensors of a class as parameters.

    Otherwise they leave a tensor to the ``__torch_dispatch__`` of its class, and raise if it has none.
    """
    tracing: Any = torch.fx.experimental.proxy_tensor
    if kind not in tracing.HANDLED_TYPES:
        tracing.HANDLED_TYPES = (*tracing.HANDLED_TYPES, kind)
