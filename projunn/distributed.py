"""Unitary weights in jobs of many processes: `reduce_sketches` for DDP, `replicate` for FSDP2."""

from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from projunn.manifold import unitary_parameters
from projunn.parameter import name_of as parameter_name
from projunn.shards import is_sharded
from projunn_kernels import private
from projunn_kernels.sketching.ranks import name_of

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def reduce_sketches(module: Module, process_group: "dist.ProcessGroup | None" = None) -> Module:
    """Makes the sketched gradients of ``module`` those of the joint batch of all ranks.

        model = projunn.distributed.reduce_sketches(model)
        model = DistributedDataParallel(model)

    With the mean G of the gradients G_r of the ranks, each layer's backward computes

        Y = orth(sum over r of G_r^H R)        X = mean over r of G_r Y        G ~ X Y^H

    by two all-reduces of k n and k m numbers, in place of one of m n.  That is the sketch of G itself,
    to rounding, and the same bits on all ranks: replicas that start equal stay equal.  All other
    gradients are left to ``DistributedDataParallel``, which is told to pass over the sketched weights.
    Under its ``no_sync`` sketches are summed over the ranks all the same.

    Call it on the very module that is wrapped next.  Sketched weights, and what their sketches start
    from, are copied from the first rank of the group.  All ranks must then run the same layers in the
    same order, each with a batch of any size (an empty one too).  It stays in force in copies and
    pickles; a process without ``torch.distributed`` is a job of one rank.

    Args:
        module: any module.  One without sketched gradients is returned unchanged.
        process_group: the ranks; None for all.

    Raises:
        RuntimeError: ``torch.distributed`` is not initialised.
        ValueError: a unitary weight is on the meta device.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("process_group: call torch.distributed.init_process_group first")
    hollow = [p for p in unitary_parameters(module) if p.is_meta]
    if hollow:
        raise ValueError(
            f"module: {parameter_name(hollow[0])} is on the meta device and has no numbers to copy;"
            " wanted the module after to_empty and the loading of its weights"
        )
    sketched = {id(p): p for p in unitary_parameters(module) if p.sketch is not None}
    for p in sketched.values():
        assert p.sketch is not None
        p.sketch.group = name_of(process_group)
        for tensor in (p.detach(), p.sketch.stored_left):
            dist.broadcast(tensor, group=process_group, group_src=0)
    _watch_optimizers()
    named = module.named_parameters(remove_duplicate=False)
    private.hide_from_ddp(module, [name for name, p in named if id(p) in sketched])
    return module


@torch.no_grad()
def replicate(module: Module, process_group: "dist.ProcessGroup | None" = None) -> Module:
    """Keeps the unitary weights of ``module`` whole on every rank, and the same, beside FSDP2.

        model = projunn.distributed.replicate(model)
        fully_shard(model, ignored_params=set(projunn.unitary_parameters(model)))

    FSDP2 shards the first axis of a parameter.  That cuts a bank of blocks or frequencies between
    matrices, and `projunn.optim` steps those where they are.  It cuts a dense weight through its rows,
    which have no step of their own: such a weight is to be held by all ranks, and what FSDP2 is told to
    ignore it does not reduce either.  This function copies the weights from the first rank, sets up the
    sketched ones as `reduce_sketches` does, and averages every other unitary weight's gradient over the
    ranks whenever a backward has added to it.

    That is a hook of the parameter, which goes with it where ``to_empty`` or
    ``load_state_dict(assign=True)`` put another in its place: call this function after them, also on a
    module that was sharded on the meta device.

    Args:
        module: any module.  What is sharded in it already is left to FSDP2.
        process_group: the ranks; None for all.

    Raises:
        RuntimeError: ``torch.distributed`` is not initialised.
        ValueError: a unitary weight is on the meta device.
    """
    reduce_sketches(module, process_group)
    ranks = dist.get_world_size(process_group)

    def average(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        stored = parameter.grad
        dist.all_reduce(
            torch.view_as_real(stored) if stored.is_complex() else stored, group=process_group
        )
        stored.div_(ranks)

    for p in unitary_parameters(module):
        if p.sketch is None and not is_sharded(p):
            dist.broadcast(p.detach(), group=process_group, group_src=0)
            trained = p.requires_grad
            p.requires_grad_(True).register_post_accumulate_grad_hook(average)
            p.requires_grad_(trained)  # PyTorch takes no hook of a frozen one, which may thaw
    return module


@cache
def _watch_optimizers() -> None:
    """From now on ``ZeroRedundancyOptimizer`` refuses sketched weights, once in the life of a process.

    Only the rank that owns a weight would learn what its next sketch starts from.
    """
    from torch.distributed.optim import ZeroRedundancyOptimizer

    def refuse(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not isinstance(optimizer, ZeroRedundancyOptimizer):
            return
        for group in optimizer.param_groups:
            for p in group["params"]:
                if getattr(p, "sketch", None) is not None:
                    raise TypeError(
                        "params: ZeroRedundancyOptimizer got the weight of a layer with sketch_rank,"
                        f" {tuple(p.shape)}; give such weights to an optimizer of projunn.optim of their"
                        " own, which keeps little more than their factors"
                    )

    register_optimizer_step_pre_hook(refuse)
