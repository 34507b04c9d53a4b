"""Every call into PyTorch that its documentation does not promise, with the version it was read in.

``lazy_views``   torch 2.11 to 2.13: the dispatcher's keys that mark a lazily conjugated tensor.
``below_autograd``, ``is_below_autograd``  torch 2.11 to 2.13: a guard of the dispatcher, and its key.
``is_fake``      torch 2.11 to 2.13: the classes of the tensors that tracing works with.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

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
    """True if a tensor holds no numbers: it is on the meta device, or one that tracing works with.

    Backward passes are traced with functional tensors, and only since torch 2.13 does
    `torch.compiler.is_compiling` say so then: with 2.11 the loop over time was traced step by step.
    """
    return tensor.is_meta or isinstance(tensor, _TRACED)
