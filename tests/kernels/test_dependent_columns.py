"""Steps whose columns depend on each other, of every rank and in every way, against float64."""

import pytest
import torch

from projunn import init
from projunn_kernels import retract_
from projunn_kernels.factorization.rows import orthonormal_rows
from projunn_kernels.factorization.rows import precise as precise_kind
from tests.dense import defect, precise, retracted

KINDS = pytest.mark.parametrize("kind", [torch.float32, torch.complex64], ids=str)


def copies(columns):
    """All but three are copies of these, or of their opposites."""
    k = columns.shape[-1]
    signs = torch.tensor([1.0, -1.0]).repeat(k)[:k]
    return columns[..., torch.arange(k) % 3] * signs


def combinations(columns, spread=0.0):
    """Those after the first three are sums of them, but for ``spread``."""
    first, k = columns[..., :3], columns.shape[-1]
    mixture = torch.randn(first.shape[-1], k, dtype=columns.dtype)
    return first @ mixture / 2 + spread * columns


def nothing(columns):
    """Half of the columns are zero, the first with them."""
    return columns * (torch.arange(columns.shape[-1]) % 2)


def few_rows(columns):
    """All is in the first two rows, so that rounding has no other direction to go to."""
    return columns * (torch.arange(columns.shape[-2]) < 2)[:, None]


WAYS = {
    "copies": copies,
    "combinations": combinations,
    "within 1e-3": lambda columns: combinations(columns, 1e-3),
    "within 1e-6": lambda columns: combinations(columns, 1e-6),
    "within 1e-9": lambda columns: combinations(columns, 1e-9),
    "nothing": nothing,
    "few rows": few_rows,
}


def check(kernels, kind, m, n, k, retraction, of_left, of_right, size=1.0):
    torch.manual_seed(1200000 + 64 * m + k)
    start = init.haar_(torch.empty(1, m, n, dtype=kind))
    left, right = (torch.randn(1, length, k, dtype=kind) / length**0.5 for length in (m, n))
    left, right = of_left(left), of_right(right)
    left *= size / torch.linalg.matrix_norm(left @ right.mH, 2)
    wanted = retracted(start, left, right, retraction)
    weight = start.to(kernels.device)
    with kernels.backend():
        taken = retract_(weight, left.to(kernels.device), right.to(kernels.device), retraction)
    assert taken.all()
    assert defect(weight) < 3e-7
    assert (precise(weight) - wanted).abs().max() < 1e-6 + 2e-7 * size


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("kind", "m", "n", "k"),
    [(torch.float32, 19, 30, 8), (torch.float32, 30, 19, 5), (torch.complex64, 30, 19, 5)],
)
def test_a_few_columns(kernels, way, kind, m, n, k):
    """Of the left factor, of the right one, and of both: which comes first in a basis matters."""
    for of_left, of_right in [(WAYS[way], torch.clone), (torch.clone, WAYS[way]), (WAYS[way], copies)]:
        check(kernels, kind, m, n, k, "cayley", of_left, of_right, size=0.7)


@KINDS
@pytest.mark.parametrize("n", [21, 150])
def test_two_columns_that_are_one(kernels, kind, n):
    check(kernels, kind, n, n, 2, "exp", torch.clone, lambda columns: columns[..., :1].repeat(1, 1, 2))


@KINDS
@pytest.mark.parametrize("retraction", ["exp", "cayley"])
@pytest.mark.parametrize(("n", "k"), [(2, 4), (7, 8)])
def test_more_columns_than_rows(kernels, kind, retraction, n, k):
    check(kernels, kind, n, n, k, retraction, torch.clone, torch.clone, size=0.5)
    check(kernels, kind, n, n, k, retraction, copies, combinations, size=0.5)


@KINDS
@pytest.mark.parametrize(
    ("way", "retraction"), [("copies", "polar"), ("within 1e-6", "exp"), ("few rows", "cayley")]
)
def test_many_columns(kernels, kind, retraction, way):
    """In several blocks, 2k of them: a block depends on another."""
    n, k = (26, 10) if kind.is_complex else (40, 18)
    check(kernels, kind, n, n, k, retraction, WAYS[way], copies, size=0.7)


@pytest.mark.parametrize("way", ["within 1e-9", "nothing"])
def test_many_columns_of_other_kinds(kernels, way):
    check(kernels, torch.complex64, 30, 24, 9, "cayley", copies, WAYS[way])
    check(kernels, torch.float32, 36, 50, 17, "cayley", WAYS[way], combinations)


@pytest.mark.parametrize(("retraction", "k"), [("exp", 6), ("cayley", 10)])
def test_a_large_step(kernels, retraction, k):
    check(kernels, torch.complex64, 24, 24, k, retraction, combinations, copies, size=300.0)


@KINDS
def test_the_columns_are_what_their_coordinates_say(kernels, kind):
    """P = K Q to rounding, also where Q holds rounding in place of what P lacks, and is short."""
    k, n = (10, 30) if kind.is_complex else (20, 50)
    columns = copies(torch.randn(1, n, k, dtype=kind))
    rows = torch.cat([columns, combinations(columns)], dim=-1).mT.contiguous().to(kernels.device)
    wanted = rows.to(precise_kind(rows))
    with kernels.backend():
        found = orthonormal_rows(wanted.clone(), torch.empty_like(rows), keep=True)
        for run in found.runs:
            run()
    coordinates = found.coordinates
    if kind.is_complex:
        coordinates = torch.complex(coordinates[:, ::2, ::2], coordinates[:, 1::2, ::2])
    q = found.rows
    assert torch.linalg.svdvals(q).max() < 1 + 1e-6
    assert (coordinates[:, : 2 * k, : 2 * k] @ q - wanted).abs().max() < 1e-8 * wanted.abs().max()
