"""Sums over the processes of a job, for sketches of the gradient of a joint batch.

With the same basis R on all ranks, and G the mean of the gradients G_r of the ranks:

    Y = orth(sum_r G_r^H R)        X = mean_r G_r Y

so that two sums of skinny products make the sketch of G exactly, the same bits on all ranks.
"""

import torch
import torch.distributed as dist
from torch import Tensor

WORLD = "world"  # the name of the default group
_groups: dict[str, "dist.ProcessGroup"] = {}


def name_of(group: "dist.ProcessGroup | None") -> str:
    """A name by which `total` and `mean` find a process group; None is the default group."""
    if group is None:
        return WORLD
    _groups[group.group_name] = group
    return group.group_name


def total(tensor: Tensor, group: str) -> Tensor:
    """The sum over the ranks of a group.  Without a name, or in a process on its own, the tensor."""
    if not group or not (dist.is_available() and dist.is_initialized()):
        return tensor
    if group != WORLD and group not in _groups:
        raise RuntimeError(
            f"process_group: {group!r} is not known in this process; call"
            " projunn.distributed.reduce_sketches(model, process_group) again"
        )
    tensor = tensor.contiguous().resolve_conj()
    numbers = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    dist.all_reduce(numbers, group=_groups.get(group))
    return tensor


def mean(tensor: Tensor, group: str) -> Tensor:
    """`total` over the number of ranks."""
    if not group or not (dist.is_available() and dist.is_initialized()):
        return tensor
    return total(tensor, group) / dist.get_world_size(_groups.get(group))
