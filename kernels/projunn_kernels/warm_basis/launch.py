"""The launch that refreshes bases."""

from collections.abc import Sequence

from torch import Tensor

from projunn_kernels.batches import as_matrices, contiguous_matrices, flattened
from projunn_kernels.configs.problem import power_of_two
from projunn_kernels.launching import Launch, Matrices, address_table, floats, options
from projunn_kernels.warm_basis.kernels import warm_basis_kernel


def refresh(left: Tensor, basis: Tensor, probe: Tensor, taken: Tensor) -> None:
    """`projunn_kernels.refresh_basis_` of tensors as users have them, k = 1."""
    with flattened(basis) as bases:
        warm_basis(as_matrices(left), bases, contiguous_matrices(probe), taken.reshape(-1))


def warm_basis(left: Tensor, basis: Tensor, probe: Tensor, taken: Tensor) -> None:
    """k = 1: ``R <- X / |X| + 0.01 probe`` in place, where ``taken``; all (B, m, 1) and contiguous."""
    places = {"basis": floats(basis), "probe": floats(probe), "TABLE": False}
    places |= dict.fromkeys(("skipped", "missed"), taken)  # not read
    _launch(Matrices.of(basis), left.contiguous(), taken.byte(), places)()


def warm_bases_launch(
    left: Tensor,
    bases: Sequence[Tensor],
    probes: Sequence[Tensor],
    taken: Tensor,
    counters: tuple[Tensor, Tensor],
) -> Launch:
    """A launch that refreshes the bases of several parameters, (B, m, k) each, and counts.

    ``left`` is X for k = 1, else orth(X), as (A, k, m) in the order of all their matrices; ``counters``
    are tables of the addresses of ``skipped`` and ``missed`` of `FusedStep`.
    """
    where = Matrices.of_all(bases)
    places = {
        "basis": where.arguments["listed"],
        "probe": address_table(probes),
        "skipped": counters[0],
        "missed": counters[1],
        "TABLE": True,
    }
    return _launch(where, left, taken, places)


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
