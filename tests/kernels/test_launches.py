"""The budget of launches, programs and bytes of each path (docs/kernels.md), counted as they run.

Launches are counted wherever the kernels run.  Bytes are counted in the interpreter, by watching its
loads and stores: a number of W or G is counted each time a program loads or stores it, whether it comes
from memory or from a cache.
"""

from collections import Counter

import pytest
import torch

pytest.importorskip("triton")

import projunn
from projunn import init
from projunn.optim import SGD
from projunn_kernels import (
    FusedStep,
    factor,
    fourier_inverse,
    fourier_transform,
    fused_step_,
    rank_update_,
    recurrence,
    retract_,
    sketch,
)
from projunn_kernels.configs import choice as tuning
from projunn_kernels.configs.problem import Config
from projunn_kernels.polish.launch import polish

KINDS = [torch.float32, torch.complex64]


@pytest.fixture
def passes(monkeypatch):
    """``passes(W)``: how often programs read and write each number of W, on average, so far.

    Of a test that is ``interpreter_only``.
    """
    from triton.runtime.interpreter import InterpreterBuilder

    touched = {"load": [], "store": []}

    def watch(name, kind, mask_at):
        inner = getattr(InterpreterBuilder, name)

        def watched(self, pointers, *arguments, **named):
            mask = arguments[mask_at].data.astype(bool)
            touched[kind].append(torch.from_numpy(pointers.data[mask].astype("int64")))
            return inner(self, pointers, *arguments, **named)

        monkeypatch.setattr(InterpreterBuilder, name, watched)

    watch("create_masked_load", "load", 0)
    watch("create_masked_store", "store", 1)

    def count(tensor):
        first, floats = tensor.data_ptr(), tensor.numel() * (2 if tensor.is_complex() else 1)
        found = Counter()
        for kind, addresses in touched.items():
            for at in addresses:
                found[kind] += int(((at >= first) & (at < first + 4 * floats)).sum())
        return found["load"] / floats, found["store"] / floats

    return count


def names(launches):
    return [name for name, _ in launches]


@pytest.mark.interpreter_only
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(
    ("k", "orthonormal", "basis"),
    [(1, ["unit"], ["plane_basis"]), (2, ["gram", "orthonormal"], ["gram", "basis"])],
)
def test_large_matrices(launches, passes, kind, k, orthonormal, basis):
    n = 140
    weight, start = init.haar_(torch.empty(1, n, n, dtype=kind)), torch.randn(1, n, k, dtype=kind)
    gradient = torch.randn(1, n, n, dtype=kind)
    left, right = factor(gradient, start)
    assert names(launches) == ["adjoint_product", *orthonormal, "product"]
    assert passes(gradient) == (2, 0)
    launches.clear()
    retract_(weight, left, right, "exp")
    assert names(launches) == ["adjoint_product", *basis, "rotate_rows"]
    assert passes(weight) == (2, 1)  # 3 n^2 numbers


@pytest.mark.interpreter_only
@pytest.mark.parametrize(("kind", "columns"), [(torch.float32, 3), (torch.complex64, 5)], ids=str)
def test_a_single_pass_over_the_direction(launches, passes, kind, columns):
    n = 140
    lists = [[torch.randn(n, size, dtype=kind)] for size in (n, n)]
    lists += [[torch.randn(2 * n, 1, dtype=kind)] for _ in range(2)]
    counters = [torch.zeros(())], [torch.zeros((), dtype=torch.int64)]
    (weight,) = lists[0]
    init.haar_(weight)
    fused_step_(FusedStep(*lists, *counters, 0.1, factorization="single_pass"))
    step = ["both_products", "unit", "plane_basis", "rotate_ahead"]
    assert names(launches) == ["ahead_is_sound", "rotate_ahead", *step]
    launches.clear()
    reads, writes = passes(weight)
    (direction,) = lists[1] = [torch.randn(n, n, dtype=kind)]
    fused_step_(FusedStep(*lists, *counters, 0.1, factorization="single_pass"))
    assert names(launches) == step
    assert passes(direction) == (1, 0)
    again, written = passes(weight)
    assert again - reads == pytest.approx(1 + columns / n)  # those that are compared with W^H R
    assert written - writes == 1


@pytest.mark.interpreter_only
@pytest.mark.parametrize(("kind", "columns"), [(torch.float32, 3), (torch.complex64, 5)], ids=str)
@pytest.mark.parametrize(("rule", "averages"), [("SGD", 1), ("AdamW", 2)])
def test_a_single_pass_over_gradient_and_averages(launches, passes, kind, columns, rule, averages):
    """6 n^2 numbers with momentum, 8 with AdamW; its squares are real."""
    n = 140
    weight = projunn.UnitaryParameter(init.haar_(torch.empty(n, n, dtype=kind)))
    options = {"momentum": 0.9} if rule == "SGD" else {}
    options |= {"factorization": "single_pass", "polish_every": 0}
    optimizer = getattr(projunn.optim, rule)([weight], lr=0.1, **options)
    weight.grad = torch.randn(n, n, dtype=kind)
    optimizer.step()
    own = [value for value in optimizer.state[weight].values() if value.numel() == n * n]
    assert len(own) == averages
    gradient = weight.grad = torch.randn(n, n, dtype=kind)
    tensors = [gradient, *own, weight.detach()]
    before = list(map(passes, tensors))
    launches.clear()
    optimizer.step()
    assert names(launches) == ["sound", "both_products", "unit", "plane_basis", "rotate_ahead"]
    changes = [(a - b, c - d) for (a, c), (b, d) in zip(map(passes, tensors), before, strict=True)]
    assert changes[0] == (2, 0)
    assert changes[1:-1] == [(1, 1)] * averages
    assert changes[-1] == (pytest.approx(1 + columns / n), 1)


@pytest.mark.interpreter_only
def test_rows_that_do_not_fit_are_read_once_more(launches, passes):
    weight, left, right = init.haar_(torch.empty(1, 140, 140)), *torch.randn(2, 1, 140, 1)
    with tuning.using({"rotate_rows": Config(4, 32, 4)}):
        retract_(weight, left, right, "exp")
    assert names(launches) == ["adjoint_product", "plane_basis", "rotate_rows"]
    assert passes(weight) == (3, 1)  # the third from cache


@pytest.mark.interpreter_only
def test_tall_matrices(launches, passes):
    weight, left, right = (
        init.haar_(torch.empty(1, 60, 40)),
        torch.randn(1, 60, 1),
        torch.randn(1, 40, 1),
    )
    retract_(weight, left, right, "exp")
    assert names(launches) == ["product", "plane_basis", "adjoint_product", "rank_update"]
    assert passes(weight) == (3, 1)


@pytest.mark.interpreter_only
def test_more_than_eight_columns(launches, passes):
    """Products of tiles read a matrix once for all columns, up to k = 64 and 2k = 128."""
    k = 9
    weight, start, gradient = init.haar_(torch.empty(1, 40, 40)), *torch.randn(2, 1, 40, 40)
    left, right = factor(gradient, start[..., :k])
    assert names(launches) == ["adjoint_many", "gather", *["triangle", "combine"] * 2, "product_many"]
    assert passes(gradient) == (2, 0)
    launches.clear()
    retract_(weight, left, right, "exp")
    basis = ["gather", "triangle", "combine", "follow", "turn", "combine"]
    assert names(launches) == ["adjoint_many", *basis, "product_many", "update_many"]
    assert passes(weight) == (3, 1)


@pytest.mark.interpreter_only
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(
    ("k", "rows", "reads"),
    [(1, 16, 1), (1, 4, 2), (2, 16, 2)],
)
def test_blocks_of_many_parameters_share_the_launches(launches, passes, kind, k, rows, reads):
    weights, directions, bases, probes = (
        [torch.randn(1, 16, size, dtype=kind) for _ in range(3)] for size in (16, 16, k, k)
    )
    with tuning.using({"fused_step": Config(rows, 16, 4)}):
        skipped = [torch.zeros(()) for _ in range(3)]
        missed = [torch.zeros(1, dtype=torch.int64) for _ in range(3)]
        fused_step_(FusedStep(weights, directions, bases, probes, skipped, missed, 0.1))
    if k == 1:
        assert launches == [("plane_step", 3)]
    else:
        pulled = ["adjoint_product", "orthonormal", "product", "adjoint_product"]
        assert names(launches) == [*pulled, "basis", "rotate_rows"]
    # several panels: the second read is from cache
    for weight, direction in zip(weights, directions, strict=True):
        assert passes(direction) == (reads, 0)
        assert passes(weight) == (reads, 1)


@pytest.mark.interpreter_only
def test_a_block_without_a_gradient_is_not_read(launches, passes):
    lists = [[torch.randn(2, 16, size)] for size in (16, 16, 1, 1)]
    lists[1][0][0] = 0
    missed = [torch.zeros(2, dtype=torch.int64)]
    fused_step_(FusedStep(*lists, [torch.zeros(())], missed, 0.1))
    (weight,) = lists[0]
    assert passes(weight[0]) == (0, 0)
    assert passes(weight[1]) == (1, 1)


@pytest.mark.interpreter_only
def test_block_sparse_update(launches, passes):
    weight = torch.randn(5, 40, 70)
    left, right = torch.randn(2, 40, 3), torch.randn(2, 70, 3)
    rank_update_(weight, left, right, torch.tensor([3, 1]))
    assert names(launches) == ["rank_update"]
    assert [passes(block) for block in weight] == [(0, 0), (1, 1), (0, 0), (1, 1), (0, 0)]


@pytest.mark.interpreter_only
def test_polish_reads_nothing_before_it_is_due(launches, passes):
    weight = init.haar_(torch.empty(1, 64, 64))
    never_missed = [torch.zeros(1, dtype=torch.int64)], torch.ones(1, 1, dtype=torch.int8)
    polish([weight], [torch.tensor(7)], 3, *never_missed)
    assert names(launches) == ["residual", "correct"]
    assert passes(weight) == (0, 0)
    polish([weight], [torch.tensor(6)], 3, *never_missed)
    # E: 2 tiles of 2 x 2 a tile; the copy, which W is corrected from
    assert passes(weight) == (4 + 1, 1)


def test_an_optimizer_steps_its_parameters_together(kernels, launches):
    layers = [projunn.nn.UnitaryLinear(8, 8, bias=False).to(kernels.device) for _ in range(5)]
    optimizer = SGD([layer.weight for layer in layers], lr=0.1)
    for layer in layers:
        layer.weight.grad = torch.randn(8, 8).to(kernels.device)
    optimizer.step()
    assert launches == [("plane_step", 5)]


@pytest.mark.interpreter_only
def test_a_bank_pays_for_its_active_blocks(launches, passes):
    bank = projunn.UnitaryParameter(init.haar_(torch.empty(1, 4, 4)).repeat(10_000, 1, 1))
    chosen = torch.randperm(10_000)[:32]
    projunn.nn.select_blocks(bank, chosen).square().sum().backward()
    SGD([bank], lr=0.1).step()
    assert launches == [("plane_step", 32)]
    reads, writes = passes(bank.detach())
    assert (reads * 10_000, writes * 10_000) == pytest.approx((32, 32))


def test_a_sketch_is_four_skinny_products_and_a_basis(kernels, launches):
    shapes = (40, 33), (40, 20), (20, 1)
    x, g, basis = (torch.randn(shape).to(kernels.device) for shape in shapes)
    sketch([x], [g], basis)
    assert [name for name, _ in launches] == [
        "product", "adjoint_product", "unit", "product", "adjoint_product",
    ]  # fmt: skip


def test_all_of_time_is_one_launch_each_way(kernels, launches):
    loop(kernels, 16, Config(16, 16, 4, hold=True))
    assert launches == [("recurrence", 3), ("recurrence_backward", 3)]  # 33 rows, 16 a program


def test_a_step_is_a_launch_where_no_program_holds_w(kernels, launches):
    loop(kernels, 70, Config(16, 32, 4, depth=32))
    names = "recurrence_step", "recurrence_step_backward"
    assert launches == [(name, 9) for name in names for _ in range(7)]  # 3 of rows, of units


def loop(kernels, n, config):
    tensors = (torch.randn(s).to(kernels.device) for s in ((7, 33, n), (33, n), (n, n)))
    x, h, w = (t.requires_grad_() for t in tensors)
    with tuning.using(dict.fromkeys(("recurrence", "recurrence_backward"), config)):
        recurrence(x, h, w / n, None, "tanh")[0].sum().backward()


@pytest.mark.interpreter_only
def test_a_transform_moves_every_number_once(passes, launches):
    x = torch.randn(4, 6, 12, 10)
    paired, own = fourier_transform(x, [12, 10], True)
    assert paired.numel() + own.numel() == x.numel()
    y = fourier_inverse(paired, own, torch.randn(6), [12, 10], True)
    assert launches == [("plane_transform", 1), ("plane_inverse", 1)]
    assert passes(x) == (1, 0)
    assert passes(y) == (0, 1)
    assert passes(own) == (1, 1)
    twice = 10 / 58  # bins of 0 and width / 2, each once at its frequency and once at minus it
    assert passes(paired) == (pytest.approx(1 + twice), 1)


@pytest.mark.interpreter_only
def test_a_transform_in_slices_moves_every_number_once(passes, launches):
    x = torch.randn(2, 4, 33, 16)
    with tuning.using(dict.fromkeys(("fourier_transform", "fourier_inverse"), Config(4, 16, 8))):
        paired, own = fourier_transform(x, [33, 16], True)
        y = fourier_inverse(paired, own, torch.randn(4), [33, 16], True)
    assert launches == [("sliced_transform", 2), ("sliced_inverse", 2)]
    assert [passes(t) for t in (x, paired, own, y)] == [(1, 0), (1, 1), (1, 1), (0, 1)]


@pytest.mark.parametrize("keep", [True, False])
def test_a_layer_is_four_transforms_and_plain_products(kernels, launches, keep):
    """Forward: there and back.  Backward: the same, and x once more if its spectrum was not kept."""
    layer = projunn.nn.UnitaryConv2d(2, 3, (5, 6)).to(kernels.device)
    layer.keep_spectrum = keep
    x = torch.randn(4, 2, 5, 6, device=kernels.device, requires_grad=True)
    layer(x).sum().backward()
    again = [] if keep else ["points_transform"]
    names = [name for name, _ in launches]
    assert names == [
        "points_transform",
        "points_inverse",
        *again,
        "points_transform",
        "points_inverse",
    ]
