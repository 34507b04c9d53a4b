"""Retractions of every dtype, rank, shape and layout, with factors of every size and kind.

A step is the one of the dense formula in float64, or is not taken: then every bit stays.  It may be
left only where it is not determined to working precision.
"""

import torch

from projunn import retract, retract_
from projunn_kernels import RETRACTIONS
from tests.dense import precise, retracted
from tests.fuzz.checks import check, check_unitary, eps, finite, flat, same, unchanged
from tests.fuzz.draw import BATCHES, SIZES

SHARE = 28
KINDS = ("random", "random", "one-hot", "equal", "dependent", "normal", "annihilating", "zero")
# Of an entry, in units of eps (1 + ‖X‖‖Y‖), for polar over the smallest singular value.
ERROR = {torch.float32: 5, torch.float64: 100}  # measured: 0.5 and 14
KNOWN = 1e3  # the sizes of steps up to which the formula is evaluated


def case(draw):
    dtype, retraction = draw.dtype(), draw.choice("retraction", tuple(RETRACTIONS))
    batch = draw.choice("batch", BATCHES)
    m = draw.choice("m", SIZES)
    n = m if draw.chance("square", 0.6) else draw.choice("n", SIZES)
    k = draw.choice("k", sorted({1, 1 + draw.below(min(m, n, 8)), min(m, n)}))
    start = draw.haar(*batch, m, n, dtype=dtype)
    left, right = factors(draw, start, k)
    left, right = draw.spoiled(left, 0.1), draw.spoiled(right, 0.1)
    weight, memory = draw.laid_out("layout", start)
    left, _ = draw.laid_out("left layout", left)
    right, _ = draw.laid_out("right layout", right)
    kept = memory.clone(), left.clone(), right.clone()
    if draw.chance("in place", 0.5):
        check(retract_(weight, left, right, retraction) is weight, "retract_ returns another tensor")
        result = weight.clone()
        weight.copy_(start)  # the rest of the memory must be what it was
    else:
        result = retract(weight, left, right, retraction)
    check(same(memory, kept[0]), "memory beside the weight changed")
    check(same(left, kept[1]) and same(right, kept[2]), "the factors changed")
    check(result.shape == start.shape and result.dtype == dtype, "the result has another shape or dtype")
    check_unitary(result, "the result")
    compare(*(flat(t) for t in (start, left, right, result)), retraction)


def factors(draw, weight, k):
    *batch, m, n = weight.shape
    dtype, kind = weight.dtype, draw.choice("kind", KINDS)
    left, right = draw.randn(*batch, m, k, dtype=dtype), draw.randn(*batch, n, k, dtype=dtype)
    if kind == "one-hot":
        left, right = torch.zeros_like(left), torch.zeros_like(right)
        left[..., draw.below(m), 0] = right[..., draw.below(n), 0] = 1
    elif kind == "equal":
        left, right = left[..., :1].expand_as(left), right[..., :1].expand_as(right)
    elif kind == "dependent":
        right = right[..., :1] * torch.tensor([(1.0, 1e-7, 0.0, -1.0)[j % 4] for j in range(k)])
        right = right.to(dtype)
    elif kind == "normal":
        left = weight @ right
    elif kind == "annihilating":  # W + D is singular, but for the gap
        q = torch.linalg.qr(draw.randn(*batch, n if m <= n else m, k, dtype=dtype))[0]
        gap = draw.choice("gap", (0.0, 1e-12, 1e-7, 1e-4, 0.1))
        left, right = (-(1 - gap) * (weight @ q), q) if m <= n else (q, -(1 - gap) * (weight.mH @ q))
        return left, right
    elif kind == "zero":
        left = torch.zeros_like(left)
    size = draw.scale("size", dtype)
    share = draw.choice("share", (0.0, 0.5, 1.0))
    left, right = left * size**share, right * size ** (1 - share)
    return left, right


def compare(start, left, right, result, retraction):
    """Compare matrices (B, m, n) with the formula."""
    kept, sound = unchanged(start, result), finite(left) & finite(right)
    check((kept | sound).all(), "a matrix moved whose factors are not finite")
    sizes = torch.linalg.matrix_norm(precise(left)) * torch.linalg.matrix_norm(precise(right))
    for i in torch.nonzero(sound & (sizes < KNOWN)).flatten():
        roundoff = eps(start) * (1 + sizes[i].item())
        smallest = smallest_of_polar(start[i], left[i], right[i]) if retraction == "polar" else 1.0
        if smallest < 100 * roundoff or (kept[i] and sizes[i] > 0.1 * eps(start) ** -0.5):
            continue  # the step is not determined: whether it is taken or not, the result is unitary
        expected = retracted(start[i], left[i], right[i], retraction)
        error = (precise(result[i]) - expected).abs().max().item()
        bound = ERROR[start.dtype.to_real()] * roundoff / smallest
        words = "not taken" if kept[i] else f"off by {error:.2g}, above {bound:.2g}"
        size = sizes[i].item()
        check(error < bound, f"a step is {words} (size {size:.2g}, singular value {smallest:.2g})")


def smallest_of_polar(weight, left, right):
    """The smallest singular value of I + W^H D, or of its mirror image if W is tall; at most 1."""
    w, x, y = precise(weight), precise(left), precise(right)
    if w.shape[-2] > w.shape[-1]:
        w, x, y = w.mH, y, x
    shifted = w.mH @ x @ y.mH
    shifted.diagonal().add_(1)
    return min(1.0, torch.linalg.svdvals(shifted)[-1].item())
