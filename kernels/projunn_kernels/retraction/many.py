"""Launches of the factors of a step of more than 8 columns.

    P = [Y, Z]        H = P P^H = (N L)(N L)^H        Q = (N L)^-1 P        G = Q Q^H        T = F Q

The rows of P are the columns of a step.  What one Cholesky factor makes of them need not be
orthonormal: F is that of the Gram matrix which they have (`projunn_kernels.retraction.kernels.series`).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from projunn_kernels.batches import programs
from projunn_kernels.configs.problem import device_of
from projunn_kernels.factorization.rows import (
    Rows,
    Run,
    combined,
    gathered,
    gram_of,
    orthonormal_rows,
    whole_space,
)
from projunn_kernels.launching import PRECISION, Chain, Launch, Matrices, floats, options
from projunn_kernels.retraction.kernels import (
    begin_kernel,
    defect_kernel,
    follow_kernel,
    series,
    small_product_kernel,
    turn_kernel,
)
from projunn_kernels.retraction.rotations import device_function, named

# Products of two places, where they go, and what is added to them, or that it is a defect.
_F, _J, _M, _SQUARE, _CUBE, _SUM, _OTHER, _G, _E = (
    getattr(series, place).value for place in ("F", "J", "M", "SQUARE", "CUBE", "SUM", "OTHER", "G", "E")
)
_NOTHING, _BOTH, _DEFECT = series.NOTHING.value, series.BOTH.value, -3
_POLYNOMIAL = (
    (_J, _G, _M, _NOTHING),
    (_M, _M, _SQUARE, _NOTHING),
    (_SQUARE, _M, _SUM, 6),
    (_CUBE, _SUM, _OTHER, 3),
    (_CUBE, _OTHER, _SUM, 0),
    (_SUM, _J, _F, _NOTHING),
)
_CHECK = ((_G, _F, _M, _NOTHING), (_F, _F, _SQUARE, _DEFECT))
_OF_SKEW = (*_POLYNOMIAL, *_CHECK)
_OF_DEFECT = (
    (_G, _E, _M, _NOTHING),
    (_E, _E, _J, _DEFECT),
    *_POLYNOMIAL,
    (_G, _F, _M, _NOTHING),
    (_E, _M, _F, _BOTH),
    *_CHECK,
)
_ONE_BLOCK = 32


class Rotation(NamedTuple):
    """Q and T = Q F^H as (A, S, n), and the mask (A,) of the steps that are taken, int8.

    Those of k > MAX_RANK are ``many``, and hold anything where the step is not taken.
    """

    basis: Tensor
    rotated: Tensor
    taken: Tensor
    many: bool = False


def many_rotations(
    where: Matrices,
    factor: Tensor,
    pulled: Tensor,
    retraction: str,
    rate: float,
    scale: Tensor | None,
    alone: bool | None = None,
) -> tuple[Chain, Rotation]:
    """`projunn_kernels.retraction.launch.rotation_launch` for k > MAX_RANK.

    Where 2k is n or more, Q is the identity and [Y, Z] are coordinates in it.
    """
    count, _, k, n = pulled.shape
    gather, columns = gathered(pulled, factor)
    if 2 * k >= n:
        found = whole_space(columns)
        q = torch.eye(n, dtype=pulled.dtype, device=pulled.device).repeat(count, 1, 1)
    else:
        q = pulled.new_empty(count, 2 * k, n)
        found = orthonormal_rows(columns, q, keep=True)
        found.runs.append(gram_of(found.rows, found.gram))
    t = torch.empty_like(q)
    runs, taken = _turn(where, found, k, retraction, rate, scale, alone)
    after: Run = lambda: t.copy_(found.change)  # noqa: E731
    if 2 * k < n:
        after = combined(found.change, found.rows, t, None, found.config, lower=False)
    chain = Chain([gather, *found.runs], runs[0], [*runs[1:], after])
    return chain, Rotation(q, t, taken, many=True)


def _turn(
    where: Matrices,
    found: Rows,
    k: int,
    retraction: str,
    rate: float,
    scale: Tensor | None,
    alone: bool | None,
) -> tuple[list[Launch], Tensor]:
    """Launches that make conj F, and the mask of the steps taken; the first one gets the rate.

    If that is ``alone``, a program makes all of a matrix: if it has one block, or there are as many
    matrices as multiprocessors.  Else each product has a launch, with a program for each block.
    """
    device, count, (rows, side) = where.sample.device, where.count, found.coordinates.shape[1:]
    how, pairs = named(retraction), where.sample.is_complex()
    if alone is None:
        alone = side <= _ONE_BLOCK or count >= device_of(device).processors
    config = where.config("turn", k, retraction=retraction, scaled=scale is not None, alone=alone)
    blocks, used = side // config.rows, programs(count, device) if alone else count
    parts = 1 if alone else blocks**2
    scratch, sums = (
        torch.empty(length, dtype=torch.float64, device=device)
        for length in (used * series.PLACES.value * side**2, count * (3 * parts + 1))
    )
    taken = torch.empty(count, dtype=torch.int8, device=device)
    shared = {"scratch": scratch, "blocks": blocks, "B": config.rows, "num_stages": 1}
    shared |= options(config.warps)
    result = {"change": floats(found.change), "sums": sums, "size": found.change.shape[-1]}
    given = {
        "coordinates": found.coordinates,
        "gram": floats(found.gram),
        "k": k,
        "rows": rows,
        "splits": found.gram.shape[1],
    }
    rates = {
        "rate_tensor": scratch if scale is None else scale,
        "rate": rate,
        "HAS_RATE": scale is not None,
    }
    terms = {"TERMS": device_function(retraction, "terms")}
    ended = Launch(
        turn_kernel,
        (used,),
        finite_mask=found.finite,
        taken_mask=taken,
        limit=how.limit,
        precision=PRECISION,
        count=count,
        PARTS=parts,
        ROTATE=device_function(retraction, "terms" if how.squared else "many"),
        SQUARED=how.squared,
        PAIRS=pairs,
        **given,
        **result,
        **shared,
    )
    if alone:
        more = {"count": count, "OF_DEFECT": how.of_defect, "PAIRS": pairs}
        made = Launch(follow_kernel, (used,), **more, **rates, **terms, **given, **result, **shared)
        return [made, ended], taken
    grid = parts, count
    size = {name: result[name] for name in ("sums", "size")}
    runs = [Launch(begin_kernel, grid, PAIRS=pairs, **size, **rates, **given, **shared)]
    for left, right, out, added in _OF_DEFECT if how.of_defect else _OF_SKEW:
        if added == _DEFECT:
            last = {"LAST": left == _F, "PAIRS": pairs}
            runs.append(Launch(defect_kernel, grid, **last, **result, **shared))
        else:
            places = {"LEFT": left, "RIGHT": right, "OUT": out, "ADDED": added}
            runs.append(Launch(small_product_kernel, grid, **terms, **places, **shared))
    return [*runs, ended], taken
