"""The step of a unitary parameter of which each process holds some matrices, as FSDP2 shards banks.

    parameter, gradient      DTensors, sharded over axes of the batch: blocks, or frequencies
    state                    DTensors likewise, so that distributed checkpoints fit any number of ranks
    step                     of the matrices that this process holds; nothing is communicated

A matrix that is spread over processes has no step of its own (its factors would need the whole of it),
and is refused.
"""

from typing import Any

import torch
from torch import Tensor

from projunn.manifold import UnitaryParameter
from projunn.optim.member import Member


def local_member(index: int, p: Any, state: dict[str, Any], group: dict[str, Any]) -> Member:
    """A sharded parameter's part that this process steps; its state becomes the whole's."""
    grad = p.grad
    if getattr(grad, "placements", None) != p.placements:
        raise TypeError(
            f"params: a parameter sharded as {p.placements} has a gradient that is"
            f" {getattr(grad, 'placements', 'not sharded')}, wanted one that is sharded alike"
        )
    part, own = local_part(p, state)
    return Member(index, part, grad.to_local(), own, group)


def local_part(p: Any, state: dict[str, Any]) -> tuple[UnitaryParameter, "LocalState"]:
    """The matrices that this process holds, which share memory with the parameter, and their state."""
    part = UnitaryParameter(p.to_local().detach(), False, pairs=p.pairs, blocks=1)
    return part, LocalState(p, state)


class LocalState(dict[str, Any]):
    """The part of a sharded parameter's state that this process holds.

    What is put into it is put into the whole state too, as a DTensor; the two share memory.

    Args:
        parameter: the DTensor.
        whole: its state.
    """

    def __init__(self, parameter: Any, whole: dict[str, Any]) -> None:
        super().__init__({n: v.to_local() if hasattr(v, "placements") else v for n, v in whole.items()})
        self._parameter, self._whole = parameter, whole

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        p = self._parameter
        if not isinstance(value, Tensor) or value.ndim == 0:
            self._whole[name] = value
            return
        from torch.distributed.tensor import DTensor  # slow to import, and not in every build

        batch = p.ndim - (3 if p.pairs else 2)
        shape = torch.Size((*p.shape[:batch], *value.shape[batch:]))
        stride = torch.empty(shape, device="meta").stride()
        self._whole[name] = DTensor.from_local(
            value, p.device_mesh, p.placements, run_check=False, shape=shape, stride=stride
        )

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        del self._whole[name]

    def pop(self, name: str, *default: Any) -> Any:
        self._whole.pop(name, None)
        return super().pop(name, *default)
