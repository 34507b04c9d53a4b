"""TODO."""

import torch
from torch import Tensor

from projunn_kernels.configs.problem import Config, power_of_two
from projunn_kernels.language.plane import CAYLEY, EXP, POLAR
from projunn_kernels.launching import PRECISION, active_list, as_columns, chosen, floats, options
from projunn_kernels.products.launch import adjoint_partials, adjoint_product, product_columns
from projunn_kernels.rank_update.launch import rank_update
from projunn_kernels.retraction.kernels import basis_kernel, plane_basis_kernel, turn_rows_kernel


def turn(
    weight: Tensor,
    left: Tensor,
    right: Tensor,
    retraction: str,
    scale: float,
    active: Tensor | None = None,
    skipped: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """Retract ``W + scale X Y^H`` in place, k <= MAX_RANK; the mask (A,) of the steps taken.

    Three launches and 3 m n numbers for m <= n; the mirror image reads W twice and updates it once.
    """
    tall = weight.shape[-2] > weight.shape[-1]
    x, y = as_columns(left), as_columns(right)
    if tall:
        own, pulled = x, product_columns(weight, y, active).unsqueeze(1)
    else:
        own, pulled = y, adjoint_partials(weight, x, active)
    count, splits, k, length = pulled.shape
    rank = power_of_two(k)
    q, t = (pulled.new_empty(count, 2 * rank, length) for _ in range(2))
    taken = torch.empty(count, dtype=torch.int8, device=weight.device)
    c = chosen("basis", weight, k, count, None)
    tensors = [floats(tensor) for tensor in (own, pulled, q, t)]
    sizes = (length, splits, scale, PRECISION) if k == 1 else (length, k, splits, scale, PRECISION)
    constants = {
        "RETRACTION": RETRACTION_CODES[retraction],
        "PAIRS": weight.is_complex(),
        "COUNT": skipped is not None,
        "BN": c.columns,
    } | options(c.warps)
    counter = taken if skipped is None else skipped
    if k == 1:
        plane_basis_kernel[(count,)](*tensors, taken, counter, *sizes, **constants)
    else:
        basis_kernel[(count,)](*tensors, taken, counter, *sizes, K=rank, **constants)
    if tall:
        rank_update(weight, t.mT, adjoint_product(weight, q.mT, active), active)
    else:
        turn_rows(weight, q, t, taken, active, config)
    return taken.bool()


def turn_rows(
    weight: Tensor,
    q: Tensor,
    t: Tensor,
    taken: Tensor,
    active: Tensor | None,
    config: Config | None = None,
) -> None:
    """``W += (W Q) T^H`` from Q and T as (A, S, n), in place where ``taken``."""
    count, s, n = q.shape
    m = weight.shape[-2]
    c = chosen("turn_rows", weight, s // 2, count, config)
    turn_rows_kernel[(-(-m // c.rows), count)](
        floats(weight),
        floats(q),
        floats(t),
        taken,
        active_list(taken, active),
        m,
        n,
        PAIRS=weight.is_complex(),
        ACTIVE=active is not None,
        BM=c.rows,
        BN=c.columns,
        S=s,
        HOLD=c.hold,
        **options(c.warps),
    )


RETRACTION_CODES = {"exp": EXP.value, "polar": POLAR.value, "cayley": CAYLEY.value}
