"""Launches of a retraction: the factors of the step between two passes over W."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from projunn_kernels.batches import as_matrices, flattened
from projunn_kernels.configs.problem import power_of_two
from projunn_kernels.constants import MAX_MANY, MAX_RANK
from projunn_kernels.factorization.launch import Parts, gram_launch, is_alone
from projunn_kernels.launching import (
    PRECISION,
    Chain,
    Launch,
    Matrices,
    as_columns,
    floats,
    options,
)
from projunn_kernels.products.launch import (
    adjoint_launch,
    adjoint_partials,
    adjoint_product,
    product,
    product_columns,
    product_launch,
)
from projunn_kernels.rank_update.launch import few_launch, rank_update, update_launch
from projunn_kernels.retraction import rotations
from projunn_kernels.retraction.eager import rotated_basis
from projunn_kernels.retraction.kernels import (
    basis_kernel,
    plane_basis_kernel,
    rotate_rows_kernel,
)
from projunn_kernels.retraction.many import Rotation, many_rotations
from projunn_kernels.retraction.rotations import named


def device_function(retraction: str, k: int) -> Any:
    """The Triton function that makes F of E, for steps of rank k up to MAX_RANK."""
    return rotations.device_function(retraction, "plane" if k == 1 else "small")


def retract(
    weight: Tensor, left: Tensor, right: Tensor, retraction: str, active: Tensor | None = None
) -> Tensor:
    """`projunn_kernels.retract_` of tensors as users have them, and of any rank."""
    batch = weight.shape[:-2] if active is None else active.shape
    if weight.numel() == 0 or batch.numel() == 0:
        return torch.ones(batch, dtype=torch.bool, device=weight.device)
    x, y = as_matrices(left), as_matrices(right)
    with flattened(weight) as matrices:
        few = left.shape[-1] <= MAX_MANY and named(retraction).kernels is not None
        retract_any = retract_few if few else _retract_by_products
        return _of_present(retract_any(matrices, x, y, retraction, active), active).reshape(batch)


def retract_pulled(
    weight: Tensor,
    pulled: Tensor,
    right: Tensor,
    moved: Tensor,
    retraction: str,
    active: Tensor | None = None,
) -> Tensor:
    """`projunn_kernels.retract_pulled_` of tensors as users have them, and of any rank.

    The pass that updates W makes W Y itself.
    """
    batch = weight.shape[:-2] if active is None else active.shape
    if weight.numel() == 0 or batch.numel() == 0:
        return torch.ones(batch, dtype=torch.bool, device=weight.device)
    z, y = as_matrices(pulled), as_matrices(right)
    with flattened(weight) as matrices:
        if right.shape[-1] <= MAX_MANY and named(retraction).kernels is not None:
            columns, partial = as_columns(y), as_columns(z).unsqueeze(1)
            taken = _rotate_few(matrices, columns, partial, retraction, active)
        else:
            taken = _rotate_by_products(matrices, y, z, retraction, active)
        return _of_present(taken, active).reshape(batch)


def _of_present(taken: Tensor, active: Tensor | None) -> Tensor:
    """The mask, False for entries that name no matrix: their factors are whatever memory held."""
    return taken if active is None else taken & (active >= 0)


def _retract_by_products(
    weight: Tensor, left: Tensor, right: Tensor, retraction: str, active: Tensor | None
) -> Tensor:
    """`retract_few` for any rank: the passes over W are launches, what is between them is PyTorch."""
    if weight.shape[-2] > weight.shape[-1]:
        factor, pulled = left, product(weight, right, active)
    else:
        factor, pulled = right, adjoint_product(weight, left, active)
    return _rotate_by_products(weight, factor, pulled, retraction, active)


def _rotate_by_products(
    weight: Tensor, factor: Tensor, pulled: Tensor, retraction: str, active: Tensor | None
) -> Tensor:
    rotated, basis, taken = rotated_basis(factor, pulled, retraction, weight.dtype)
    if weight.shape[-2] > weight.shape[-1]:
        rank_update(weight, rotated, adjoint_product(weight, basis, active), active)
    else:
        rank_update(weight, product(weight, basis, active), rotated, active)
    return taken


def retract_few(
    weight: Tensor, left: Tensor, right: Tensor, retraction: str, active: Tensor | None = None
) -> Tensor:
    """Retract ``W + X Y^H`` in place, k <= MAX_MANY; the mask (A,) of the steps taken.

    For k <= MAX_RANK three launches and 3 m n numbers for m <= n; the mirror image reads W twice and
    updates it once.
    """
    x, y = as_columns(left), as_columns(right)
    if weight.shape[-2] > weight.shape[-1]:
        factor, pulled = x, product_columns(weight, y, active).unsqueeze(1)
    else:
        factor, pulled = y, adjoint_partials(weight, x, active)
    return _rotate_few(weight, factor, pulled, retraction, active)


def _rotate_few(
    weight: Tensor, factor: Tensor, pulled: Tensor, retraction: str, active: Tensor | None
) -> Tensor:
    """The rest of `retract_few`, from Y as (A, k, n) and the partial sums (A, splits, k, n) of Z."""
    where = Matrices.of(weight, active)
    run, rotation = rotation_launch(where, factor, pulled, retraction)
    run()
    if weight.shape[-2] > weight.shape[-1]:
        pushed = adjoint_product(weight, rotation.basis.mT, active)
        if rotation.many:
            update_launch(where, rotation.rotated, as_columns(pushed), rotation.taken)()
        else:
            rank_update(weight, rotation.rotated.mT, pushed, active)
    else:
        rows_launch(where, rotation)()
    return rotation.taken.bool()


class Warm(NamedTuple):
    """What a step that is taken makes the bases of the next one from: ``R <- orth(X) + 0.01 probe``.

    Attributes:
        columns: X, (A, k, m).
        found: a place for what is found of it between the passes: for k = 1 one over its norm, (A,) in
            float64, else orth(X), (A, k, m).
        bases, probes, skipped, missed: tables of the addresses of these tensors of `FusedStep`.
    """

    columns: Tensor
    found: Tensor
    bases: Tensor
    probes: Tensor
    skipped: Tensor
    missed: Tensor

    @classmethod
    def of(cls, columns: Tensor, *tables: Tensor) -> "Warm":
        """Of columns X, and the tables."""
        if columns.shape[1] > 1:
            found = torch.empty_like(columns)
        else:
            found = torch.empty(columns.shape[0], dtype=torch.float64, device=columns.device)
        return cls(columns, found, *tables)


def rotation_launch(
    where: Matrices,
    factor: Tensor,
    pulled: Tensor,
    retraction: str,
    rate: float = -1.0,
    scale: Tensor | None = None,
    alone: bool | None = None,
    warm: Warm | None = None,
) -> tuple[Launch | Chain, Rotation]:
    """A launch that makes Q and T of the step ``-rate Z Y^H``, and where it makes them.

    Or a few launches; ``alone`` if one program makes all of a matrix.  Y is ``factor``, (A, k, n), Z the
    sum of ``pulled``, (A, splits, k, n), and the rate is ``rate``, times the 0-d tensor ``scale`` if
    given.  For k = 1 Y may come as partial sums too, (A, splits, 1, n).  For k <= MAX_RANK what is found
    of the columns of ``warm`` is made too.
    """
    count, splits, k, length = pulled.shape
    if k > MAX_RANK:
        return many_rotations(where, factor, pulled, retraction, rate, scale, alone)
    rank, pairs = power_of_two(k), pulled.is_complex()
    q, t = (pulled.new_empty(count, 2 * rank, length) for _ in range(2))
    taken = torch.empty(count, dtype=torch.int8, device=pulled.device)
    alone = is_alone(pulled) if alone is None else alone and k > 1
    variant = {"retraction": retraction, "scaled": scale is not None, "alone": alone}
    config = where.config("basis", k, **variant, warm=warm is not None)
    arguments = {
        "right": floats(factor),
        "partial": floats(pulled),
        "basis": floats(q),
        "rotated_basis": floats(t),
        "taken_mask": taken,
        "rate_tensor": floats(q) if scale is None else scale,
        "rate": rate,
        "n": length,
        "splits": splits,
        "precision": PRECISION,
        "ROTATE": device_function(retraction, k),
        "PAIRS": pairs,
        "HAS_RATE": scale is not None,
        "BN": config.columns,
    } | options(config.warps)
    rotation = Rotation(q, t, taken)
    if k == 1:
        arguments |= {"right_splits": factor.shape[1], "HOLD": config.columns >= length}
        arguments |= {"WARM": warm is not None, "left": floats(q), "inverses": taken, "m": 0}
        if warm is not None:
            columns = warm.columns
            arguments |= {"left": floats(columns), "inverses": warm.found, "m": columns.shape[-1]}
        return Launch(plane_basis_kernel, (count,), **arguments), rotation
    shared = Parts.of(pulled, 2 * rank, alone, config)
    left = None if warm is None else (warm.columns, Parts.of(warm.columns, rank, alone, config))
    columns, other = (q, shared) if left is None else left
    arguments |= {"columns": shared.columns, "gram": shared.gram, "each": shared.each}
    arguments |= {"parts": shared.parts, "left_each": other.each, "m": columns.shape[-1]}
    arguments |= {"left_columns": other.columns, "left_gram": other.gram, "left": floats(columns)}
    arguments["left_factor"] = floats(q if warm is None else warm.found)
    grid = shared.parts + (0 if left is None else other.parts), count
    last = Launch(basis_kernel, grid, k=k, K=rank, ALONE=alone, **arguments)
    if alone:
        return last, rotation
    first = gram_launch(pulled, shared, config, factor, rate, scale, left)
    return Rates(first, last), rotation


class Rates(Chain):
    """Two launches that both get the arguments that change."""

    def __init__(self, first: Launch, last: Launch) -> None:
        super().__init__([first], last)
        self._first = first

    def __call__(self, **changed: Any) -> None:
        """Launch both."""
        self._first(**changed)
        self.main(**changed)


def columns_launch(where: Matrices, rotation: Rotation) -> Chain:
    """Launches that make ``W += T (W^H Q)^H`` in place, m > n, where the step is taken.

    They are the mirror image of `rows_launch`, Q and T being of the left side, and a sum between them.
    """
    push, partial = adjoint_launch(where, rotation.basis.shape[1], rotation.basis)
    before: list[Callable[[], object]] = [push]
    pushed = partial[:, 0]
    if partial.shape[1] > 1:
        pushed = torch.empty_like(pushed, memory_format=torch.contiguous_format)
        before.append(functools.partial(torch.sum, partial, 1, out=pushed))
    if rotation.many:
        return Chain(before, update_launch(where, rotation.rotated, pushed, rotation.taken))
    return Chain(before, few_launch(where, rotation.rotated, pushed))


def rows_launch(where: Matrices, rotation: Rotation, warm: Warm | None = None) -> Launch | Chain:
    """A launch that makes ``W += (W Q) T^H`` in place, where the step is taken; two for k > MAX_RANK.

    For k <= MAX_RANK it makes the bases of the next step too, if there is ``warm``.
    """
    weight, s = where.sample, rotation.basis.shape[1]
    if rotation.many:
        run, moved = product_launch(where, rotation.basis)
        return Chain([run], update_launch(where, moved, rotation.rotated, rotation.taken))
    _, m, n = weight.shape
    config = where.config("rotate_rows", s // 2, listed=where.listed, warm=warm is not None)
    arguments = {name: value for name, value in where.arguments.items() if name != "TYPE"}
    if warm is None:
        names = ("columns", "inverses", "bases", "probes", "skipped", "missed")
        arguments |= {**dict.fromkeys(names, rotation.taken), "k": 0, "WARM": False}  # not read
    else:
        x, found, *tables = warm
        columns, inverses = (x, found) if s == 2 else (found, rotation.taken)
        arguments |= dict(zip(("bases", "probes", "skipped", "missed"), tables, strict=True))
        arguments |= {"columns": floats(columns), "inverses": inverses, "k": x.shape[1], "WARM": True}
    return Launch(
        rotate_rows_kernel,
        (-(-m // config.rows), where.count),
        weight=where.base,
        basis=floats(rotation.basis),
        rotated_basis=floats(rotation.rotated),
        taken_mask=rotation.taken,
        **arguments,
        m=m,
        n=n,
        PAIRS=weight.is_complex(),
        BM=config.rows,
        BN=config.columns,
        S=s,
        HOLD=config.hold,
        **options(config.warps),
    )
