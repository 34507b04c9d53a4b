"""The launch that refreshes bases."""

from collections.abc import Sequence

import torch
from torch import Tensor

from projunn_kernels.batches import contiguous_matrices, flattened
from projunn_kernels.configs.problem import power_of_two
from projunn_kernels.launching import Launch, Matrices, floats, options
from projunn_kernels.warm_basis.kernels import warm_basis_kernel


def refresh(left: Tensor, basis: Tensor, probe: Tensor, taken: Tensor) -> None:
    """`projunn_kernels.refresh_basis_` of tensors as users have them, k = 1."""
    with flattened(basis) as bases:
        warm_basis(contiguous_matrices(left), bases, contiguous_matrices(probe), taken.reshape(-1))


def warm_basis(left: Tensor, basis: Tensor, probe: Tensor, taken: Tensor) -> None:
    """k = 1: ``R <- X / |X| + 0.01 probe`` in place, where ``taken``; all (B, m, 1) and contiguous."""
    places = {"basis": floats(basis), "probe": floats(probe), "TABLE": False}
    places |= dict.fromkeys(("skipped", "missed"), taken)  # not read
    _launch(Matrices.of(basis), left, taken.to(torch.int8), places)()


def warm_bases_launch(left: Tensor, bases: Matrices, taken: Tensor, tables: Sequence[Tensor]) -> Launch:
    """A launch that refreshes the bases of several parameters and counts steps that were not taken.

    ``left`` is X for k = 1, else orth(X), as (A, k, m) in the order of all their matrices; ``tables``
    have the addresses of the probes and of ``skipped`` and ``missed`` of `FusedStep`.
    """
    places = {"basis": bases.base, "TABLE": True}
    places |= zip(("probe", "skipped", "missed"), tables, strict=True)
    return _launch(bases, left, taken, places)


def _launch(where: Matrices, left: Tensor, taken: Tensor, places: dict[str, object]) -> Launch:
    _, m, k = where.sample.shape
    config = where.config("warm_basis", k, table=places["TABLE"])
    return Launch(
        warm_basis_kernel,
        (where.count,),
        left=floats(left),
        **places,
        taken_mask=taken,
        matrices=where.sample.shape[0],
        m=m,
        k=k,
        PAIRS=left.is_complex(),
        BN=config.columns,
        K=power_of_two(k),
        **options(config.warps),
    )
