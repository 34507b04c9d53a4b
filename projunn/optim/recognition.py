"""Which of the parameters that an optimizer is given are unitary, and which of those it cannot step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from projunn.arguments import own_memory
from projunn.manifold import MATRIX_DTYPES, UnitaryParameter, dtype_names
from projunn.noticing import first_few
from projunn.optim.stacked import mark_stacked
from projunn.parameter import declarations, is_unitary, name_of, recognise
from projunn.shards import is_flattened, is_sharded, own_matrices
from projunn_kernels import private


def recognise_parameters(parameters: Sequence[Tensor]) -> None:
    """Marks the unitary ones among the parameters, by what modules know of them or of what is stacked.

    Raises:
        TypeError: a unitary parameter that cannot be stepped: see `check_parameter`.
        ValueError: a module has no parameter any more in the place of a unitary one.
    """
    recognise()
    mark_stacked(parameters)
    for p in parameters:
        check_parameter(p)
    given = {id(p) for p in parameters}
    flattened = {id(module) for p in parameters for module in private.flattened_modules(p)}
    for known in declarations():
        module = known.module
        gone = [] if module is None else [name for name in known.slots if not _there(module, name)]
        if module is None or not gone:
            continue
        if id(module) in flattened or any(id(p) in given for p in module.parameters()):
            raise ValueError(
                f"params: {', '.join(gone)} of {type(module).__name__} should be unitary, and is no"
                " parameter any more (weight_norm, FSDP1 and others put parameters of their own in its"
                " place); wanted it as it was, or projunn.unconstrain(module) if this is meant"
            )


def recognise_again(groups: list[dict[str, Any]], held: Sequence[Tensor]) -> None:
    """Marks the unitary parameters of groups that seem to hold fewer than those that they held.

    DeepSpeed's ZeRO puts one vector of the numbers of all parameters into each group (stage 3 leaves the
    parameters themselves empty), and mixed precision copies of another dtype.

    Raises:
        ValueError: the groups hold such tensors in the place of unitary parameters.
    """
    recognise()
    given = [p for group in groups for p in group["params"]]
    now, plain = set(map(id, given)), [p for p in given if not is_unitary(p)]
    one_each = all(len(group["params"]) < 2 for group in groups)
    vectors = plain if one_each and {p.ndim for p in plain} == {1} else []
    exchanged = [
        p
        for p in held
        if is_unitary(p) and p.requires_grad and id(p) not in now
        if (vectors and is_flattened(p))
        or any(_holds_numbers(q, p) for q in vectors)
        or any(_is_copy(q, p) for q in plain)
    ]
    if exchanged:
        named = first_few(list(map(name_of, exchanged)))
        raise ValueError(
            "params: the groups of an optimizer hold other tensors in the place of"
            f" {named}, which no step would keep unitary (DeepSpeed's ZeRO puts"
            " vectors there, mixed precision copies); wanted the parameters themselves (ZeRO at stage 0)"
            " or, at stages 1 and 2, an optimizer of their own for"
            " projunn.unitary_parameters(model), after projunn.distributed.replicate(model)"
        )


def _holds_numbers(vector: Tensor, p: UnitaryParameter) -> bool:
    """Whether a vector holds the numbers of a parameter; with several processes, whether it may."""
    started = torch.distributed.is_available() and torch.distributed.is_initialized()
    processes = torch.distributed.get_world_size() if started else 1
    if p.numel() > vector.numel() * processes or private.is_fake(p):
        return False
    if processes > 1:
        return True
    held, numbers = (
        torch.view_as_real(t) if t.is_complex() else t for t in (vector.detach(), p.detach())
    )
    return bool(torch.isin(numbers.to(held), held).all())


def _is_copy(tensor: Tensor, p: UnitaryParameter) -> bool:
    """Whether a tensor holds the numbers of a parameter, in another precision."""
    if tensor.shape != p.shape or tensor.dtype == p.dtype or private.is_fake(p):
        return False
    return torch.equal(tensor.detach().to(p), p.detach())


def check_parameter(p: Tensor) -> None:
    """Refuses unitary parameters that cannot be stepped, in words.

    Raises:
        TypeError: a dtype that is not one of `MATRIX_DTYPES`, or a sharded tensor.
        ValueError: an expanded tensor.
    """
    if not isinstance(p, UnitaryParameter):
        return
    if p.dtype not in MATRIX_DTYPES:
        raise TypeError(
            f"params: a unitary parameter of shape {tuple(p.shape)} is {p.dtype}, wanted one of"
            f" {dtype_names()} (use autocast for layers in lower precision)"
        )
    if p.layout == torch.strided and not is_sharded(p):
        own_memory("params", p)
    if is_sharded(p) and p.sketch is not None:
        raise TypeError(
            f"params: {name_of(p)}, of shape {tuple(p.shape)}, is sharded and belongs to a layer with"
            " sketch_rank, whose gradient is never formed; wanted sketch_rank=None, or a parameter that"
            " every process holds: projunn.distributed.replicate(model)"
        )
    if own_matrices(p) is None:
        placed = getattr(p, "placements", None)
        how = "flattened, or a vector" if is_flattened(p) else f"sharded as {placed}"
        name, shape = name_of(p), f"of shape {tuple(p.shape)}"
        name = name if name.endswith(shape) else f"{name}, {shape},"
        raise TypeError(
            f"params: {name} is {how}; a step needs whole matrices, (*batch, m, n); of a sharded model"
            " wanted a parameter that every process holds: projunn.distributed.replicate(model), and"
            " then fully_shard(model, ignored_params=set(projunn.unitary_parameters(model)))"
        )


def _there(module: nn.Module, name: str) -> bool:
    """Whether a parameter is there under its own name, or where PyTorch's reparametrisations keep it."""
    if {name, f"{name}_orig", name.removesuffix("_orig")} & module._parameters.keys():
        return True
    beneath = getattr(module, "parametrizations", {})
    return name in beneath and hasattr(beneath[name], "original")
