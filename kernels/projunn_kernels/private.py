"""Every call into PyTorch that its documentation does not promise, with the version it was read in.

``lazy_views``   torch 2.11 to 2.13: the dispatcher's keys that mark a lazily conjugated tensor.
``below_autograd``, ``is_below_autograd``  torch 2.11 to 2.13: a guard of the dispatcher, and its key.
``hide_from_ddp``  torch 2.11 to 2.13: the parameters that DistributedDataParallel passes over.
``is_fake``      torch 2.11 to 2.13: the class of the tensors that tracing works with.
``flattened_modules``   torch 2.11 to 2.13: what a flat parameter of FSDP1 says of its parts.
``beneath``      torch 2.11 to 2.13: what the transforms of torch.func (vmap, grad, jvp) wrap.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_LAZY_VIEWS = (
    torch._C.DispatchKey.Conjugate,
    torch._C.DispatchKey.Negative,
    torch._C.DispatchKey.ZeroTensor,
)
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


def below_autograd() -> AbstractContextManager[None]:
    """Spares operations the dispatcher's stop at autograd, a sixth of the time of a small one.

    For computations without gradients: inside, nothing is recorded, as under `torch.no_grad`, which
    makes that stop all the same.  Changes in place are still counted.
    """
    guard: AbstractContextManager[None] = torch._C._AutoDispatchBelowAutograd()
    return guard


def is_below_autograd() -> bool:
    """True inside of `below_autograd`, and of what a registered operator runs."""
    key = torch._C.DispatchKey.AutogradFunctionality
    excluded: bool = torch._C._dispatch_tls_is_dispatch_key_excluded(key)
    return excluded


def is_fake(tensor: Tensor) -> bool:
    """True if a tensor holds no numbers: it is on the meta device, or one of tracing's fake tensors."""
    return tensor.is_meta or isinstance(tensor, torch._subclasses.FakeTensor)


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
