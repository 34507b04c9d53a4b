"""Whole steps of the kernels against float64, and against the PyTorch path."""

import pytest
import torch

import projunn
from projunn import factorize, init, retract
from projunn_kernels import FusedStep, fused_step_
from projunn_kernels.launching import Launch
from tests.combinations import pairwise
from tests.dense import RETRACTIONS, defect, precise

RATE = 0.05
KINDS = (torch.float32, torch.complex64)


def draw(kind, m, n, k, batch=2, device="cpu"):
    weight = init.haar_(torch.empty(batch, m, n, dtype=kind))
    direction = torch.randn(batch, m, n, dtype=kind)
    basis, probe = (torch.randn(batch, m, k, dtype=kind) for _ in range(2))
    counters = torch.zeros(()), torch.zeros(batch, dtype=torch.int64)
    return tuple(t.to(device) for t in (weight, direction, basis, probe, *counters))


@pytest.fixture
def step(kernels):
    """One step of the kernels, in place."""

    def take(tensors, **options):
        with kernels.backend():
            fused_step_(FusedStep(*([t] for t in tensors), RATE, **options))

    return take


def step_of_torch(tensors, **options):
    with projunn.backend("torch"):
        fused_step_(FusedStep(*([t] for t in tensors), RATE, **options))


def expected(weight, direction, basis, retraction):
    left, right = factorize(precise(direction), basis.shape[-1], "subspace", basis=precise(basis))
    return retract(precise(weight), -RATE * left, right, retraction)


# Above 128 columns, and for k > 1, a step takes a launch a pass (`projunn_kernels.step.passes`).
SIZES = [
    (1, 1, 1),
    (5, 5, 1),
    (20, 33, 1),
    (64, 64, 1),
    (33, 20, 1),
    (130, 130, 1),
    (132, 144, 2),
    (65, 65, 8),
    (9, 129, 3),
    (16, 16, 2),
    (7, 12, 3),
    (5, 5, 4),
    (33, 33, 4),
]


@pytest.mark.parametrize(("size", "retraction", "kind"), pairwise(SIZES, RETRACTIONS, KINDS), ids=str)
def test_step_equals_float64(kernels, step, size, retraction, kind):
    m, n, k = size
    # Of eight columns one matrix: in the interpreter its programs take seconds.
    tensors = draw(kind, m, n, k, 2 if k < 8 else 1, kernels.device)
    wanted = expected(*tensors[:3], retraction)
    step(tensors, retraction=retraction)
    weight, *_, skipped, _ = tensors
    assert (precise(weight) - wanted).abs().max() < 1e-6
    assert defect(weight) < 1e-6
    assert skipped.item() == 0


@pytest.mark.parametrize("k", [8, 16])
def test_higher_ranks(kernels, step, k):
    tensors = draw(torch.float32, 33, 33, k, 1, kernels.device)
    wanted = expected(*tensors[:3], "exp")
    step(tensors)
    assert (precise(tensors[0]) - wanted).abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("size", [(12, 20), (12, 130)], ids=str)
def test_warm_basis_is_that_of_the_torch_path(kernels, step, kind, k, size):
    tensors = draw(kind, *size, k, device=kernels.device)
    twins = [t.cpu().clone() for t in tensors]
    step(tensors)
    step_of_torch(twins)
    torch.testing.assert_close(tensors[0].cpu(), twins[0], atol=1e-6, rtol=0)
    spans = []
    for basis, probe in (tensors[2:4], twins[2:4]):
        columns = precise(basis - 0.01 * probe)
        spans.append(columns @ torch.linalg.pinv(columns))
    torch.testing.assert_close(spans[0], spans[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(
    ("m", "n", "k"), [(12, 12, 1), (100, 128, 1), (12, 12, 2), (140, 140, 1), (20, 12, 1)]
)
def test_what_is_not_finite_is_left_alone_and_counted(kernels, step, kind, m, n, k):
    tensors = draw(kind, m, n, k, 3, kernels.device)
    tensors[1][1, 2, 3] = torch.nan
    before = [t.clone() for t in tensors]
    step(tensors)
    weight, _, basis, _, skipped, missed = tensors
    assert skipped.item() == 1
    assert missed.tolist() == [0, 1, 0]
    assert torch.equal(weight[1], before[0][1])
    assert torch.equal(basis[1], before[2][1])
    assert not torch.equal(weight[0], before[0][0])
    assert defect(weight) < 1e-6


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("n", [12, 132])
def test_zero_direction_moves_nothing(kernels, step, k, n):
    tensors = draw(torch.float32, 12, n, k, device=kernels.device)
    tensors[1].zero_()
    before = tensors[0].clone()
    step(tensors)
    assert torch.equal(tensors[0], before)
    assert tensors[4].item() == 0


@pytest.mark.parametrize(("n", "k"), [(12, 1), (12, 2), (140, 1)])
def test_active_list_touches_nothing_else(kernels, step, n, k):
    check_active_list(step, n, k, kernels.device)


@pytest.mark.parametrize(("n", "k"), [(12, 1), (12, 2), (140, 1)])
def test_active_list_of_torch_touches_nothing_else(n, k):
    check_active_list(step_of_torch, n, k, "cpu")


def check_active_list(step, n, k, device):
    weight, _, basis, probe, *counters = draw(torch.float32, n, n, k, 5, device)
    active = torch.tensor([3, -1, 0], device=device)
    direction = torch.randn(3, n, n).to(device)
    before = weight.clone()
    wanted = [expected(weight[[b]], direction[[s]], basis[[b]], "exp") for s, b in ((0, 3), (2, 0))]
    others = [1, 2, 4]
    weight[others], basis[others] = torch.nan, torch.nan  # reading them would show
    step((weight, direction, basis, probe, *counters), active=active)
    for block, result in zip((3, 0), wanted, strict=True):
        assert (precise(weight[[block]]) - result).abs().max() < 1e-6
    assert weight[others].isnan().all()
    assert not torch.equal(weight[3], before[3])


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("n", "k"), [(9, 1), (9, 2), (129, 1), (132, 2)])
def test_many_parameters_share_a_call(kernels, kind, n, k):
    alone = [draw(kind, n, n, k, device=kernels.device) for _ in range(3)]
    alone[1][1][1, 0, 0] = torch.inf  # a bad step of one matrix of one parameter
    together = [[t.clone() for t in tensors] for tensors in alone]
    for tensors in alone:
        step_of_torch(tensors)
    with kernels.backend():
        fused_step_(FusedStep(*(list(ts) for ts in zip(*together, strict=True)), RATE))
    assert [tensors[4].item() for tensors in together] == [0, 1, 0]
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one[0], other[0], atol=1e-6, rtol=1e-6)
        spans = [(r - 0.01 * probe) for r, probe in (one[2:4], other[2:4])]
        if k == 1:
            torch.testing.assert_close(*spans, atol=1e-6, rtol=1e-6)
        else:  # any basis of the same columns will do
            a, b = (columns[0] @ columns[0].mH for columns in spans)
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scaled", [False, True])
def test_launches_that_are_kept_follow_what_changes(kernels, scaled):
    """The second step has other gradients, elsewhere in memory, and another rate."""
    weight, _, basis, probe, *counters = draw(torch.float32, 20, 130, 1, device=kernels.device)
    with kernels.backend():
        for rate in (0.05, 0.2, 0.01):
            direction = torch.randn(2, 20, 130, device=kernels.device)
            left, right = factorize(precise(direction), 1, "subspace", basis=precise(basis))
            wanted = retract(precise(weight), -rate * left, right, "exp")
            scale = torch.tensor(rate, device=kernels.device) if scaled else None
            tensors = (weight, direction, basis, probe, *counters)
            step = FusedStep(*([t] for t in tensors), 1.0 if scaled else rate, scale)
            fused_step_(step)
            assert (precise(weight) - wanted).abs().max() < 1e-6


@pytest.mark.parametrize("n", [12, 132])
def test_a_rate_that_is_an_integer_is_no_constant(kernels, monkeypatch, n):
    """Triton compiles a 1 into the binary, which a kept launch would have for all rates."""
    seen, inner = [], Launch.__call__

    def noting(run, **changed):
        seen.extend((run.arguments | changed)[name] for name in changed if name == "rate")
        inner(run, **changed)

    monkeypatch.setattr(Launch, "__call__", noting)
    with kernels.backend():
        tensors = draw(torch.float32, n, n, 1, device=kernels.device)
        fused_step_(FusedStep(*([t] for t in tensors), 1))
    assert [(type(rate), rate) for rate in seen] == [(float, 1.0)]


def test_launches_are_kept_for_a_dtype_of_the_scale(kernels):
    """A kept launch has the address of the scale alone, and reads it as what it was at first."""
    from projunn_kernels.step.launch import _kept

    tensors = [[t] for t in draw(torch.float32, 5, 5, 1, device=kernels.device)]
    before = set(_kept)
    with kernels.backend():
        for dtype in (torch.float32, torch.float64):
            fused_step_(FusedStep(*tensors, 1.0, torch.tensor(0.1, dtype=dtype, device=kernels.device)))
    assert len(set(_kept) - before) == 2


@pytest.mark.parametrize("n", [12, 132])
def test_tensors_that_start_anywhere(kernels, step, n):
    """Parameters may be views into one flat buffer; kernels load 16 bytes at once."""
    aligned = draw(torch.float32, n, n, 1, device=kernels.device)
    moved = []
    for tensor in aligned[:4]:
        flat = torch.zeros(tensor.numel() + 1, device=kernels.device)[1:]
        moved.append(flat.view(tensor.shape).copy_(tensor))
    step((*moved, *(t.clone() for t in aligned[4:])))
    step(aligned)
    for one, other in zip(moved, aligned, strict=False):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_half_precision_gradients_are_read_directly(kernels, step):
    weight, direction, *rest = draw(torch.float32, 12, 12, 1, device=kernels.device)
    half = direction.bfloat16()
    wanted = expected(weight, half.float(), rest[0], "exp")
    step((weight, half, *rest))
    assert (precise(weight) - wanted).abs().max() < 1e-6


def test_strided_weights(kernels, step):
    weight, *rest = draw(torch.float32, 12, 12, 1, device=kernels.device)
    strided = weight.mT.contiguous().mT
    step((weight, *(t.clone() for t in rest)))
    step((strided, *rest))
    torch.testing.assert_close(strided, weight, atol=1e-6, rtol=0)


def test_operator():
    tensors = draw(torch.float32, 6, 6, 1)
    arguments = (*([t] for t in tensors), RATE, None, "exp", False, None)
    torch.library.opcheck(torch.ops.projunn.fused_step_.default, arguments)
