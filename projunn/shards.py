"""Which matrices of a unitary parameter this process holds, where FSDP or tensor parallelism cuts it."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from projunn.layout import single, view_like
from projunn_kernels import private


def is_sharded(p: Tensor) -> bool:
    """Whether a parameter is a DTensor."""
    return hasattr(p, "placements")


def has_whole_matrices(p: Any) -> bool:
    """Whether each process holds all of the matrices of which it holds any, of a DTensor."""
    batch = p.ndim - (3 if p.pairs else 2)
    return (
        p.blocks == 1
        and not p.singletons
        and all(
            placement.is_replicate() or (placement.is_shard() and placement.dim < batch)
            for placement in p.placements
        )
    )


def is_flattened(p: Any) -> bool:
    """Whether a unitary parameter has too few axes for a matrix: FSDP1 makes vectors of them."""
    return bool(p.ndim < (3 if p.pairs else 2) + p.singletons)


def own_part(tensor: Any) -> Tensor:
    """The part of a tensor, which may be sharded, that this process holds; shares memory."""
    part: Tensor = tensor.detach().to_local() if is_sharded(tensor) else tensor
    return part


def own_matrices(p: Any) -> Tensor | None:
    """The matrices (*batch, m, n) that this process holds; None if they are cut through.

    They share the memory of ``p``, except that those in half precision are copies in float32.
    """
    if is_flattened(p) or (is_sharded(p) and not has_whole_matrices(p)):
        return None
    return view_like(p, single(own_part(p).detach()))


def flattened_into(parameters: Iterable[Tensor], declarations: Iterable[Any]) -> list[str]:
    """The names of the unitary parameters that FSDP1 has made parts of these, each once.

    Args:
        parameters: those of an optimizer.
        declarations: what modules know of their unitary parameters (`projunn.parameter.Declaration`).
    """
    modules = {id(module) for p in parameters for module in private.flattened_modules(p)}
    names = []
    for known in declarations if modules else ():
        for name, slot in known.slots.items() if id(known.module) in modules else ():
            if not slot.said:
                names.append(f"{name} of {type(known.module).__name__}")
                slot.said = True
    return names
